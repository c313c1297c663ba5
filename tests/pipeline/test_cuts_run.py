"""Runs that cut experts, channels and layers: in one plan, in steps, and interrupted."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import logits_of, tiny_model
from small_run import small_folder, small_recipe
from transformers import AutoModelForCausalLM

from toolkit.cuts import LayersCut, Plan, WidthCut, apply_plan, masked
from toolkit.cuts.shape import shape_size
from toolkit.moe import expert_width, find_blocks, load_config, load_model
from toolkit.pipeline.run_directory import RunDirectory
from toolkit.pipeline.run_facts import read_run_facts
from toolkit.pipeline.runner import run
from toolkit.recipe.roles import Role
from toolkit.recipe.schema import Recipe
from toolkit.report.cut_facts import SizeFacts

TRAINER = {"max_steps": 1, "per_device_train_batch_size": 2, "eval_strategy": "no"}
ALL = {"keep": 4, "width": 8, "layers": 3, "layer_criterion": "influence"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working folder: a model of four layers with experts of 16 channels."""
    with small_folder(tmp_path_factory, "cuts") as folder:
        model = tiny_model("mixtral", vocab_size=768, eos_token_id=1, num_hidden_layers=4)
        model.save_pretrained(folder / "original")
        yield folder


def recipe_of(name: str, pruning: dict, **changes: object) -> Recipe:
    values: dict = {
        "finetuning": {"zero": 0, "examples": 8, "trainer": TRAINER},
        "evaluation": {"examples": 2, "max_new_tokens": 2, "off_task": False, "batch_size": 2},
    }
    return small_recipe(name=name, pruning=pruning, **(values | changes))


@pytest.fixture(scope="module")
def finished(folder: Path) -> RunDirectory:
    return run(recipe_of("all", ALL))


def test_one_plan_holds_every_cut_and_the_checkpoint_is_what_it_leaves(finished: RunDirectory) -> None:
    stages = list(finished.read_manifest()["stages"])
    assert stages[:4] == ["layers", "calibrate", "select", "prune"] and {"recover", "evaluate/recovered", "report"} < {*stages}
    plan = Plan.load(finished.plan)
    width, layers = plan.cut(WidthCut), plan.cut(LayersCut)
    assert width and layers and (plan.keep, width.keep, len(layers.kept)) == (4, 8, 3)
    assert (width.criterion, layers.criterion) == ("energy", "influence")
    assert {name.split(".")[2] for name in plan.blocks} == {str(number) for number in layers.kept}  # the original's names
    original, pruned = (load_model(path) for path in ("original", str(finished.pruned)))
    with masked(original, plan):
        expected = logits_of(original)
    assert torch.allclose(logits_of(pruned), expected, atol=1e-4)
    sliced = apply_plan(original, plan).state_dict()
    assert all(torch.equal(tensor, sliced[name]) for name, tensor in pruned.state_dict().items())


def test_experts_and_channels_are_observed_without_the_layers_that_go(finished: RunDirectory) -> None:
    about = json.loads((finished.statistics / "statistics.json").read_text())
    kept = json.loads(finished.layers.read_text())["kept"]
    assert [name.split(".")[2] for name in about["blocks"]] == [str(number) for number in kept]


def test_the_recovered_model_has_the_same_shape_and_opens_everywhere(finished: RunDirectory) -> None:
    for checkpoint in (finished.pruned, finished.recovered):
        config = load_config(str(checkpoint))
        assert (config.num_local_experts, config.intermediate_size, config.num_hidden_layers) == (4, 8, 3)
        _, found = AutoModelForCausalLM.from_pretrained(checkpoint, output_loading_info=True)
        assert not found["missing_keys"] and not found["unexpected_keys"] and not found["mismatched_keys"]


def test_a_second_run_does_nothing_and_another_width_begins_with_the_choice(
    finished: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    def done(**pruning: object) -> list[str]:
        capsys.readouterr()
        run(recipe_of("all", ALL | pruning), until="prune")
        lines = capsys.readouterr().out.splitlines()
        return [line.split()[0] for line in lines if line.rstrip().endswith(("(not done yet)", "done again)"))]

    assert done() == []
    assert done(width=12) == ["select", "prune"]  # one calibration serves every width
    assert done(keep=None) == ["select", "prune"]
    assert done(width_criterion="magnitude") == ["select", "prune"]
    assert done(width_criterion="taylor") == ["calibrate", "select", "prune"]
    assert done(layers=2) == ["layers", "calibrate", "select", "prune"]
    assert done(layers=None, layer_criterion="dev_loss") == ["calibrate", "select", "prune"]


def test_killed_between_stages_it_ends_as_if_undisturbed(finished: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    run(recipe_of("all", ALL), until="prune")
    killed = recipe_of("killed", ALL)
    for stage in ("layers", "select"):
        run(killed, until=stage)
    there = run(killed, until="prune")
    assert there.plan.read_text() == finished.plan.read_text()
    for file in ("plan.safetensors", "pruned/model.safetensors", "pruned/config.json", "calibration/statistics.safetensors"):
        assert (there.path / file).read_bytes() == (finished.path / file).read_bytes()


@pytest.mark.parametrize(
    ("pruning", "experts", "width", "layers"),
    [
        ({"width": 0.5}, 8, 8, 4),
        ({"width": 0.5, "width_criterion": "taylor"}, 8, 8, 4),
        ({"layers": [0, 2, 3]}, 8, 16, 3),
        ({"keep": None, "width": 12, "layers": 0.5, "layer_criterion": "top", "criterion": "reconstruction"}, 8, 12, 2),
    ],
)
def test_any_combination_leaves_a_model_of_that_shape(folder: Path, pruning: dict, experts: int, width: int, layers: int) -> None:
    done = run(
        recipe_of("combined", pruning, evaluation={"models": ["pruned"], "examples": 2, "max_new_tokens": 2, "off_task": False})
    )
    model = load_model(str(done.pruned))
    assert (find_blocks(model)[0].expert_count, expert_width(model)) == (experts, width)
    assert model.config.num_hidden_layers == layers


STEPS = [{"keep": 6, "width": 0.75}, {"keep": 4, "width": 0.5, "layers": 3}]


@pytest.fixture(scope="module")
def scheduled(folder: Path) -> RunDirectory:
    pruning = {"schedule": STEPS, "layer_criterion": "influence"}
    return run(
        recipe_of("steps", pruning, evaluation={"models": ["recovered"], "examples": 2, "max_new_tokens": 2, "off_task": False})
    )


def test_steps_of_a_schedule_count_in_the_original(scheduled: RunDirectory) -> None:
    early = scheduled.rounds / "6-width0.75"
    shapes = {}
    for folder in (early / "pruned", early / "recovered", scheduled.pruned, scheduled.recovered):
        config = load_config(str(folder))
        shapes[folder] = (config.num_local_experts, config.intermediate_size, config.num_hidden_layers)
    assert list(shapes.values()) == [(6, 12, 4), (6, 12, 4), (4, 8, 3), (4, 8, 3)]
    assert list(scheduled.read_manifest()["stages"])[:2] == ["rounds/6-width0.75", "layers"]


def test_the_composed_plan_leaves_of_the_original_what_the_rounds_leave(scheduled: RunDirectory) -> None:
    composed, last = Plan.load(scheduled.rounds / "plan.json"), Plan.load(scheduled.plan)
    width, layers = composed.cut(WidthCut), composed.cut(LayersCut)
    assert composed.model == "original" and width and layers
    assert (composed.keep, width.keep, layers.layers, len(layers.kept)) == (4, 8, 4, 3)
    first = Plan.load(scheduled.rounds / "6-width0.75" / "plan.json")
    by_rounds = apply_plan(apply_plan(load_model("original"), first), last).state_dict()
    at_once = apply_plan(load_model("original"), composed).state_dict()
    assert all(torch.equal(tensor, at_once[name]) for name, tensor in by_rounds.items())


def test_a_step_that_repeats_a_width_does_not_choose_it_again(folder: Path) -> None:
    pruning = {"schedule": [{"width": 12}, {"width": 12, "layers": 3}], "layer_criterion": "top"}
    done = run(recipe_of("repeats", pruning), until="select")
    plan = Plan.load(done.plan)
    assert [cut.kind for cut in plan.cuts] == ["experts", "layers"]
    assert not json.loads((done.statistics / "statistics.json").read_text()).get("channels")
    assert {cut.kind for cut in Plan.load(done.rounds / "plan.json").cuts} == {"experts", "width", "layers"}


def test_the_report_tells_every_cut_as_it_was(finished: RunDirectory) -> None:
    facts, plan = read_run_facts(finished.path), Plan.load(finished.plan)
    assert facts.cuts and facts.cuts.width and facts.cuts.layers and facts.pruning
    assert list(facts.cuts.sizes) == ["original", "layers", "experts", "width"]
    written = shape_size(load_model(str(finished.pruned)))
    assert facts.cuts.sizes["width"] == SizeFacts(**written._asdict())
    assert facts.models[Role.PRUNED] and facts.models[Role.PRUNED].parameters == written.parameters
    width, layers = facts.cuts.width, facts.cuts.layers
    assert (width.keep, width.width, width.blocks.keys()) == (8, 16, plan.blocks.keys())
    assert width.criteria and width.criteria.mean["energy"] == 1.0
    assert width.criteria.mean.keys() == {"energy", "magnitude", "random"}  # nothing went backward
    assert all(0.5 < (energy or 1) <= 1 for block in width.blocks.values() for energy in block.energy or ())
    assert layers.criteria["influence"] == layers.kept == plan.cut(LayersCut).kept and layers.written_answers
    assert {"influence", "angular", "top", "random"} == layers.criteria.keys()  # no loss was measured
    assert json.loads((finished.pruned / "pollard.json").read_text())["plan"] == plan.summary()
    assert facts.headline.startswith("Half the experts, half as wide, 3 of 4 layers")
