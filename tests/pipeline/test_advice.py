"""What is advised where a recipe does not fit: changes that make it fit, the gentlest first."""

import re
from pathlib import Path
from typing import Any

import pytest
from conftest import PLAYGROUND
from planned_recipe import config_folder, recipe_of

from toolkit.cli.estimate_table import verdict
from toolkit.estimate import Estimate, Machine, resolve_machine
from toolkit.pipeline.advice import Advice, advise
from toolkit.pipeline.estimator import Estimator
from toolkit.pipeline.relief import change
from toolkit.recipe.refit import RefitRecipe
from toolkit.recipe.schema import Recipe

PLAYGROUND_MODEL = str(PLAYGROUND / "model")


@pytest.fixture
def config_only(tmp_path: Path) -> str:
    return config_folder(tmp_path)


def advised(recipe: Recipe, machine: Machine) -> tuple[Estimate, Advice]:
    estimator = Estimator(machine)
    estimate = estimator.estimate(recipe)
    return estimate, advise(estimator, recipe, estimate)


TOO_SMALL = {"gpus": 1, "gpu_memory": "1M", "cpu_memory": "1M"}


def test_a_control_that_does_not_fit_is_advised_against(config_only: str) -> None:
    _, advice = advised(recipe_of(config_only, control=True), resolve_machine(**TOO_SMALL))
    assert advice.per_stage["control"] == [change("control", False)]
    assert str(advice.per_stage["control"][0]) == "control=false"


def test_what_does_not_fit_comes_with_changes_that_make_it_fit() -> None:
    trainer = {"per_device_train_batch_size": 16}
    recipe = recipe_of(
        PLAYGROUND_MODEL, task="playground/sorting", pruning={"keep": 7}, finetuning={"zero": 0, "trainer": trainer}
    )
    machine = resolve_machine(gpus=4, gpu_memory="80M", cpu_memory="64G")
    estimate, advice = advised(recipe, machine)
    assert estimate.lacking["recover"] == ["GPU"]
    assert advice.per_stage["recover"]
    for remedy in advice.per_stage["recover"]:
        assert "recover" not in Estimator(machine).estimate(remedy.applied_to(recipe)).lacking


def test_where_nothing_helps_nothing_is_advised(config_only: str) -> None:
    estimate, advice = advised(recipe_of(config_only), resolve_machine(**TOO_SMALL))
    assert {"recover", "calibrate"} <= estimate.lacking.keys()
    assert advice.per_stage["recover"] == []


def test_where_even_one_example_does_not_fit_fidelity_is_left_out(config_only: str) -> None:
    machine = resolve_machine(gpus=1, gpu_memory="0.01M", cpu_memory="1G")
    _, advice = advised(recipe_of(config_only, evaluation={"fidelity": 8}), machine)
    assert advice.per_stage["fidelity/original"] == [change("evaluation.fidelity", None)]


def on_playground(machine: Machine, **sections: Any) -> tuple[Estimate, Advice, list[str]]:
    """The estimate of a recipe of the playground, what is advised, and the last lines that are printed."""
    estimate, advice = advised(recipe_of(PLAYGROUND_MODEL, task="playground/sorting", **sections), machine)
    return estimate, advice, verdict(estimate, advice)


def test_a_model_too_large_for_the_machine_can_be_answered_by_a_server_elsewhere() -> None:
    # the pruned model fits nowhere here: neither on the GPU nor on the host
    machine = resolve_machine(gpus=1, gpu_memory="7M", cpu_memory="7M")
    recipe = recipe_of(PLAYGROUND_MODEL, task="playground/sorting", evaluation={"off_task": False, "models": ["pruned"]})
    estimate, advice = advised(recipe, machine)
    assert estimate.lacking["evaluate/pruned"]
    (remedy,) = advice.per_stage["evaluate/pruned"]
    assert remedy.overrides == {
        "evaluation.backend": "server", "evaluation.servers.pruned": "http://SERVER:8000/v1",
    }  # fmt: skip
    served = next(
        stage for stage in Estimator(machine).estimate(remedy.applied_to(recipe)).stages if stage.name == "evaluate/pruned"
    )
    assert (served.gpu_bytes, served.host_bytes, served.flops) == (0, 0, 0)
    assert served.work.endswith("answered by http://SERVER:8000/v1")


def test_the_last_line_changes_the_whole_recipe_so_that_it_fits() -> None:
    trainer = {"per_device_train_batch_size": 16}
    sections = {"pruning": {"keep": 7}, "finetuning": {"zero": 0, "trainer": trainer}, "evaluation": {"batch_size": 256}}
    machine = resolve_machine(gpus=4, gpu_memory="60M", cpu_memory="64G")
    estimate, advice, lines = on_playground(machine, **sections)
    assert len(estimate.lacking) > 1 and not advice.estimate.lacking
    assert lines[-1].startswith("does not fit: ") and lines[-1].endswith(f"Change: {advice.combined}")
    recipe = advice.combined.applied_to(recipe_of(PLAYGROUND_MODEL, task="playground/sorting", **sections))
    assert not Estimator(machine).estimate(recipe).lacking
    assert len(advice.combined.overrides) > 1  # one of them alone leaves another stage that does not fit


def test_where_changes_do_not_suffice_what_is_lacking_is_told() -> None:
    machine = resolve_machine(gpus=1, gpu_memory="7M", cpu_memory="64G")
    estimate, advice, lines = on_playground(machine, evaluation={"models": ["pruned"]})
    still_lacking = advice.estimate.lacking
    assert still_lacking and still_lacking.keys() < estimate.lacking.keys()
    assert f"Change: {advice.combined}; that does not suffice: " in lines[-1]
    for stage in advice.estimate.stages:
        assert (f"{stage.name} lacks " in lines[-1]) == (stage.name in still_lacking)
    assert re.search(r"calibrate lacks \d\.\d MiB of GPU memory \(\d\.\d MiB of 6\.4 MiB usable\)", lines[-1])


def test_where_no_change_helps_it_is_told_by_how_much(config_only: str) -> None:
    machine = resolve_machine(gpus=1, gpu_memory="0.1M", cpu_memory="0.1M")
    served = {"backend": "server", "servers": {"pruned": "http://localhost:8000/v1"}}
    _, advice, lines = on_playground(machine, evaluation={"models": ["pruned"], **served})
    assert not advice.combined and "No change of the recipe suffices: calibrate lacks " in lines[-1]
    assert " MiB of host memory (" in lines[-1]


def test_a_key_of_a_section_that_is_said_in_short_can_be_changed() -> None:
    recipe = recipe_of(PLAYGROUND_MODEL, task="playground/sorting", pruning={"keep": 4, "refit": True})
    changed = change("pruning.refit.examples", 64).applied_to(recipe)
    assert changed.pruning.refit == RefitRecipe(examples=64) and changed.evaluation == recipe.evaluation
    without = (change("pruning.refit", False) | change("evaluation.models", ["pruned"])).applied_to(recipe)
    assert without.pruning.refit is False
