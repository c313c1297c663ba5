"""What a fit takes, before anything runs: the sum of its stages and passes, and at most so much."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import SMALL
from planned_recipe import recipe_of

from toolkit.cli.estimate_table import show_estimate
from toolkit.estimate import Estimate, StageEstimate, resolve_machine
from toolkit.pipeline.advice import advise
from toolkit.pipeline.estimator import Estimator
from toolkit.recipe.schema import Recipe

MODELS = ["original", "pruned", "recovered"]


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A folder with nothing but a configuration of three layers."""
    (tmp_path / "config.json").write_text(
        json.dumps({**SMALL, "model_type": "mixtral", "num_hidden_layers": 3, "dtype": "bfloat16"})
    )
    return str(tmp_path)


def recipe_for(model: str, fit: dict[str, Any] | None = None, **pruning: Any) -> Recipe:
    limits = {"parameters": 40_000, "examples": 100, "measured": 4} | (fit or {})
    return recipe_of(model, pruning={"fit": limits, "width_multiple": 4, **pruning}, evaluation={"models": MODELS})


def estimated(recipe: Recipe, **there: Any) -> tuple[Estimate, dict[str, StageEstimate]]:
    machine = {"gpus": 8, "gpu": "h100", "cpu_memory": "1T"} | there
    found = Estimator(resolve_machine(**machine)).estimate(recipe)
    return found, {stage.name: stage for stage in found.stages}


def test_scores_are_a_calibration_the_order_of_layers_and_a_pass_for_every_value(model: str) -> None:
    found, stages = estimated(recipe_for(model, layer_criterion="influence"))
    plain = {"keep": None, "layers": 1, "layer_criterion": "influence"}
    machine = Estimator(resolve_machine(8, gpu="h100", cpu_memory="1T"))
    observed = {stage.name: stage for stage in machine.estimate(recipe_of(model, pruning=plain)).stages}["layers"]
    values = (3 - 1) + (8 - 1) + (4 - 1)  # of layers, experts and channels in steps of 4, without the original's
    passes = 2.0 * found.active[0] * 100 * 1024 * (1 + values)
    assert stages["fit/scores"].flops == pytest.approx(2 * observed.flops + passes)  # type: ignore[operator]
    assert f"{1 + values} passes over 100 dev examples" in stages["fit/scores"].work
    by_loss = estimated(recipe_for(model, layer_criterion="dev_loss"))[1]["fit/scores"]
    turns = 1 + 3 + 2  # with all three layers, without each, and of the two that are left without each
    whole = 2.0 * found.active[0] * 500 * 1024 * turns  # as many dev examples as are calibrated on, at most the slice
    assert by_loss.flops - stages["fit/scores"].flops == pytest.approx(whole - observed.flops, rel=0.3)  # type: ignore[operator]


def test_shapes_are_asked_as_often_as_there_are(model: str) -> None:
    few, many = (estimated(recipe_for(model, {"measured": number}))[1]["fit/measure"] for number in (1, 9))
    assert many.flops / few.flops == pytest.approx((1 + 9 + 3) / (1 + 1 + 3))  # type: ignore[operator]
    assert (many.gpu, many.disk, few.disk) == (few.gpu, 0, 0)


def test_shapes_that_are_refit_are_written_and_a_trial_is_a_tenth_of_the_training(model: str) -> None:
    masked = estimated(recipe_for(model))[1]
    refit = estimated(recipe_for(model, {"refit": True}))[1]
    once = [refit[name] for name in ("calibrate", "prune", "refit")]
    assert refit["fit/measure"].disk == 4 * sum(stage.disk for stage in once)  # the best three, and the one at work
    assert refit["fit/measure"].flops > 7 * sum(stage.flops for stage in once)  # type: ignore[misc]
    own = masked["fit/choose"].flops - 3 * masked["calibrate"].flops  # type: ignore[operator]
    assert own / masked["recover"].flops == pytest.approx(3 / 10, rel=0.2)
    assert masked["fit/choose"].gpu_bytes >= masked["recover"].gpu_bytes
    untrained = recipe_for(model).model_copy(
        update={"evaluation": recipe_of(model).evaluation.model_copy(update={"models": ["pruned"]})}
    )
    assert estimated(untrained)[1]["fit/choose"].flops == 0


def test_until_the_choice_numbers_are_at_most(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    estimator, recipe = Estimator(resolve_machine(8, gpu="h100")), recipe_for(model)
    found = estimator.estimate(recipe)
    assert found.at_most and found.parameters[1] == estimator.context(recipe).fit_space.largest.size.parameters
    show_estimate(found, advise(estimator, recipe, found))
    shown = capsys.readouterr().out
    assert "-> at most" in shown and "no shape is chosen yet" in shown
    assert not estimator.estimate(recipe_of(model, pruning={"keep": 4})).at_most


# A shape is no key of such a recipe: what is recommended is a smaller limit.
def test_advice_is_a_smaller_limit_and_no_number_of_experts(model: str) -> None:
    values = {**SMALL, "model_type": "mixtral", "num_hidden_layers": 3, "dtype": "bfloat16", "hidden_size": 2048}
    Path(model, "config.json").write_text(json.dumps(values | {"intermediate_size": 8192, "vocab_size": 512}))
    recipe = recipe_for(model, {"parameters": "1.1B", "cuts": ["experts", "layers"]}, layer_criterion="influence")
    machine = resolve_machine(1, gpu_memory="2G", cpu_memory="64G")
    estimator = Estimator(machine)
    found = estimator.estimate(recipe)
    assert "evaluate/pruned" in found.lacking
    given = [str(each) for changes in advise(estimator, recipe, found).per_stage.values() for each in changes]
    assert any(change.startswith("pruning.fit.parameters=0.") for change in given)
    assert not any(key in change for change in given for key in ("keep=", "width=", "layers="))
