"""What a fit has found belongs to what it was asked: after a change, a kill or a loss of files it is found again, and no other
shape is ever taken for the chosen one."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_run import TASK, small_folder, small_recipe

from toolkit.cuts import Plan, shape_of
from toolkit.cuts.fit_result import FitResult
from toolkit.moe import checkpoint_bytes
from toolkit.pipeline import fit_measure
from toolkit.pipeline.context import RunContext
from toolkit.pipeline.fingerprints import fit_fingerprints
from toolkit.pipeline.fit_evidence import FitEvidence
from toolkit.pipeline.fit_trials import ShapeTrials, shorter_training
from toolkit.pipeline.run_directory import RunDirectory
from toolkit.pipeline.runner import FIT_STAGES, plan_stages, run
from toolkit.recipe.schema import Recipe
from toolkit.tasks import DataCache


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with small_folder(tmp_path_factory, "changes") as folder:
        yield folder


def share(of: float) -> int:
    return int(of * checkpoint_bytes("original"))


def recipe_of(name: str, bytes_: int | None = None, **changes: object) -> Recipe:
    fit = {"bytes": bytes_ or share(0.8), "measured": 2, "examples": 6, "cuts": ["experts", "width"]}
    values: dict = {
        "pruning": {"width_multiple": 4, "fit": fit},
        "evaluation": {"examples": 2, "max_new_tokens": 2, "batch_size": 2, "models": ["pruned"]},
    }
    return small_recipe(name=name, **(values | changes))


@pytest.fixture(scope="module")
def finished(folder: Path) -> RunDirectory:
    return run(recipe_of("changes"))


def check_is_the_chosen_one(directory: RunDirectory, recipe: Recipe) -> FitResult:
    """The chosen shape is not the largest one, which stands for it before the choice."""
    result, plan = FitResult.load(directory.fit_result), shape_of(Plan.load(directory.plan))
    context = RunContext(recipe, directory)
    assert not context.is_provisional and result.choice.shape != context.fit_space.largest.shape
    assert (plan.experts or 8, plan.width or 16) == (result.choice.experts, result.choice.width)
    return result


def test_settings_of_later_stages_may_change_and_the_shape_stays(finished: RunDirectory) -> None:
    before = check_is_the_chosen_one(finished, recipe_of("changes"))
    changed = recipe_of("changes", finetuning={"examples": 7})
    assert RunContext(changed, finished).is_provisional  # until the choice is made for these settings
    after = check_is_the_chosen_one(run(changed), changed)
    assert after.choice == before.choice


def test_a_change_of_limits_that_was_stopped_and_taken_back_leaves_no_half_result(finished: RunDirectory) -> None:
    before = FitResult.load(finished.fit_result)
    run(recipe_of("changes", share(0.85)), until=FIT_STAGES[0])
    run(recipe_of("changes"), until=FIT_STAGES[0])  # fit.json lists shapes again, and the entries after it look current
    after = check_is_the_chosen_one(run(recipe_of("changes")), recipe_of("changes"))
    assert after.choice.shape == before.choice.shape and after.axes == before.axes


def test_a_damaged_or_foreign_result_is_made_anew(finished: RunDirectory) -> None:
    before = FitResult.load(finished.fit_result)
    finished.fit_result.write_text(finished.fit_result.read_text()[:-50])
    check_is_the_chosen_one(run(recipe_of("changes")), recipe_of("changes"))
    before.model_copy(update={"fingerprint": "another", "chosen": 0}).save(finished.fit_result)
    after = check_is_the_chosen_one(run(recipe_of("changes")), recipe_of("changes"))
    assert after.choice.shape == before.choice.shape


def test_what_was_observed_may_be_removed(finished: RunDirectory) -> None:
    shutil.rmtree(finished.fit)
    changed = recipe_of("changes", finetuning={"examples": 6})
    check_is_the_chosen_one(run(changed), changed)


def test_everything_anew_measures_every_shape_once(finished: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, real = [], fit_measure.measure_probe

    def measure(*arguments: object) -> object:
        asked.append(arguments)
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(fit_measure, "measure_probe", measure)
    result = check_is_the_chosen_one(run(recipe_of("changes"), fresh=True), recipe_of("changes"))
    assert len(asked) == 1 + sum(record.measured is not None for record in result.shapes)
    assert len(list((finished.fit / "measured").iterdir())) == len(asked)


def test_bytes_are_counted_in_the_dtype_that_is_asked_for(finished: RunDirectory) -> None:
    half = {"width_multiple": 4, "fit": {"bytes": share(0.4), "dtype": "bfloat16", "measured": 2, "examples": 6}}
    half["fit"]["cuts"] = ["experts", "width"]  # type: ignore[index]
    result = FitResult.load(run(recipe_of("changes", pruning=half), until=FIT_STAGES[2]).fit_result)
    measured = [record for record in result.shapes if record.measured]
    assert measured and all(record.bytes == 2 * record.parameters <= share(0.4) for record in measured)


def test_other_data_under_the_same_name_is_asked_about_anew(folder: Path) -> None:
    text, mix = folder / "notes.jsonl", folder / "mix.jsonl"
    lines = (folder / "train.jsonl").read_text().splitlines(keepends=True)
    text.write_text("".join(lines[:20]))
    mix.write_text("".join(lines[20:40]))
    source = {"task": TASK | {"train": "notes.jsonl"}}
    recipe = recipe_of(
        "data",
        calibration={"examples": 8, "batch_size": 4, "data": [source]},
        finetuning={"data": [{"task": TASK | {"train": "mix.jsonl"}}]},
        evaluation={"models": ["pruned", "recovered"]},
    )
    first = fit_fingerprints(recipe, DataCache())
    mix.write_text("".join(lines[21:40]))
    second = fit_fingerprints(recipe, DataCache())
    assert (first.asked, first.measured) == (second.asked, second.measured) and first.choice != second.choice
    text.write_text("".join(lines[1:20]))
    assert second.asked != fit_fingerprints(recipe, DataCache()).asked


def test_the_teacher_is_asked_for_the_trials_and_not_for_what_comes_before(folder: Path) -> None:
    training = {"finetuning": {"teacher": "original"}, "evaluation": {"models": ["pruned", "recovered"]}}
    names = [stage.name for stage in plan_stages(recipe_of("teaching", **training))]
    assert names.index("fit/measure") < names.index("teacher") < names.index("fit/choose")


def test_a_trial_answers_greedily_and_by_itself_whatever_the_run_does(finished: RunDirectory) -> None:
    run(recipe_of("changes"), until=FIT_STAGES[2])
    servers = {"pruned": "http://localhost:1/v1"}
    settings = {
        "models": ["pruned"],
        "max_new_tokens": 2,
        "temperature": 0.7,
        "samples": 3,
        "backend": "server",
        "servers": servers,
    }
    asked: list[RunContext] = []
    context = RunContext(recipe_of("changes", evaluation=settings), finished, run_stages=lambda trial, until: asked.append(trial))
    ShapeTrials(FitEvidence(context)).write(FitResult.load(finished.fit_result).choice.shape)
    own = asked[0].recipe.evaluation
    assert (own.backend, own.temperature, own.samples, own.split, own.max_new_tokens) == ("transformers", 0.0, 1, "dev", 2)


def test_a_tenth_of_the_training_warms_up_for_a_tenth_of_the_steps() -> None:
    training = {"finetuning": {"trainer": {"max_steps": 100, "warmup_steps": 50}}}
    assert shorter_training(small_recipe(**training)) == {"max_steps": 10, "warmup_steps": 5}
    training = {"finetuning": {"trainer": {"num_train_epochs": 2, "warmup_steps": 0.03}}}
    assert shorter_training(small_recipe(**training)) == {"num_train_epochs": 0.2, "warmup_steps": 0.03}
