"""Two real ranks, killed without warning while they train; the same command ends as if nothing had happened."""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from conftest import PLAYGROUND, ROOT, tiny_model
from rank_launcher import RANKS, ranks
from safetensors.torch import load_file

from toolkit.recovery.checkpoints import disk_space_needed, newest_first

TRAINER = {
    "max_steps": 12, "per_device_train_batch_size": 2, "logging_steps": 2, "learning_rate": 1e-3, "eval_strategy": "steps",
    "eval_steps": 4, "save_steps": 3,
}  # fmt: skip
ADAPTED: dict[str, dict] = {
    "lora": {"method": "lora", "lora": {"rank": 4, "router": True}, "zero": 3},
    "qlora": {"method": "qlora", "lora": {"rank": 4}, "zero": 2},
}
OF_THIS_PROCESS = ("per_second", "runtime", "train_loss")  # what the log tells of the clock, or of one process alone


def recipe(root: Path, name: str, trainer: dict | None = None, **finetuning: object) -> dict:
    """16 examples, so that an epoch has 4 steps; the original serves as the pruned model."""
    shutil.copytree(root / "original", root / name / "pruned")
    task = {"name": "playground/arithmetic", "dev_examples": 8}
    finetuning = {"zero": 2, "examples": 16, "trainer": TRAINER | (trainer or {})} | finetuning
    evaluation = {"max_new_tokens": 4}
    model = str(root / "original")
    return {"name": name, "model": model, "task": task, "finetuning": finetuning, "evaluation": evaluation}


def launch(root: Path, recipes: dict) -> subprocess.Popen[str]:
    (root / "recipes.json").write_text(json.dumps(recipes))
    command = ranks(RANKS, str(ROOT / "tests" / "recovery" / "resumed.py"), str(root), "recipes.json")
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`killed` is killed at a random moment after its fifth step and started again, adapters are given up after their fifth;
    then the others run undisturbed."""
    root = tmp_path_factory.mktemp("resume")
    tiny_model("mixtral", vocab_size=768, eos_token_id=1).save_pretrained(root / "original")
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(PLAYGROUND / "model" / file, root / "original")
    killed = recipe(root, "killed")
    short = {"max_steps": 6, "eval_strategy": "no"}
    given_up = {name: recipe(root, name, short, **how) for name, how in ADAPTED.items()}
    process = launch(root, {name: values | {"stop_at": 5} for name, values in given_up.items()} | {"killed": killed})
    assert process.stdout
    for line in process.stdout:
        if "step     4/12" in line:
            time.sleep(random.uniform(0, 1))
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    best = {"learning_rate": 0.3, "eval_steps": 1, "save_steps": 1, "max_steps": 8, "lr_scheduler_type": "constant"}
    together = {"max_steps": 4, "save_strategy": "no", "eval_strategy": "no"}
    recipes = {
        "killed": killed,
        **given_up,
        **{f"{name}-undisturbed": recipe(root, f"{name}-undisturbed", short, **how) for name, how in ADAPTED.items()},
        "undisturbed": recipe(root, "undisturbed"),
        "best": recipe(root, "best", best, select_by="dev_loss", early_stopping=2),
        "answers": recipe(root, "answers", {"max_steps": 2, "eval_steps": 1, "save_steps": 1}, select_by="dev_accuracy"),
        "at_once": recipe(root, "at_once", together | {"per_device_train_batch_size": 4}),
        "accumulated": recipe(root, "accumulated", together | {"gradient_accumulation_steps": 2}),
        "broken": recipe(root, "broken", {"learning_rate": 1e30, "save_steps": 1, "warmup_steps": 2}),
    }
    process = launch(root, recipes)
    output, _ = process.communicate(timeout=540)
    assert process.returncode == 0, output[-4000:]
    (root / "output").write_text(output)
    return root


def facts(root: Path, name: str) -> dict:
    return json.loads((root / name / "facts.json").read_text())


def log_of(root: Path, name: str) -> list[dict]:
    lines = [json.loads(line) for line in (root / name / "training_log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not any(part in key for part in OF_THIS_PROCESS)} for line in lines]


def weights(root: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(root / name / "recovered" / "model.safetensors")


@pytest.mark.launcher
def test_a_killed_training_ends_bit_for_bit_as_an_undisturbed_one(root: Path) -> None:
    assert "going on from" in (root / "output").read_text()
    killed, undisturbed = weights(root, "killed"), weights(root, "undisturbed")
    assert all(torch.equal(killed[key], undisturbed[key]) for key in undisturbed)
    assert log_of(root, "killed") == log_of(root, "undisturbed")


@pytest.mark.launcher
@pytest.mark.parametrize("name", ADAPTED)
def test_adapters_that_were_given_up_end_bit_for_bit_as_undisturbed_ones(root: Path, name: str) -> None:
    assert f"going on from {root}/{name}/checkpoints/recovered/checkpoint-3" in (root / "output").read_text()
    for found in ("recovered/model.safetensors", "adapter/adapter_model.safetensors"):
        assert (root / name / found).read_bytes() == (root / f"{name}-undisturbed" / found).read_bytes()
    assert log_of(root, name) == log_of(root, f"{name}-undisturbed")


@pytest.mark.launcher
def test_a_log_precedes_every_save_and_tells_what_it_costs_and_where_tokens_go(root: Path) -> None:
    lines = [json.loads(line) for line in (root / "undisturbed" / "training_log.jsonl").read_text().splitlines()]
    logged = [line for line in lines if "loss" in line]
    assert [line["step"] for line in logged] == [2, 3, 4, 6, 8, 9, 10, 12]  # every second step, and saves at every third
    assert all(line["tokens_per_second"] > 0 for line in logged)
    for line in logged:
        blocks = [value for key, value in line.items() if key.startswith("routing_entropy/model.layers.")]
        assert len(blocks) == (2 if line["step"] % 2 == 0 else 0)  # counted at the regular steps only
        assert all(0 < bits <= 3 for bits in blocks)
        if blocks:
            assert line["routing_entropy_min"] == min(blocks) <= line["routing_entropy_mean"] <= max(blocks)
    assert "routing entropy" in (root / "output").read_text()


@pytest.mark.launcher
def test_the_result_is_the_checkpoint_that_was_best_on_the_dev_slice(root: Path) -> None:
    losses = {line["step"]: line["eval_loss"] for line in log_of(root, "best") if "eval_loss" in line}
    best = min(losses, key=lambda step: losses[step])
    found = facts(root, "best")
    assert found["selected_step"] == best < found["steps"]  # a rate this high does not end at its best
    kept = [path.name for path in newest_first(root / "best" / "checkpoints" / "recovered")]
    assert kept == [f"checkpoint-{found['steps']}", f"checkpoint-{best}"]


@pytest.mark.launcher
def test_two_measurements_in_a_row_without_a_better_one_stop_the_training(root: Path) -> None:
    losses = [line["eval_loss"] for line in log_of(root, "best") if "eval_loss" in line]
    waited, stop = 0, len(losses)
    for step, loss in enumerate(losses, start=1):
        waited = 0 if loss == min(losses[:step]) else waited + 1
        stop = min(stop, step) if waited == 2 else stop
    assert facts(root, "best")["steps"] == len(losses) == stop < 8


@pytest.mark.launcher
def test_dev_accuracy_is_measured_at_every_save(root: Path) -> None:
    found = [line["eval_accuracy"] for line in log_of(root, "answers") if "eval_loss" in line]
    assert len(found) == 2 and all(0 <= accuracy <= 1 for accuracy in found)
    assert (root / "output").read_text().count("dev accuracy") == 2


@pytest.mark.launcher
def test_accumulated_gradients_are_those_of_one_batch(root: Path) -> None:
    once, twice = weights(root, "at_once"), weights(root, "accumulated")
    assert max((once[key] - twice[key]).abs().max().item() for key in once) <= 1e-6  # a step moves a weight by 1e-3
    losses = [[line["loss"] for line in log_of(root, name) if "loss" in line] for name in ("at_once", "accumulated")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.launcher
def test_a_loss_that_is_no_number_stops_and_keeps_the_last_checkpoint(root: Path) -> None:
    said = facts(root, "broken")["error"]
    newest = newest_first(root / "broken" / "checkpoints" / "recovered")[0]
    assert f"became nan at step {int(newest.name.partition('-')[2]) + 1} of 12: training stops." in said
    assert f"The last checkpoint is {newest}" in said and "finetuning.trainer.learning_rate=" in said
    assert not (root / "broken" / "recovered").exists()


@pytest.mark.launcher
def test_checkpoints_are_as_large_as_was_checked_for(root: Path) -> None:
    newest = newest_first(root / "undisturbed" / "checkpoints" / "recovered")[0]
    written = sum(path.stat().st_size for path in newest.rglob("*") if path.is_file())
    expected = disk_space_needed(tiny_model("mixtral", vocab_size=768, eos_token_id=1), "adamw_torch", 2).each
    assert expected <= written <= expected + 150_000  # scripts, random states and the log, whatever the model
