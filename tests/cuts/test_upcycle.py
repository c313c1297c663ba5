"""A dense model as a mixture of experts: what it computes, what is drawn, what is written, and what is refused."""

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from companions import FILES, LEFT, add_companions
from conftest import PLAYGROUND, ROOT, logits_of, raises, tiny_model
from rank_launcher import ranks
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import toolkit
from toolkit.cuts import tensor_writer
from toolkit.cuts.checkpoint import copied_from_file
from toolkit.cuts.upcycling import CopiesForm, Form, SharedForm, families, upcycle, writer
from toolkit.moe import find_blocks

DENSE = {
    "llama": {"num_key_value_heads": 1, "tie_word_embeddings": True},
    "mistral": {"sliding_window": 5, "head_dim": 24},
    "qwen2": {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1, "num_hidden_layers": 4},
}
"""Each with what a family of experts must be told in words of its own."""


def saved(folder: Path, family: str = "llama", **changes: object) -> PreTrainedModel:
    model = tiny_model(family, **changes)  # type: ignore[arg-type]
    model.save_pretrained(folder)
    return model


def reloaded(folder: Path) -> PreTrainedModel:
    """By stock transformers, with every tensor filled and none left over."""
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return copied_from_file(model)


def experts_of(model: PreTrainedModel, block: int = 0) -> dict[str, torch.Tensor]:
    return dict(find_blocks(model)[block].experts.named_parameters())


@pytest.mark.parametrize("family", DENSE)
def test_a_shared_expert_beside_silent_ones_is_the_dense_model_bit_for_bit(family: str, tmp_path: Path) -> None:
    dense = saved(tmp_path / "dense", family, **DENSE[family])
    upcycle(tmp_path / "dense", tmp_path / "moe", SharedForm(experts=4, width=8))
    model = reloaded(tmp_path / "moe")
    assert model.config.model_type == "qwen2_moe"
    assert torch.equal(logits_of(model), logits_of(copied_from_file(dense)))
    gate_up, down = experts_of(model).values()
    assert (gate_up.shape, down.shape) == ((4, 16, 32), (4, 32, 8))
    assert not down.any() and gate_up.std() > 0.1  # they give nothing, and learn


@pytest.mark.parametrize(
    ("family", "becomes"), [("llama", "mixtral"), ("mistral", "mixtral"), ("qwen2", "qwen2_moe"), ("qwen3", "qwen3_moe")]
)
def test_copies_without_a_redraw_are_the_dense_model(family: str, becomes: str, tmp_path: Path) -> None:
    dense = saved(tmp_path / "dense", family, **DENSE.get(family, {}))
    upcycle(tmp_path / "dense", tmp_path / "moe", CopiesForm(experts=4, experts_per_token=3, redraw=0.0))
    model, expected = reloaded(tmp_path / "moe"), logits_of(dense)
    assert (model.config.model_type, find_blocks(model)[0].experts_per_token) == (becomes, 3)
    assert (logits_of(model) - expected).abs().max() <= 1e-5 * expected.abs().max()
    down = dense.state_dict()["model.layers.1.mlp.down_proj.weight"]
    assert all(torch.equal(each, down) for each in experts_of(model, 1)["down_proj"])


def test_a_share_of_each_copys_channels_is_drawn_anew(tmp_path: Path) -> None:
    dense = saved(tmp_path / "dense", intermediate_size=400).state_dict()
    upcycle(tmp_path / "dense", tmp_path / "moe", CopiesForm(experts=3, redraw=0.25))
    model = reloaded(tmp_path / "moe")
    gate_up, down = experts_of(model, 1).values()
    original = dense["model.layers.1.mlp.down_proj.weight"]
    redrawn = [(each != original).any(0) for each in down]
    assert [int(channels.sum()) for channels in redrawn] == [100, 100, 100]
    assert not torch.equal(redrawn[0], redrawn[1])  # others in each
    for expert, channels in enumerate(redrawn):
        halves = zip(gate_up[expert].chunk(2), ("gate_proj", "up_proj"), strict=True)
        for rows, before in ((rows, dense[f"model.layers.1.mlp.{name}.weight"]) for rows, name in halves):
            assert torch.equal((rows != before).any(1), channels)  # whole channels
            assert float(rows[channels].std()) == pytest.approx(float(before.std()), rel=0.05)
        assert float(down[expert][:, channels].std()) == pytest.approx(float(original.std()), rel=0.05)
    outside = {name: tensor for name, tensor in model.state_dict().items() if ".mlp." not in name}
    assert all(torch.equal(tensor, dense[name]) for name, tensor in outside.items()) and len(outside) == 15
    assert find_blocks(model)[0].router.weight.std() > 0.01  # type: ignore[operator, union-attr]


def test_the_seed_decides_what_is_drawn_and_nothing_else_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path / "dense")
    for name, seed in (("first", 1), ("other", 2)):
        upcycle(tmp_path / "dense", tmp_path / name, CopiesForm(seed=seed))
    monkeypatch.setattr(tensor_writer, "FILE_BYTES", 1)  # a file for every layer
    upcycle(tmp_path / "dense", tmp_path / "again", CopiesForm(seed=1))
    index = json.loads((tmp_path / "again" / "model.safetensors.index.json").read_text())
    assert len({*index["weight_map"].values()}) == 3
    first, again, other = (reloaded(tmp_path / name).state_dict() for name in ("first", "again", "other"))
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    differing = {name.rpartition("mlp.")[2] for name, tensor in first.items() if not torch.equal(tensor, other[name])}
    assert differing == {"gate.weight", "experts.gate_up_proj", "experts.down_proj"}


def test_numbers_keep_their_type(tmp_path: Path) -> None:
    dense = saved(tmp_path / "dense", dtype=torch.bfloat16)
    upcycle(tmp_path / "dense", tmp_path / "moe", SharedForm(width=8))
    assert {tensor.dtype for tensor in load_file(tmp_path / "moe" / "model.safetensors").values()} == {torch.bfloat16}
    assert torch.equal(logits_of(reloaded(tmp_path / "moe")), logits_of(copied_from_file(dense)))  # × 2 · ½ is exact there, too


def test_companions_come_along_and_the_configuration_is_the_mixtures(tmp_path: Path) -> None:
    saved(tmp_path / "dense", "mistral", sliding_window=None)
    add_companions(tmp_path / "dense")
    upcycle(tmp_path / "dense", tmp_path / "moe", CopiesForm())
    written = json.loads((tmp_path / "moe" / "config.json").read_text())
    assert (written["architectures"], written["a_key_of_another_reader"]) == (["MixtralForCausalLM"], {"b": [1]})
    assert (written["num_local_experts"], written["num_experts"], written["num_experts_per_tok"]) == (8, 8, 2)
    assert "auto_map" not in written and written["dtype"] == "float32" and written["sliding_window"] is None
    assert all((tmp_path / "moe" / name).read_bytes() == content.encode() for name, content in FILES.items())
    assert not [name for name in LEFT if (tmp_path / "moe" / name).exists()]


def test_killed_anywhere_and_started_again_it_is_what_an_undisturbed_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path / "dense", num_hidden_layers=4)
    monkeypatch.setattr(tensor_writer, "FILE_BYTES", 1)
    upcycle(tmp_path / "dense", tmp_path / "undisturbed", CopiesForm())
    real, written, again = writer.write_tensors, list[str](), list[str]()

    def kill(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        real(path, tensors)
        written.append(path.name)

    monkeypatch.setattr(writer, "write_tensors", kill)
    with pytest.raises(KeyboardInterrupt):
        upcycle(tmp_path / "dense", tmp_path / "moe", CopiesForm())
    assert not (tmp_path / "moe").exists()
    monkeypatch.setattr(writer, "write_tensors", lambda path, tensors: (again.append(path.name), real(path, tensors)))
    upcycle(tmp_path / "dense", tmp_path / "moe", CopiesForm())
    assert len(written) == 2 and len(again) == 3 and not {*written} & {*again}
    files = {path.name: path.read_bytes() for path in (tmp_path / "moe").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "undisturbed").iterdir()}


def test_a_place_that_is_taken_stays_as_it_is(tmp_path: Path) -> None:
    saved(tmp_path / "dense")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("words")
    with raises("folders.foreign", "thesis.txt"):
        upcycle(tmp_path / "dense", tmp_path / "mine", overwrite=True)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    upcycle(tmp_path / "dense", tmp_path / "moe", SharedForm(width=8))
    with raises("folders.exists", tmp_path / "moe"):
        upcycle(tmp_path / "dense", tmp_path / "moe", SharedForm(width=8))
    upcycle(tmp_path / "dense", tmp_path / "moe", SharedForm(width=16), overwrite=True)
    assert reloaded(tmp_path / "moe").config.moe_intermediate_size == 16
    for inside in (tmp_path / "dense", tmp_path / "dense" / "moe", tmp_path):
        with raises("prune.replaces-original" if inside == tmp_path / "dense" else _apart(inside, tmp_path), "dense model"):
            upcycle(tmp_path / "dense", inside)


def _apart(place: Path, above: Path) -> str:
    return "prune.contains-original" if place == above else "prune.inside-original"


REFUSED = {
    "norms": ("gemma2", {}, "mixtral"),
    "width": ("llama", {"intermediate_size": 20}, "multiple of 8"),
    "biases": ("llama", {"attention_bias": True}, "self_attn.o_proj.bias"),
    "biases of its feed-forward layers": ("llama", {"mlp_bias": True}, "model.layers.0.mlp"),
    "layers without positions": ("smollm3", {"num_hidden_layers": 4}, "computes something else"),
    "attention that depends on the position": ("ministral3", {"max_position_embeddings": 2**18}, "computes something else"),
    "a factor": ("granite", {"attention_multiplier": 0.25, "residual_multiplier": 0.9}, "computes something else"),
    "a window in some layers": (
        "qwen3",
        {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
        "computes something else",
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_a_model_that_no_family_of_experts_can_hold_is_refused(reason: str, tmp_path: Path) -> None:
    family, changes, named = REFUSED[reason]
    tiny_model(family, **changes).config.save_pretrained(tmp_path / "dense")  # before weights are read
    with raises("upcycle.no-family", family, named, "docs/upcycle.md"):
        upcycle(tmp_path / "dense", tmp_path / "moe", CopiesForm())
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]


def test_what_would_be_a_mixture_of_something_else_is_refused(tmp_path: Path) -> None:
    with raises("upcycle.not-dense", "mixtral", 8):
        upcycle(PLAYGROUND / "model", tmp_path / "moe")
    config = saved(tmp_path / "dense").config
    config.quantization_config = {"quant_method": "fp8"}
    config.save_pretrained(tmp_path / "dense")
    with raises("upcycle.quantized", "fp8"):
        upcycle(tmp_path / "dense", tmp_path / "moe")
    with raises("model.does-not-open", "no/such"):
        upcycle("no/such", tmp_path / "moe")


@pytest.mark.parametrize(
    ("form", "wrong"),
    [
        (SharedForm, {"experts": 1}), (SharedForm, {"width": 0}), (SharedForm, {"width": 12}),
        (CopiesForm, {"redraw": 1.1}), (CopiesForm, {"redraw": -0.1}),
        (CopiesForm, {"experts": 4, "experts_per_token": 5}), (SharedForm, {"experts_per_token": 0}),
        (CopiesForm, {"redraw": float("nan")}),
    ],
)  # fmt: skip
def test_numbers_that_make_no_mixture_are_refused(form: type[Form], wrong: dict[str, float]) -> None:
    name, value = list(wrong.items())[-1]
    with raises("upcycle.wrong-number", name, value):
        form(**wrong)


def test_a_mixture_that_is_not_the_dense_model_gets_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path / "dense")
    monkeypatch.setattr(families, "_check_small_copies", lambda *arguments: None)  # which sees it before anything is written
    monkeypatch.setattr(SharedForm, "shared", lambda self, dense, draws: dense)
    with raises("upcycle.verification-failed", "logits"):
        upcycle(tmp_path / "dense", tmp_path / "moe")
    assert not (tmp_path / "moe").exists()


def test_weights_in_a_bin_file_are_read_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dense = saved(tmp_path / "dense")
    torch.save(dense.state_dict(), tmp_path / "dense" / "pytorch_model.bin")
    (tmp_path / "dense" / "model.safetensors").unlink()
    upcycle(tmp_path / "dense", tmp_path / "moe", SharedForm(width=8))
    assert "loaded whole" in capsys.readouterr().out
    assert torch.equal(logits_of(reloaded(tmp_path / "moe")), logits_of(copied_from_file(dense)))


def test_an_upcycled_model_goes_through_the_toolkit(tmp_path: Path) -> None:
    saved(tmp_path / "dense")
    upcycle(tmp_path / "dense", tmp_path / "moe", CopiesForm(redraw=0.5))
    ids = torch.randint(3, 64, (2, 24), generator=torch.Generator().manual_seed(1))
    statistics = toolkit.calibrate(tmp_path / "moe", [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}])
    plan = toolkit.select(statistics, criterion="reap", keep=4)
    toolkit.prune(tmp_path / "moe", plan, tmp_path / "pruned")
    with toolkit.masked(reloaded(tmp_path / "moe"), plan) as masked:
        expected = logits_of(masked)
    assert (logits_of(reloaded(tmp_path / "pruned")) - expected).abs().max() <= 1e-5 * expected.abs().max()


def write_gguf(model: PreTrainedModel, path: Path) -> None:
    """As llama.cpp writes a Llama, whose rotated rows it has in another order."""
    gguf = pytest.importorskip("gguf")
    config = model.config
    out = gguf.GGUFWriter(path, "llama")
    for add, value in (
        (out.add_context_length, config.max_position_embeddings), (out.add_embedding_length, config.hidden_size),
        (out.add_block_count, config.num_hidden_layers), (out.add_feed_forward_length, config.intermediate_size),
        (out.add_head_count, config.num_attention_heads), (out.add_head_count_kv, config.num_key_value_heads),
        (out.add_layer_norm_rms_eps, config.rms_norm_eps), (out.add_vocab_size, config.vocab_size),
        (out.add_rope_dimension_count, config.head_dim), (out.add_tokenizer_model, "gpt2"),
        (out.add_token_list, [chr(0x100 + number) for number in range(config.vocab_size)]),
        (out.add_token_scores, [0.0] * config.vocab_size),
        (out.add_eos_token_id, config.eos_token_id), (out.add_chat_template, "{{ messages }}"),
    ):  # fmt: skip
        add(value)
    for name, new in gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers).mapping.items():
        tensor = model.state_dict().get(f"{name}.weight")
        if tensor is None:
            continue
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.rpartition(".")[2])
        if heads:
            tensor = tensor.view(heads, 2, -1, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape)
        out.add_tensor(f"{new[1]}.weight", tensor.numpy())
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def test_a_gguf_file_brings_its_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "dense").mkdir()
    dense = tiny_model("llama", bos_token_id=None, pad_token_id=None)
    write_gguf(dense, tmp_path / "dense" / "tiny.gguf")
    upcycle(tmp_path / "dense", tmp_path / "moe", SharedForm(width=8))
    expected = logits_of(dense)
    assert (logits_of(reloaded(tmp_path / "moe")) - expected).abs().max() <= 1e-5 * expected.abs().max()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "moe")
    assert tokenizer.chat_template == "{{ messages }}" and tokenizer.eos_token_id == 2
    upcycle(tmp_path / "dense" / "tiny.gguf", tmp_path / "again", SharedForm(width=8))
    (tmp_path / "dense" / "other.gguf").write_bytes(b"")
    with raises("model.does-not-open", "other.gguf"):
        upcycle(tmp_path / "dense" / "other.gguf", tmp_path / "third")
    with raises("upcycle.several-gguf", "other.gguf"):
        upcycle(tmp_path / "dense", tmp_path / "third")


@pytest.mark.launcher
def test_ranks_share_the_work_and_write_the_same(tmp_path: Path) -> None:
    saved(tmp_path / "dense", num_hidden_layers=4)
    (tmp_path / "upcycle.py").write_text(
        "import sys\nfrom toolkit.cuts import tensor_writer\nfrom toolkit.cuts.upcycling import CopiesForm, upcycle\n"
        "from toolkit.runtime.distributed import start, stop\n"
        "tensor_writer.FILE_BYTES = 1\nstart()\nupcycle(sys.argv[2], sys.argv[3], CopiesForm(redraw=0.0))\nstop()\n"
    )
    for number in (1, 2):
        command = ranks(number, str(tmp_path / "upcycle.py"), str(tmp_path / "dense"), str(tmp_path / f"moe{number}"))
        done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
    files = [{path.name: path.read_bytes() for path in (tmp_path / f"moe{number}").iterdir()} for number in (1, 2)]
    assert files[0] == files[1] and len([name for name in files[0] if name.endswith(".safetensors")]) == 5
