"""Whole runs with the seam loss: what is asked of the original when, what is done again, what the control is spared."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import raises, tiny_model
from small_run import small_folder, small_recipe

from toolkit.estimate import resolve_machine
from toolkit.moe import load_tokenizer
from toolkit.pipeline.checks import check
from toolkit.pipeline.context import RunContext
from toolkit.pipeline.run_directory import RunDirectory
from toolkit.pipeline.runner import run
from toolkit.pipeline.stages.teacher import Teacher
from toolkit.recipe.roles import Role
from toolkit.recipe.schema import Recipe
from toolkit.recovery.teacher import predicted_tokens
from toolkit.recovery.training_data import read_training_data

TRAINER = {"max_steps": 2, "per_device_train_batch_size": 2, "eval_strategy": "no", "logging_steps": 1, "warmup_steps": 0}
GAP = {"keep": 4, "layers": [0, 3]}  # of 5: two seams, the second at the end
HIDDEN = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with small_folder(tmp_path_factory, "seams") as folder:
        tiny_model("mixtral", vocab_size=768, eos_token_id=1, num_hidden_layers=5).save_pretrained(folder / "original")
        yield folder


def recipe_of(name: str, hidden: float = 0.2, pruning: dict | None = None, **changes: object) -> Recipe:
    learning = {"zero": 0, "examples": 8, "trainer": TRAINER, "teacher": "original", "distillation": {"hidden": hidden}}
    evaluation = {"models": ["recovered"], "examples": 2, "max_new_tokens": 2, "batch_size": 2}
    return small_recipe(name=name, pruning=pruning or GAP, finetuning=learning, evaluation=evaluation, **changes)


@pytest.fixture(scope="module")
def finished(folder: Path) -> RunDirectory:
    return run(recipe_of("seams", control=True), until="control")


def log_of(file: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return [{key: line[key] for key in ("loss", "cross_entropy", "divergence", "seam") if key in line} for line in lines]


def test_the_teacher_is_asked_once_it_is_known_which_layers_stay(finished: RunDirectory) -> None:
    stages = [*finished.read_manifest()["stages"]]
    assert stages.index("select") < stages.index("teacher") < stages.index("recover")
    assert json.loads((finished.teacher / "about.json").read_text())["hidden"] == {"seams": [3, 5], "size": HIDDEN}
    assert finished.read_manifest()["stages"]["teacher"]["bytes_per_token"] == 388 + 2 * 2 * HIDDEN


# The law "no gap: nothing": the control has all layers, and learns what it learns without the seam loss
def test_the_control_learns_bit_for_bit_what_it_learns_without(finished: RunDirectory) -> None:
    without = run(recipe_of("without", hidden=0, control=True), until="control")
    assert log_of(finished.control_log) == log_of(without.control_log)
    assert all("seam" in line for line in log_of(finished.training_log) if "loss" in line)
    assert (finished.control / "model.safetensors").read_bytes() == (without.control / "model.safetensors").read_bytes()
    assert (finished.recovered / "model.safetensors").read_bytes() != (without.recovered / "model.safetensors").read_bytes()
    about = json.loads((without.teacher / "about.json").read_text())
    assert "hidden" not in about and about["examples_per_file"] == 256


def test_another_weight_asks_nobody_again_and_other_layers_do(finished: RunDirectory) -> None:
    def fingerprint(recipe: Recipe) -> str:
        return Teacher(RunContext(recipe)).fingerprint()

    first = fingerprint(recipe_of("seams"))
    assert first == fingerprint(recipe_of("seams", hidden=0.7)) == fingerprint(recipe_of("seams", pruning=GAP | {"keep": 2}))
    assert first != fingerprint(recipe_of("seams", pruning=GAP | {"layers": [0, 2]}))
    plain = fingerprint(recipe_of("seams", hidden=0))
    assert plain != first and plain == fingerprint(recipe_of("seams", hidden=0, pruning=GAP | {"layers": [0, 2]}))


def test_a_dense_student_that_was_refit_learns_by_it_too(folder: Path) -> None:
    pruning = GAP | {"form": "dense", "refit": True}
    done = run(recipe_of("dense", pruning=pruning, calibration={"examples": 40, "batch_size": 4}), until="recover")
    assert json.loads((done.recovered / "config.json").read_text())["model_type"] == "mistral"
    assert all(line["seam"] > 0 for line in log_of(done.training_log) if "loss" in line)


def test_a_list_of_all_layers_is_refused_before_anything_runs(folder: Path) -> None:
    with raises("seams.no-gap", "finetuning.distillation.hidden", "[0, 1, 2, 3, 4]"):
        check(RunContext(recipe_of("all", pruning=GAP | {"layers": [0, 1, 2, 3, 4]})))
    check(RunContext(recipe_of("all", hidden=0, pruning=GAP | {"layers": [0, 1, 2, 3, 4]})))


def test_the_estimate_counts_the_states_at_every_seam(folder: Path) -> None:
    machine = resolve_machine(gpus=1, gpu="h100", cpu_memory="1T")
    recipe = recipe_of("estimated")
    everything = recipe.model_copy(update={"finetuning": recipe.finetuning.model_copy(update={"examples": None})})
    learned = read_training_data(everything, load_tokenizer("original"), folder)
    tokens = sum(map(predicted_tokens, learned.encoded))
    assert Teacher(RunContext(everything)).estimate(machine).disk == tokens * (388 + 2 * 2 * HIDDEN)
    number = everything.model_copy(update={"pruning": everything.pruning.model_copy(update={"layers": 3})})
    assert Teacher(RunContext(number)).estimate(machine).disk == tokens * (388 + 2 * 2 * HIDDEN)  # two gone: two gaps at most


def test_another_weight_of_the_seams_leaves_the_control_as_it_is(folder: Path) -> None:
    one, other = (RunContext(recipe_of("seams", hidden, control=True)).fingerprints.models for hidden in (0.1, 0.2))
    assert {role for role in one if one[role] != other[role]} == {Role.RECOVERED}
