"""Law: cross entropy as a loss of one's own is the training without it, on one rank and on two, accumulated, packed and
partitioned; and what such a function does wrong is one message."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PLAYGROUND, ROOT, raises, tiny_model
from rank_launcher import RANKS, ranks
from safetensors.torch import load_file

from toolkit.pipeline.training_fingerprints import Teaching, training_settings
from toolkit.recipe.schema import Recipe
from toolkit.recovery.own_loss import OwnLoss
from toolkit.recovery.settings import finetuning_checks, sft_config
from toolkit.runtime.errors import PollardError
from toolkit.tasks import DataCache

LOSSES = """
import torch
from torch.nn.functional import cross_entropy

def cross(logits, targets):
    assert logits.dtype == torch.float32 and logits.shape[:1] == targets.shape, (logits, targets)
    return cross_entropy(logits, targets, reduction="none")

def half(logits, targets):
    return cross(logits, targets) / 2

def mean(logits, targets):
    return cross_entropy(logits, targets)

def without_gradient(logits, targets):
    return cross(logits.detach(), targets)

def fails(logits, targets):
    raise ZeroDivisionError("no tokens")

def text(logits, targets):
    return "0.5"

def labels(outputs, labels, num_items_in_batch):
    return outputs.loss
"""
TRAINER = {
    "max_steps": 3, "logging_steps": 1, "learning_rate": 1e-2, "eval_strategy": "steps", "eval_steps": 3, "warmup_steps": 0,
    "save_strategy": "no", "max_grad_norm": 0.5,
}  # fmt: skip


def values(root: Path, loss: str | None = None, batch: int = 2, accumulation: int = 2, **finetuning: object) -> dict[str, Any]:
    trainer = TRAINER | {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
    own = {} if loss is None else {"loss": f"{root}/losses.py:{loss}"}
    return {
        "model": str(root / "original"),
        "task": {"name": "playground/arithmetic", "dev_examples": 8},
        "finetuning": own | {"zero": 2, "examples": 32, "trainer": trainer} | finetuning,
    }


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `two-…` trains on all ranks, `one-…` trains on one, in batches as large as theirs together."""
    root = tmp_path_factory.mktemp("own_loss")
    (root / "losses.py").write_text(LOSSES)
    tiny_model("mixtral", vocab_size=768, eos_token_id=1).save_pretrained(root / "original")
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(PLAYGROUND / "model" / file, root / "original")
    two = {
        "two-usual": values(root), "two-cross": values(root, "cross"), "two-half": values(root, "half"),
        "two-at-once": values(root, "cross", batch=4, accumulation=1), "two-zero-3": values(root, "cross", zero=3),
        "two-packed": values(root, "cross", batch=4, accumulation=1, packing=True),
        "two-lora": values(root, method="lora"), "two-lora-cross": values(root, "cross", method="lora"),
    }  # fmt: skip
    one = {"one-usual": values(root, batch=2 * RANKS), "one-cross": values(root, "cross", batch=2 * RANKS)}
    one["one-fails"] = values(root, "fails")
    for number, recipes in ((RANKS, two), (1, one)):
        for name, recipe in recipes.items():
            recipe["name"] = name
            shutil.copytree(root / "original", root / name / "pruned")
        (root / "recipes.json").write_text(json.dumps(recipes))
        command = ranks(number, str(ROOT / "tests" / "recovery" / "resumed.py"), str(root), "recipes.json")
        done = subprocess.run(command, capture_output=True, text=True, timeout=540, check=False)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    facts = {name: json.loads((root / name / "facts.json").read_text()) for name in [*two, *one]}
    assert [name for name, found in facts.items() if "error" in found] == ["one-fails"], facts
    return root


def log(root: Path, name: str, key: str) -> list[float]:
    entries = [json.loads(line) for line in (root / name / "training_log.jsonl").read_text().splitlines()]
    return [entry[key] for entry in entries if key in entry]


def weights(root: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(root / name / "recovered" / "model.safetensors")


@pytest.mark.launcher
@pytest.mark.parametrize(
    ("usual", "own"),
    [
        ("one-usual", "one-cross"),
        ("two-usual", "two-cross"),
        ("one-usual", "two-cross"),
        ("two-usual", "two-at-once"),
        ("two-usual", "two-packed"),
        ("two-usual", "two-zero-3"),
        ("two-lora", "two-lora-cross"),
    ],
)
def test_cross_entropy_as_an_own_loss_is_the_training_without_it(root: Path, usual: str, own: str) -> None:
    for key in ("loss", "grad_norm", "eval_loss", "num_tokens"):
        assert len(log(root, usual, key)) in (1, 3, 4)
        assert log(root, own, key) == pytest.approx(log(root, usual, key), rel=1e-4), key
    assert log(root, own, "cross_entropy") == pytest.approx(
        log(root, own, "loss"), rel=1e-2
    )  # a mean of accumulated batches' means
    before, after = weights(root, usual), weights(root, own)
    moved = load_file(root / usual / "pruned" / "model.safetensors")
    for name, tensor in before.items():
        assert (after[name] - tensor).abs().max() < 1e-3 * max(1e-2, (tensor - moved[name]).abs().max().item()), name


# The dev loss compares trainings, so it stays what it is; the training loss is the function's.
@pytest.mark.launcher
def test_another_loss_is_another_training_and_the_dev_loss_is_cross_entropy(root: Path) -> None:
    half, cross = log(root, "two-half", "loss"), log(root, "two-cross", "loss")
    assert half[0] == pytest.approx(cross[0] / 2, rel=1e-4)
    assert log(root, "two-half", "cross_entropy")[0] == pytest.approx(cross[0], rel=1e-4)
    assert log(root, "two-half", "eval_loss")[0] > 1.2 * half[-1]


@pytest.mark.launcher
def test_what_the_function_raises_ends_the_training_with_its_name(root: Path) -> None:
    error = json.loads((root / "one-fails" / "facts.json").read_text())["error"]
    assert "losses.py:fails" in error and "ZeroDivisionError: no tokens" in error


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "losses.py").write_text(LOSSES)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("mean", "recovery.own-loss-shape", ["[]", "[5]", "losses.py:mean"]),
        ("text", "recovery.own-loss-shape", ["str"]),
        ("without_gradient", "recovery.own-loss-gradient", ["gradient"]),
        ("fails", "recovery.own-loss", ["ZeroDivisionError"]),
        ("labels", "loss.signature", ["(logits, targets)", "num_items_in_batch"]),
        ("none", "loss.no-function", ["cross, half"]),
    ],
)
def test_what_an_own_loss_does_wrong_is_one_message(folder: Path, name: str, code: str, words: list[str]) -> None:
    logits = torch.zeros(5, 7, requires_grad=True)
    with raises(code, "finetuning.loss", *words):
        OwnLoss(f"losses.py:{name}")(logits, torch.zeros(5, dtype=torch.long))


def recipe(**finetuning: object) -> Recipe:
    return Recipe.model_validate({"name": "t", "model": "m", "task": "playground/sorting", "finetuning": finetuning})


def faults_of(checks: list[Callable[[], None]]) -> list[str]:
    found = []
    for check in checks:
        try:
            check()
        except PollardError as error:
            found.append(str(error.code))
    return found


def test_a_loss_that_is_not_there_is_told_before_the_first_stage(folder: Path) -> None:
    assert "loss.no-module" in faults_of(finetuning_checks(recipe(loss="no_such.py:f"), folder, DataCache()))
    assert "loss.signature" in faults_of(finetuning_checks(recipe(loss="losses.py:labels"), folder, DataCache()))
    assert faults_of(finetuning_checks(recipe(loss="losses.py:cross"), folder, DataCache())) == []


@pytest.mark.parametrize("trainer", [{"label_smoothing_factor": 0.1}, {"loss_type": "dft"}, {"router_aux_loss_coef": 0.1}])
def test_the_trainers_other_losses_are_refused_beside_it(folder: Path, trainer: dict[str, Any]) -> None:
    with raises("recovery.other-loss", f"finetuning.trainer.{next(iter(trainer))}", "finetuning.loss"):
        sft_config(recipe(loss="losses.py:cross", trainer=trainer), folder)


@pytest.mark.parametrize(
    ("finetuning", "words"),
    [
        ({"loss": "losses.py:cross", "teacher": "original"}, "leave one of them out"),
        ({"loss": "focal"}, "'focal' names no function"),
    ],
)
def test_a_loss_and_a_teacher_or_a_loss_without_a_file_are_refused(finetuning: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        recipe(**finetuning)


# The file decides what is learned; without a loss nothing is as it was not before.
def test_the_content_of_the_file_is_part_of_the_fingerprint(folder: Path) -> None:
    def settings(**finetuning: object) -> list[Any]:
        return training_settings(recipe(**finetuning), recipe(**finetuning).finetuning, Teaching("d", None, None))

    before = settings(loss="losses.py:cross")
    assert settings(loss="losses.py:cross") == before
    (folder / "losses.py").write_text(LOSSES + "\n# another\n")
    assert settings(loss="losses.py:cross") != before
    assert "loss" not in settings()[1] and len(settings()) == len(before) - 1
