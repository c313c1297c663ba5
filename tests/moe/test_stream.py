import json
from pathlib import Path

import pytest
import torch
from conftest import raises, tiny_model
from families import tiny_family
from safetensors.torch import load_file, save_file

from toolkit.calibration import calibrate
from toolkit.moe import StreamedModel, load_model


def saved(folder: Path, family: str = "mixtral", **changes: object) -> Path:
    tiny_model(family, **changes).save_pretrained(folder, max_shard_size="20KB")
    return folder


def test_a_layer_is_there_inside_its_context_only(family: str, tmp_path: Path) -> None:
    path = saved(tmp_path, family)
    whole, streamed = load_model(str(path)), StreamedModel(str(path))
    assert streamed.model.config._name_or_path == str(path)
    for number, layer in enumerate(streamed.layers):
        assert all(tensor.is_meta for tensor in layer.state_dict().values())
        with streamed.layer(number):
            there = [number for number, other in enumerate(streamed.layers) if not next(other.parameters()).is_meta]
            assert there == [number]
            expected = whole.base_model.layers[number].state_dict()
            assert expected.keys() == layer.state_dict().keys()
            assert all(torch.equal(tensor, expected[name]) for name, tensor in layer.state_dict().items())
        assert all(tensor.is_meta for tensor in layer.state_dict().values())
    assert streamed.model.lm_head.weight.is_meta  # nobody asks for logits


@torch.no_grad()
@pytest.mark.parametrize("both", [False, True], ids=["one tensor", "two tensors"])
@pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied"])
def test_the_head_is_there_inside_its_context_only(tied: bool, both: bool, tmp_path: Path) -> None:
    model = tiny_model("mixtral", tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    if tied and both:  # as some publish it
        file = tmp_path / "model.safetensors"
        embedding = model.model.embed_tokens.weight.detach()
        save_file(load_file(file) | {"lm_head.weight": embedding.clone()}, file, {"format": "pt"})
    streamed, hidden = StreamedModel(str(tmp_path)), torch.randn(1, 5, 32)
    for _ in range(2):
        with streamed.head() as whole:
            assert (whole.lm_head.weight is whole.model.embed_tokens.weight) == tied
            assert torch.equal(whole.lm_head(hidden), model.lm_head(hidden))
        assert streamed.model.lm_head.weight.is_meta
        assert torch.equal(streamed.model.model.embed_tokens.weight, model.model.embed_tokens.weight)


def test_files_without_a_head_do_where_no_logits_are_wanted(tmp_path: Path) -> None:
    tiny_model("mixtral").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file({key: tensor for key, tensor in load_file(file).items() if key != "lm_head.weight"}, file, {"format": "pt"})
    streamed = StreamedModel(str(tmp_path))
    with streamed.layer(1):
        pass
    with raises("checkpoint.tensors-missing", str(tmp_path), "lm_head.weight"), streamed.head():
        pass


# Some parameters stay in float32 whatever the model's dtype; buffers that no file holds are computed.
@pytest.mark.parametrize("family", ["deepseek_v3", "qwen3_next", "gemma4"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_dtypes_and_buffers_are_those_of_a_loaded_model(family: str, dtype: str, tmp_path: Path) -> None:
    tiny_family(family, torch.bfloat16).save_pretrained(tmp_path)
    whole, streamed = load_model(str(tmp_path), dtype=dtype), StreamedModel(str(tmp_path), dtype=dtype)
    tensors = dict([*whole.base_model.named_parameters(), *whole.base_model.named_buffers()])
    seen = set()
    for number in range(len(streamed.layers)):
        with streamed.layer(number):
            for name, tensor in [*streamed.model.base_model.named_parameters(), *streamed.model.base_model.named_buffers()]:
                if not tensor.is_meta:
                    assert tensor.dtype == tensors[name].dtype and torch.equal(tensor, tensors[name])
                    seen.add(name)
    assert seen == tensors.keys()


def test_a_single_file_and_a_configuration_without_dtype_will_do(tmp_path: Path) -> None:
    tiny_model("mixtral", torch.bfloat16).save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    config = json.loads((tmp_path / "config.json").read_text())
    del config["dtype"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert StreamedModel(str(tmp_path), dtype="checkpoint").dtype == torch.bfloat16


def test_what_must_be_loaded_whole_says_why_and_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_model("mixtral").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with raises("model.cannot-stream", "it has no safetensors files"):
        StreamedModel(str(tmp_path))
    ids = torch.randint(3, 64, (2, 9))
    statistics = calibrate(tmp_path, [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}])
    assert statistics.get(statistics.blocks[0], "count").sum() == 2 * 18
    assert "is loaded whole: it has no safetensors files" in capsys.readouterr().out


def test_missing_and_wrong_tensors_and_files_are_told(tmp_path: Path) -> None:
    tiny_model("mixtral").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors, name = load_file(file), "model.layers.1.self_attn.q_proj.weight"
    save_file({key: tensor for key, tensor in tensors.items() if key != name}, file, {"format": "pt"})
    with raises("model.cannot-stream", "its files hold no model.layers.1.self_attn.q_proj.weight"):
        StreamedModel(str(tmp_path))
    save_file(tensors | {name: tensors[name][:-1].clone()}, file, {"format": "pt"})
    with raises("checkpoint.shape-mismatch", name, "[31, 32]", "[32, 32]"), StreamedModel(str(tmp_path)).layer(1):
        pass
    file.write_bytes(file.read_bytes()[:-100])
    with raises("checkpoint.damaged-file", "model.safetensors is missing or damaged", "get this file of the checkpoint again"):
        StreamedModel(str(tmp_path))


@torch.no_grad()
def test_a_dense_model_is_streamed_as_well(tmp_path: Path) -> None:
    from conftest import SMALL
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model("llama", **{k: v for k, v in SMALL.items() if "moe" not in k and "experts" not in k})
    whole = AutoModelForCausalLM.from_config(config)
    whole.save_pretrained(tmp_path)
    streamed = StreamedModel(str(tmp_path))
    hidden = torch.randn(1, 5, config.hidden_size)
    places = whole.model.rotary_emb(hidden, torch.arange(5)[None])
    for number, layer in enumerate(whole.model.layers):
        with streamed.layer(number) as ours:
            assert torch.equal(ours(hidden, position_embeddings=places), layer(hidden, position_embeddings=places))
