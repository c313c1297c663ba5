"""A checkpoint grown by experts of the original: what is there stays, bit for bit, and together they are what pruning to both
would leave."""

import json
from pathlib import Path

import pytest
import torch
from conftest import raises
from families import config_class, text_logits, tiny_family
from grown_checkpoint import by_expert, chosen, grown
from safetensors.torch import load_file, save_file

from toolkit.cuts import BlockPlan, ExpertsCut, grow, masked, prune_checkpoint
from toolkit.cuts.checkpoint import copied_from_file
from toolkit.moe import load_model
from toolkit.moe.load import auto_class
from toolkit.runtime.signed_folders import read_provenance

# Per-expert files; fused files with biases; shared experts; sigmoid scores with a correction bias, in two groups
FAMILIES = ("mixtral", "gpt_oss", "qwen2_moe", "deepseek_v3")


@pytest.mark.parametrize("family", FAMILIES)
def test_growing_is_pruning_to_both_but_for_the_order(family: str, tmp_path: Path) -> None:
    model, plan = grown(family, tmp_path)
    kept = next(iter(plan.experts.kept.values()))
    assert kept != sorted(kept)
    prune_checkpoint(tmp_path / "original", chosen(model, sorted(kept)), tmp_path / "both")
    ours, theirs = by_expert(tmp_path / "grown", kept), by_expert(tmp_path / "both", sorted(kept))
    assert ours.keys() == theirs.keys() and any(expert is not None for _, expert in ours)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    stock = copied_from_file(auto_class(config_class(family)).from_pretrained(tmp_path / "grown"))
    both = load_model(str(tmp_path / "both"))
    assert (text_logits(stock) - text_logits(both)).abs().max() <= 1e-5
    with masked(model, plan):
        assert (text_logits(stock) - text_logits(model)).abs().max() <= 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_what_was_trained_stays_and_the_new_experts_are_the_originals(family: str, tmp_path: Path) -> None:
    _, plan = grown(family, tmp_path, trained=True)
    kept, (first, second) = next(iter(plan.experts.kept.values())), ([1, 2, 4, 7], [3, 5])
    result, before = by_expert(tmp_path / "grown", kept), by_expert(tmp_path / "first", first)
    original = by_expert(tmp_path / "original", list(range(8)))
    assert all(torch.equal(result[key], tensor) for key, tensor in before.items())
    added = {key: tensor for key, tensor in result.items() if key not in before}
    assert added and {expert for _, expert in added} == set(second)
    assert all(torch.equal(tensor, original[key]) for key, tensor in added.items())
    assert not torch.equal(next(iter(before.values())), original[next(iter(before))])


def test_a_grown_checkpoint_grows_again_to_all_experts(tmp_path: Path) -> None:
    model, plan = grown("mixtral", tmp_path, trained=True)
    held = next(iter(plan.experts.kept.values()))
    again = chosen(model, [*held, 6, 0], ["onto"] * 6 + ["model"] * 2, tmp_path / "grown")
    prune_checkpoint(tmp_path / "original", again, tmp_path / "whole")
    result, before = by_expert(tmp_path / "whole", [*held, 6, 0]), by_expert(tmp_path / "grown", held)
    original = by_expert(tmp_path / "original", list(range(8)))
    assert all(torch.equal(tensor, (before if key in before else original)[key]) for key, tensor in result.items())
    assert json.loads((tmp_path / "whole" / "config.json").read_text())["num_local_experts"] == 8


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_new_experts_come_in_the_type_of_the_others(family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_family(family, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "original")
    prune_checkpoint(tmp_path / "original", chosen(model, [0, 1, 2, 3]), tmp_path / "half")
    load_model(str(tmp_path / "half"), dtype="float32").save_pretrained(tmp_path / "first")
    plan = chosen(model, [0, 1, 2, 3, 6], ["onto"] * 4 + ["model"], tmp_path / "first")
    prune_checkpoint(tmp_path / "original", plan, tmp_path / "grown")
    assert "as F32, not BF16" in capsys.readouterr().out
    result, original = by_expert(tmp_path / "grown", [0, 1, 2, 3, 6]), by_expert(tmp_path / "original", list(range(8)))
    assert all(tensor.dtype == torch.float32 and torch.equal(tensor, original[key].float()) for key, tensor in result.items())


def test_the_folder_says_where_it_comes_from_and_which_experts_are_new(tmp_path: Path) -> None:
    grown("mixtral", tmp_path)
    facts = read_provenance(tmp_path / "grown")
    assert facts and facts["what"] == "grown checkpoint" and facts["plan"]["onto"] == str(tmp_path / "first")
    assert facts["source"] == str(tmp_path / "original") and set(map(tuple, facts["new"].values())) == {(4, 5)}


def test_files_that_are_whole_are_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toolkit.cuts.writer.SHARD_BYTES", 20_000)
    _, plan = grown("mixtral", tmp_path)
    real, names = grow.write_file, []

    def once(path: Path, pieces: list) -> None:
        if len(names) == 2:
            raise KeyboardInterrupt
        names.append(path.name)
        real(path, pieces)

    with monkeypatch.context() as patch:
        patch.setattr(grow, "write_file", once)
        with pytest.raises(KeyboardInterrupt):
            prune_checkpoint(tmp_path / "original", plan, tmp_path / "again")
    assert not (tmp_path / "again").exists()
    monkeypatch.setattr(grow, "write_file", lambda path, pieces: (names.append(path.name), real(path, pieces)))
    prune_checkpoint(tmp_path / "original", plan, tmp_path / "again")
    written = sorted(path.name for path in (tmp_path / "grown").glob("*.safetensors"))
    assert len(written) > 3 and sorted(names) == written  # each once
    assert all((tmp_path / "again" / name).read_bytes() == (tmp_path / "grown" / name).read_bytes() for name in written)


def test_another_originals_checkpoint_is_refused(tmp_path: Path) -> None:
    model, plan = grown("mixtral", tmp_path)
    tiny_family("mixtral", hidden_size=48).save_pretrained(tmp_path / "other")
    with raises("grow.other-model", tmp_path / "first", tmp_path / "other"):
        prune_checkpoint(tmp_path / "other", plan, tmp_path / "wrong")
    prune_checkpoint(tmp_path / "original", chosen(model, [0, 1, 2]), tmp_path / "three")
    with raises("grow.other-model", tmp_path / "three"):
        prune_checkpoint(
            tmp_path / "original", chosen(model, [*range(5)], ["onto"] * 4 + ["model"], tmp_path / "three"), tmp_path / "wrong"
        )
    assert not (tmp_path / "wrong").exists()


def test_experts_in_another_layout_are_refused(tmp_path: Path) -> None:
    _, plan = grown("mixtral", tmp_path)
    file = tmp_path / "first" / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if ".experts.2." in name)
    tensors[f"{name}.packed"] = tensors.pop(name)
    save_file(tensors, file, {"format": "pt"})
    with raises("grow.other-layout", tmp_path / "first", name):
        prune_checkpoint(tmp_path / "original", plan, tmp_path / "wrong")


@pytest.mark.parametrize(
    ("origin", "onto", "fault"),
    [
        (["onto", "model", "model"], "first", "each of the 2 experts"),
        (["onto", "model"], None, "belong together"),
        (["model", "model"], "first", "at least one"),
    ],
)
def test_a_plan_that_grows_is_checked(origin: list, onto: str | None, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        blocks = {"mlp": BlockPlan(experts=4, kept=[2, 1], origin=origin)}
        ExpertsCut.of(blocks, criterion="by hand", keep=2, onto=onto)


def test_only_a_plan_that_grows_keeps_experts_out_of_order() -> None:
    with pytest.raises(ValueError, match="ascending"):
        BlockPlan(experts=4, kept=[2, 1])
    with pytest.raises(ValueError, match="duplicates"):
        BlockPlan(experts=4, kept=[2, 2], origin=["onto", "model"])
