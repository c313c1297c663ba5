import json
from pathlib import Path

import pytest
import torch
from conftest import ROOT, logits_of, plan_for, raises, tiny_model
from families import tiny_family
from huggingface_hub import constants
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from toolkit.cuts import layout, writer
from toolkit.cuts.apply import apply_plan, masked
from toolkit.cuts.block_plan import BlockPlan
from toolkit.cuts.checkpoint import prune_checkpoint, tensor_shapes
from toolkit.cuts.plan import Plan
from toolkit.runtime.errors import PollardError

KEPT = [0, 3, 5, 6]
NAEE = ROOT / "tests" / "reference" / "naee"


def test_a_pruned_checkpoint_is_the_sliced_model_to_any_stock_reader(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    model.save_pretrained(tmp_path / "original")
    plan = plan_for(model, KEPT)
    with masked(model, plan):
        expected = logits_of(model)
    prune_checkpoint(str(tmp_path / "original"), plan, tmp_path / "pruned")
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned")
    assert torch.equal(logits_of(stock), logits_of(apply_plan(model, plan)))  # save and reload: exactly nothing changes
    assert (logits_of(stock) - expected).abs().max() <= 1e-5


def test_every_spelling_of_the_expert_count_is_written(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    model.save_pretrained(tmp_path / "original")
    prune_checkpoint(str(tmp_path / "original"), plan_for(model, KEPT), tmp_path / "pruned")
    written = json.loads((tmp_path / "pruned" / "config.json").read_text())
    names = {*AutoConfig.for_model(family).attribute_map.items()}
    spellings = {
        name for pair in names for name in pair if name.endswith(("num_experts", "num_local_experts", "n_routed_experts"))
    }
    assert {written[name] for name in spellings or {"num_experts"}} == {4}
    assert written["num_experts_per_tok"] == 2


# transformers neither loads nor saves the layers of DeepSeek-V3 that predict further tokens; a promise of them would stay.
def test_layers_that_are_not_written_are_not_promised(tmp_path: Path) -> None:
    model = tiny_family("deepseek_v3")
    model.save_pretrained(tmp_path / "original")
    assert json.loads((tmp_path / "original" / "config.json").read_text())["num_nextn_predict_layers"] == 1
    prune_checkpoint(str(tmp_path / "original"), plan_for(model, KEPT), tmp_path / "pruned")
    assert json.loads((tmp_path / "pruned" / "config.json").read_text())["num_nextn_predict_layers"] == 0


def test_nested_configurations_are_written_in_every_spelling(tmp_path: Path) -> None:
    model = tiny_family("qwen3_vl_moe")
    model.save_pretrained(tmp_path / "original")
    prune_checkpoint(str(tmp_path / "original"), plan_for(model, KEPT), tmp_path / "pruned")
    text = json.loads((tmp_path / "pruned" / "config.json").read_text())["text_config"]
    assert {value for key, value in text.items() if key in ("num_experts", "num_local_experts")} == {4}


def test_tensors_keep_their_dtype_and_only_the_kept_experts(tmp_path: Path) -> None:
    model = tiny_model("mixtral", torch.bfloat16)
    model.save_pretrained(tmp_path / "original")
    prune_checkpoint(str(tmp_path / "original"), plan_for(model, KEPT), tmp_path / "pruned")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("original", "pruned"))
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}
    path = "model.layers.1.block_sparse_moe"
    for new, old in enumerate(KEPT):
        assert torch.equal(after[f"{path}.experts.{new}.w2.weight"], before[f"{path}.experts.{old}.w2.weight"])
    assert torch.equal(after[f"{path}.gate.weight"], before[f"{path}.gate.weight"][KEPT])
    assert f"{path}.experts.4.w2.weight" not in after
    assert torch.equal(after["lm_head.weight"], before["lm_head.weight"])


def test_tokenizer_chat_template_and_generation_settings_come_along(tiny_checkpoint, tmp_path: Path) -> None:
    source = tiny_checkpoint()
    settings = GenerationConfig.from_pretrained(source)
    settings.max_new_tokens = 77
    settings.save_pretrained(source)
    prune_checkpoint(str(source), plan_for(AutoModelForCausalLM.from_pretrained(source), KEPT), tmp_path / "pruned")
    before, after = (AutoTokenizer.from_pretrained(folder) for folder in (source, tmp_path / "pruned"))
    assert after.chat_template == before.chat_template
    assert after("6 * 4 = 24").input_ids == before("6 * 4 = 24").input_ids
    assert GenerationConfig.from_pretrained(tmp_path / "pruned").max_new_tokens == 77


def test_a_checkpoint_that_would_come_out_wrong_is_not_left_behind(monkeypatch, tmp_path: Path) -> None:
    model = tiny_model("mixtral")
    model.save_pretrained(tmp_path / "original")
    other = plan_for(model, [1, 2, 4, 7])
    monkeypatch.setattr(writer, "pieces_of", lambda stored, model, pruned, plan: layout.pieces_of(stored, model, pruned, other))
    with raises("prune.verification-failed", "outputs of model.layers.0.mlp differ"):
        prune_checkpoint(str(tmp_path / "original"), plan_for(model, KEPT), tmp_path / "pruned")
    assert not (tmp_path / "pruned").exists()


def test_weights_that_are_not_in_safetensors_are_loaded_whole_and_that_is_said(tmp_path: Path, capsys) -> None:
    model = tiny_model("mixtral")
    model.save_pretrained(tmp_path / "original")
    (tmp_path / "original" / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "original" / "pytorch_model.bin")
    prune_checkpoint(str(tmp_path / "original"), plan_for(model, KEPT), tmp_path / "pruned")
    assert "the whole model is loaded, for its files alone do not say" in capsys.readouterr().out
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned")
    assert torch.equal(logits_of(stock), logits_of(apply_plan(model, plan_for(model, KEPT))))


def test_a_hub_model_is_pruned_from_the_hubs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("mixtral")
    repository = tmp_path / "models--someone--tiny"
    model.save_pretrained(repository / "snapshots" / "0123abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "first").write_text("0123abc")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    prune_checkpoint("someone/tiny", plan_for(model, KEPT), tmp_path / "pruned", revision="first")
    assert tensor_shapes(tmp_path / "pruned")["model.layers.0.block_sparse_moe.gate.weight"] == (4, 32)
    with raises("model.does-not-open", "Cannot open the model someone/other. No such folder, and the hub does not have it"):
        prune_checkpoint("someone/other", plan_for(model, KEPT), tmp_path / "other")


@pytest.mark.parametrize("case", ["case_a", "case_b"])
@pytest.mark.parametrize("keep", [6, 4, 2])
def test_pruned_models_answer_as_those_of_the_published_naee_code(case: str, keep: int, tmp_path: Path) -> None:
    expected = json.loads((NAEE / case / "expected.json").read_text())
    choice = expected["layerwise"][str(keep)]["layers"]
    blocks = {f"model.layers.{layer}.mlp": BlockPlan(experts=8, kept=found["kept"]) for layer, found in choice.items()}
    plan = Plan.of_experts(model=case, criterion="naee", keep=keep, experts_per_token=2, blocks=blocks)
    prune_checkpoint(str(NAEE / case / "model"), plan, tmp_path / "pruned")
    ids = load_file(NAEE / case / "calibration.safetensors")["input_ids"][:2]
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned")(ids).logits
    assert (logits - load_file(NAEE / case / "logits.safetensors")[f"layerwise_r{keep}"]).abs().max() <= 2e-5


@pytest.fixture
def source(tmp_path: Path) -> Path:
    tiny_model("mixtral").save_pretrained(tmp_path / "original")
    return tmp_path / "original"


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# In whatever state a folder of somebody else's is: a thesis, a model, an unfinished one, a link, a file.
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("what", ["thesis", "model", "partial", "link", "file"])
def test_pruning_never_touches_what_is_not_pollards(source: Path, tmp_path: Path, what: str, overwrite: bool) -> None:
    target, others = tmp_path / "out", tmp_path / ("out.tmp" if what == "partial" else "others" if what == "link" else "out")
    if what == "file":
        others.write_text("mine")
    elif what == "model":
        tiny_model("qwen2_moe").save_pretrained(others)
    else:
        others.mkdir()
        (others / "thesis.tex").write_text("mine")
    if what == "link":
        target.symlink_to(others)
    before = everything(tmp_path)
    with pytest.raises(PollardError, match=r"is a link to|is a file|holds what Pollard did not write: (thesis|config)") as error:
        prune_checkpoint(source, plan_for(tiny_model("mixtral"), KEPT), target, overwrite=overwrite)
    assert str(target) in str(error.value) and everything(tmp_path) == before


def test_a_checkpoint_of_pollards_is_replaced_when_that_is_asked_for(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "pruned"
    for kept in (KEPT, [1, 2]):
        prune_checkpoint(source, plan_for(tiny_model("mixtral"), kept), target, overwrite=True)
    before = everything(target)
    assert json.loads(before["pollard.json"])["plan"]["keep"] == 2
    with pytest.raises(PollardError, match=rf"{target} holds a pruned checkpoint of {source} already\. Say overwrite=True"):
        prune_checkpoint(source, plan_for(tiny_model("mixtral"), KEPT), target)
    (target / "my-notes.md").write_text("mine")
    with pytest.raises(PollardError, match=r"holds what Pollard did not write: my-notes\.md"):
        prune_checkpoint(source, plan_for(tiny_model("mixtral"), KEPT), target, overwrite=True)
    assert everything(target) == before | {"my-notes.md": b"mine"}


def test_original_and_result_do_not_lie_in_each_other(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, before = plan_for(tiny_model("mixtral"), KEPT), everything(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "again").symlink_to(source)
    for target, message in {
        source / "pruned": ("prune.inside-original",), tmp_path: ("prune.contains-original",),
        "original/../original": ("prune.replaces-original",), "again/deep": ("prune.inside-original",),
        "again": ("prune.replaces-original",), ".": ("prune.contains-original",), "..": ("prune.contains-original",),
    }.items():  # fmt: skip
        with raises(*message):
            prune_checkpoint("original", plan, target, overwrite=True)
    (tmp_path / "again").unlink()
    assert everything(tmp_path) == before and sorted(path.name for path in tmp_path.iterdir()) == ["original"]


def test_home_is_meant_by_its_sign_and_is_no_place_for_a_result(source: Path, tmp_path: Path, monkeypatch) -> None:
    plan, home = plan_for(tiny_model("mixtral"), KEPT), tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    with pytest.raises(PollardError, match=r"is the folder you are in|is your home folder"):
        prune_checkpoint(source, plan, "~")
    prune_checkpoint(source, plan, "~/smaller")
    assert [path.name for path in home.iterdir()] == ["smaller"]


def test_pruning_in_memory_keeps_to_the_same_law(source: Path, tmp_path: Path) -> None:
    torch.save(load_file(source / "model.safetensors"), source / "pytorch_model.bin")
    (source / "model.safetensors").unlink()
    plan, target = plan_for(tiny_model("mixtral"), KEPT), tmp_path / "pruned"
    prune_checkpoint(source, plan, target)
    before = everything(target)
    with pytest.raises(PollardError, match=r"Say overwrite=True \(--overwrite\) to replace it"):
        prune_checkpoint(source, plan, target)
    prune_checkpoint(source, plan, target, overwrite=True)
    assert everything(target) == before
    (target / "thesis.tex").write_text("mine")
    with pytest.raises(PollardError, match="holds what Pollard did not write: thesis"):
        prune_checkpoint(source, plan, target, overwrite=True)


def test_tensor_shapes_are_read_from_headers(tmp_path: Path) -> None:
    model = tiny_model("gpt_oss")
    model.save_pretrained(tmp_path)
    assert tensor_shapes(tmp_path)["model.layers.0.mlp.experts.down_proj"] == (8, 16, 32)
