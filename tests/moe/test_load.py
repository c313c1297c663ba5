import json
from pathlib import Path

import torch
from conftest import raises
from safetensors.torch import load_file, save_file

from toolkit.moe import load_config, load_model, load_tokenizer, meta_model


def test_dtype_auto_is_float32_without_a_gpu_and_checkpoint_is_its_own(tiny_checkpoint) -> None:
    folder = tiny_checkpoint(dtype=torch.bfloat16)
    expected = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    assert load_model(str(folder)).dtype == expected
    assert load_model(str(folder), dtype="checkpoint").dtype == torch.bfloat16


def test_eos_pads_where_there_is_no_pad_token(tiny_checkpoint) -> None:
    folder = tiny_checkpoint()
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    del settings["pad_token"]
    path.write_text(json.dumps(settings))
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    assert tokenizer.padding_side == "left"


def test_a_model_that_cannot_be_had_says_what_to_try() -> None:
    with raises("model.does-not-open", "Cannot open the model nobody/nothing", "model.revision", "HF_TOKEN", "model=…"):
        load_config("nobody/nothing")


def test_an_incomplete_folder_is_told_apart(tmp_path: Path) -> None:
    with raises("model.does-not-open", "no complete transformers checkpoint"):
        load_config(str(tmp_path))


def test_an_unknown_family_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "hypermoe"}')
    with raises("model.does-not-open", "newer than the installed transformers", "hypermoe"):
        load_config(str(tmp_path))


def test_other_quantized_checkpoints_are_refused(tiny_checkpoint) -> None:
    folder = tiny_checkpoint()
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": {"quant_method": "gptq", "bits": 4}}))
    with raises("model.quantized", "gptq"):
        load_model(str(folder))


# transformers fills them with random numbers and goes on.
def test_a_tensor_that_the_files_lack_is_told(tiny_checkpoint) -> None:
    folder = tiny_checkpoint()
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.self_attn.q_proj.renamed"] = tensors.pop("model.layers.1.self_attn.q_proj.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with raises("checkpoint.tensors-missing", "lacks 1", "model.layers.1.self_attn.q_proj.weight"):
        load_model(str(folder))


def test_a_meta_model_has_shapes_and_no_weights(tiny_checkpoint) -> None:
    model = meta_model(load_config(str(tiny_checkpoint())))
    assert {p.device.type for p in model.parameters()} == {"meta"}
