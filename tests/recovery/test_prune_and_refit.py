"""Law: `toolkit.prune(…, refit=batches)` leaves the refitted checkpoint whole or nothing, and no pruned one beside it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import plan_for, raises

import toolkit
from toolkit.cuts.block_plan import BlockPlan
from toolkit.cuts.experts import ExpertsCut
from toolkit.cuts.layers import LayersCut
from toolkit.moe import load_model
from toolkit.recovery import prune as prune_file
from toolkit.recovery.refit.layer_files import LayerFiles

Batches = list[dict[str, torch.Tensor]]


def batches_of(sequences: int = 16, length: int = 24) -> Batches:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 700, (sequences, length), generator=generator)
    return [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in ids.split(4)]


@pytest.fixture
def source(tiny_checkpoint: Callable[..., Path]) -> Path:
    return tiny_checkpoint("mixtral")


@pytest.fixture
def plan(source: Path) -> toolkit.Plan:
    return plan_for(load_model(str(source)), [0, 2, 5, 7])


def test_the_result_is_refit_and_nothing_lies_beside_it(source: Path, plan: toolkit.Plan, tmp_path: Path) -> None:
    toolkit.prune(source, plan, tmp_path / "pruned")
    result = toolkit.prune(source, plan, tmp_path / "smaller", refit=batches_of())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pruned", "smaller", source.name]
    assert result.blocks and all(block.error_after <= block.error_before for block in result.blocks)
    pruned, refitted = (load_model(str(tmp_path / name)).state_dict() for name in ("pruned", "smaller"))
    assert {name for name in pruned if not torch.equal(pruned[name], refitted[name])} == {
        weight for block in result.blocks if block.changed for weight in block.weights
    }


def test_fewer_layers_are_refit_to_the_original_layers_that_they_are(source: Path, plan: toolkit.Plan, tmp_path: Path) -> None:
    layers = LayersCut.of(load_model(str(source)), [1], "by hand")
    blocks = {name: block for name, block in plan.blocks.items() if ".1." in name}
    shorter = plan.with_experts(blocks)
    shorter = shorter.model_copy(update={"cuts": [*shorter.cuts, layers]})
    result = toolkit.prune(source, shorter, tmp_path / "shorter", refit=batches_of())
    assert [block.module for block in result.blocks] == ["model.layers.0"]


def test_a_plan_that_grows_another_checkpoint_is_refused(source: Path, plan: toolkit.Plan, tmp_path: Path) -> None:
    origin = ["onto", "onto", "model", "model"]
    grown = {name: BlockPlan(experts=block.experts, kept=block.kept, origin=origin) for name, block in plan.blocks.items()}
    cut = ExpertsCut.of(grown, criterion="by hand", keep=4, onto="runs/first/recovered")
    with raises("refit.grown", "runs/first/recovered"):
        toolkit.prune(source, plan.model_copy(update={"cuts": [cut]}), tmp_path / "grown", refit=batches_of())
    assert not (tmp_path / "grown").exists()


def test_interrupted_it_goes_on_without_pruning_again(
    source: Path, plan: toolkit.Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, pruned = LayerFiles.save, []

    def save(files: LayerFiles, *arguments: object) -> None:
        real(files, *arguments)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LayerFiles, "save", save)
        with pytest.raises(KeyboardInterrupt):
            toolkit.prune(source, plan, tmp_path / "smaller", refit=batches_of())
    assert not (tmp_path / "smaller").exists()
    with monkeypatch.context() as patch:
        patch.setattr(prune_file, "prune_checkpoint", lambda *arguments, **options: pruned.append(arguments))
        toolkit.prune(source, plan, tmp_path / "smaller", refit=batches_of())
    assert not pruned
    toolkit.prune(source, plan, tmp_path / "undisturbed", refit=batches_of())
    files = [tmp_path / name / "model.safetensors" for name in ("smaller", "undisturbed")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert not list(tmp_path.glob("*.pruned")) and not list(tmp_path.glob("*.tmp"))


def test_another_plan_does_not_take_what_an_interrupted_call_has_pruned(source: Path, plan: toolkit.Plan, tmp_path: Path) -> None:
    with raises("refit.too-few-examples"):
        toolkit.prune(source, plan, tmp_path / "smaller", refit=batches_of(sequences=1))
    assert not (tmp_path / "smaller").exists()
    other = plan_for(load_model(str(source)), [1, 3, 4, 6])
    toolkit.prune(source, other, tmp_path / "smaller", refit=batches_of())
    toolkit.prune(source, other, tmp_path / "expected", refit=batches_of())
    one, two = (load_model(str(tmp_path / name)).state_dict() for name in ("smaller", "expected"))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def test_what_lies_at_the_target_stays(source: Path, plan: toolkit.Plan, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with raises("folders.foreign", "thesis.txt"):
        toolkit.prune(source, plan, tmp_path / "mine", refit=batches_of(), overwrite=True)
    with raises("prune.replaces-original", source):
        toolkit.prune(source, plan, source, refit=batches_of(), overwrite=True)
    assert not (tmp_path / "mine.pruned").exists()  # said before anything is pruned
    toolkit.prune(source, plan, tmp_path / "mine2", refit=batches_of())
    with raises("folders.exists", "overwrite=True"):
        toolkit.prune(source, plan, tmp_path / "mine2", refit=batches_of())
    toolkit.prune(source, plan, tmp_path / "mine2", refit=batches_of(), overwrite=True)
