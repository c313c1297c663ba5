"""A run that finds its shape: within the limit to the last byte, the same whoever asks, and never measured twice."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import raises, tiny_model
from safetensors.torch import load_file
from small_run import small_folder, small_recipe

from toolkit.cuts import Plan, apply_plan, shape_of
from toolkit.cuts.fit_result import FitResult, FitShape
from toolkit.cuts.shape import shape_size
from toolkit.evaluation import completion_loss
from toolkit.moe import checkpoint_bytes, load_model
from toolkit.pipeline import fit_measure
from toolkit.pipeline.context import RunContext
from toolkit.pipeline.fit_evidence import FitEvidence
from toolkit.pipeline.fit_measure import ShapeMeasurements
from toolkit.pipeline.fit_trials import ShapeTrials
from toolkit.pipeline.run_directory import RunDirectory
from toolkit.pipeline.runner import FIT_STAGES, run
from toolkit.recipe.file import load_recipe
from toolkit.recipe.schema import Recipe

TRAINER = {"max_steps": 10, "per_device_train_batch_size": 2, "eval_strategy": "no", "learning_rate": 1e-3}
CUTS = ["experts", "width", "layers"]
INFINITE = float("inf")  # the rate of a training that cannot end well


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working folder: a model of three layers, experts of 16 channels, and an embedding that is not most of it."""
    with small_folder(tmp_path_factory, "fit") as folder:
        model = tiny_model("mixtral", vocab_size=768, eos_token_id=1, num_hidden_layers=3)
        model.save_pretrained(folder / "original")
        yield folder


def recipe_of(name: str, fit: dict | None = None, pruning: dict | None = None, **changes: object) -> Recipe:
    values: dict = {
        "finetuning": {"zero": 0, "examples": 8, "select_by": "last", "trainer": TRAINER},
        "evaluation": {"examples": 2, "max_new_tokens": 2, "off_task": False, "batch_size": 2, "models": ["pruned", "recovered"]},
        "pruning": {"width_multiple": 4, "fit": {"bytes": share(0.75), "measured": 2, "examples": 6} | (fit or {})},
    }
    return small_recipe(name=name, **(values | ({"pruning": pruning} if pruning else {}) | changes))


def share(of: float) -> int:
    return int(of * checkpoint_bytes("original"))


@pytest.fixture(scope="module")
def finished(folder: Path) -> RunDirectory:
    return run(recipe_of("found"))


@pytest.fixture(scope="module")
def result(finished: RunDirectory) -> FitResult:
    return FitResult.load(finished.fit_result)


def test_the_chosen_shape_is_what_is_written_and_its_bytes_are_those_on_disk(finished: RunDirectory, result: FitResult) -> None:
    chosen, plan = result.choice, shape_of(Plan.load(finished.plan))
    layers = len(plan.layers) if plan.layers else result.original.layers
    assert (layers, plan.experts or 8, plan.width or 16) == (chosen.layers, chosen.experts, chosen.width)
    assert checkpoint_bytes(finished.pruned) == chosen.bytes <= share(0.75)
    size = shape_size(load_model(str(finished.pruned)))
    assert (size.parameters, size.active_parameters) == (chosen.parameters, chosen.active_parameters)
    assert plan.layers is None or list(plan.layers) == result.kept_layers[chosen.layers]


def test_no_shape_is_above_the_limit_and_every_cut_alone_is_measured(result: FitResult) -> None:
    assert len(result.shapes) > 5
    assert all(shape.bytes <= share(0.75) or shape.refused for shape in result.shapes)
    assert {shape.single_cut for shape in result.shapes if shape.measured} >= {"experts", "width", "layers"}
    assert [axis.cut for axis in result.axes] == ["layers", "experts", "width"]
    assert all(shape.predicted is not None for shape in result.shapes)


def test_a_shape_is_measured_as_if_it_were_cut(finished: RunDirectory, result: FitResult, folder: Path) -> None:
    context = RunContext(recipe_of("found"), finished)
    evidence = FitEvidence(context)
    batches = ShapeMeasurements(evidence, "").probe.batches
    model = load_model("original")
    before = completion_loss(model, batches).mean
    record = next(shape for shape in result.shapes if shape.measured and shape.single_cut is None)
    assert record.measured and record.measured.loss is not None
    cut = apply_plan(model, evidence.plans.plan(record.shape))
    assert completion_loss(cut, batches).mean - before == pytest.approx(record.measured.loss, abs=1e-5)


def test_the_best_are_tried_and_the_run_is_that_of_a_recipe_with_the_numbers(finished: RunDirectory, result: FitResult) -> None:
    tried = [shape for shape in result.shapes if shape.trial]
    assert len(tried) == 3 and result.choice in tried and "dev questions right after 1 steps" in result.reason
    chosen = result.choice
    numbers = {
        "keep": chosen.experts,
        "width_multiple": 4,
        "width": chosen.width,
        "layers": result.kept_layers[chosen.layers],
    }
    by_hand = run(recipe_of("by-hand", pruning=numbers), until="prune")
    ours, theirs = (load_file(each.pruned / "model.safetensors") for each in (finished, by_hand))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_recipe_that_lies_there_is_the_one_that_was_given(finished: RunDirectory) -> None:
    assert load_recipe(finished.recipe) == recipe_of("found")
    context = RunContext(load_recipe(finished.recipe), finished)
    assert context.recipe.pruning.fit is None and context.budget.keep == FitResult.load(finished.fit_result).choice.experts


def test_a_second_run_does_nothing_and_the_same_seed_finds_the_same(
    finished: RunDirectory, result: FitResult, capsys: pytest.CaptureFixture[str]
) -> None:
    run(recipe_of("found"))
    out = capsys.readouterr().out
    assert out.count("done already, skipped") == len(finished.done())
    again = FitResult.load(run(recipe_of("again"), until=FIT_STAGES[2]).fit_result)
    without = {"seconds", "trial"}
    assert [_facts(shape, without) for shape in again.shapes] == [_facts(shape, without) for shape in result.shapes]


def _facts(shape: object, without: set[str]) -> dict:
    facts = shape.model_dump(exclude=without)  # type: ignore[attr-defined]
    if facts["measured"]:
        del facts["measured"]["seconds"]
    return facts


def test_another_limit_uses_what_was_measured(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = run(recipe_of("limits", {"cuts": ["experts", "width"]}), until=FIT_STAGES[2])
    capsys.readouterr()
    second = run(recipe_of("limits", {"cuts": ["experts", "width"], "bytes": share(0.7)}), until=FIT_STAGES[2])
    out = capsys.readouterr().out
    assert "calibrate            done already" in out and "losses are measured" not in out
    assert FitResult.load(second.fit_result).choice.bytes <= share(0.7)
    assert first.path == second.path


def test_killed_while_it_measures_a_fit_goes_on_and_ends_as_if_undisturbed(
    result: FitResult, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked, real = [], fit_measure.measure_probe

    def measure(*arguments: object) -> object:
        asked.append(arguments)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(fit_measure, "measure_probe", measure)
    with pytest.raises(KeyboardInterrupt):
        run(recipe_of("killed"), until=FIT_STAGES[2])
    interrupted = len(asked)
    resumed = FitResult.load(run(recipe_of("killed"), until=FIT_STAGES[2]).fit_result)
    assert "2 of" in capsys.readouterr().out
    measured = sum(shape.measured is not None for shape in resumed.shapes)
    assert len(asked) == interrupted + 1 + measured - 2  # the original's and one shape's are not asked again
    assert [_facts(shape, {"trial"}) for shape in resumed.shapes] == [_facts(shape, {"trial"}) for shape in result.shapes]


def test_dense_and_refitted_shapes_are_written_and_their_bytes_are_exact(folder: Path) -> None:
    fit = {"cuts": ["experts", "dense"], "refit": {"examples": 12}, "measured": 1, "metric": "accuracy"}
    recipe = recipe_of("dense", fit, calibration={"examples": 12, "batch_size": 4})
    found = FitResult.load(run(recipe, until=FIT_STAGES[2]).fit_result)
    measured = [shape for shape in found.shapes if shape.measured]
    assert {shape.form for shape in measured} == {"moe", "dense"}
    assert all(shape.measured and shape.measured.refit for shape in measured)
    trials = RunDirectory("dense").fit / "trials"
    for shape in measured:
        assert checkpoint_bytes(trials / fit_measure.name_of(shape.shape) / "pruned") == shape.bytes <= share(0.75)


@pytest.mark.parametrize(
    ("limits", "code", "named"),
    [
        ({"bytes": 1000}, "fit.limit-too-small", "1 layer × 1 expert × 4 channels"),
        ({"bytes": "1G"}, "fit.nothing-to-cut", "there is nothing to cut"),
        ({"bytes": 1000, "cuts": ["width"]}, "fit.limit-too-small", "3 layers × 8 experts × 4 channels"),
    ],
)
def test_limits_that_no_shape_or_every_shape_meets_are_refused_before_anything_runs(
    folder: Path, limits: dict, code: str, named: str
) -> None:
    with raises(code, named):
        run(recipe_of("refused", limits))
    assert not RunDirectory("refused").path.exists()


def test_a_shape_whose_fine_tuning_diverges_is_refused_and_the_others_decide(
    finished: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished.path, finished.path.with_name("diverges"))
    before = FitResult.load(finished.fit_result)
    best = min((shape for shape in before.shapes if shape.trial), key=lambda shape: shape.measured.loss)  # type: ignore[union-attr]
    too_fast = {"zero": 0, "examples": 8, "select_by": "last", "trainer": TRAINER | {"learning_rate": 2e-3}}
    real = ShapeTrials.recover

    def recover(trials: ShapeTrials, shape: FitShape) -> object:
        if shape == best.shape:
            trials.recipe = with_rate(trials.recipe, INFINITE)
        try:
            return real(trials, shape)
        finally:
            trials.recipe = with_rate(trials.recipe, 2e-3)

    monkeypatch.setattr(ShapeTrials, "recover", recover)
    directory = run(recipe_of("diverges", finetuning=too_fast), until=FIT_STAGES[-1])
    result = FitResult.load(directory.fit_result)
    refused = [shape for shape in result.shapes if shape.measured and shape.refused]
    assert [shape.shape for shape in refused] == [best.shape]
    assert result.choice.shape != best.shape and result.choice.trial

    monkeypatch.setattr(ShapeTrials, "recover", lambda trials, shape: real(with_recipe(trials, INFINITE), shape))
    with raises("fit.no-finite-trial"):
        run(recipe_of("diverges", finetuning=too_fast | {"examples": 7}), until=FIT_STAGES[-1])
    monkeypatch.setattr(ShapeTrials, "recover", real)
    result = FitResult.load(run(recipe_of("diverges", finetuning=too_fast | {"examples": 6}), until=FIT_STAGES[-1]).fit_result)
    assert result.choice.trial and not [shape for shape in result.shapes if shape.measured and shape.refused]


def with_rate(recipe: Recipe, rate: float) -> Recipe:
    trainer = recipe.finetuning.trainer | {"learning_rate": rate}
    return recipe.model_copy(update={"finetuning": recipe.finetuning.model_copy(update={"trainer": trainer})})


def with_recipe(trials: ShapeTrials, rate: float) -> ShapeTrials:
    trials.recipe = with_rate(trials.recipe, rate)
    return trials
