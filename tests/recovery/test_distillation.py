"""Real runs with a teacher: neither ranks, nor accumulation, nor a repetition changes what is learnt."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import PLAYGROUND, ROOT, raises
from rank_launcher import RANKS, ranks
from safetensors.torch import load_file
from trl import SFTConfig

from toolkit.pipeline.runner import run
from toolkit.recipe.file import dump_values
from toolkit.recipe.schema import Recipe
from toolkit.recovery import packing
from toolkit.recovery.distillation import check_loss_alone
from toolkit.runtime import distributed

TRAINER = {
    "max_steps": 3,
    "logging_steps": 1,
    "learning_rate": 1e-3,
    "eval_strategy": "steps",
    "eval_steps": 3,
    "warmup_steps": 0,
}


def values(name: str, batch: int, accumulation: int, **finetuning: object) -> dict:
    trainer = TRAINER | {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
    mix = [
        {"task": "playground/arithmetic", "weight": 0.5},
        {"self_generated": True, "examples": 12, "samples": 2, "weight": 0.5},
    ]
    learning = {"zero": 2, "max_length": 128, "examples": 24, "data": mix, "teacher": "original", "trainer": trainer}
    return {
        "name": name,
        "model": str(PLAYGROUND / "model"),
        "task": {"name": "playground/arithmetic", "dev_examples": 8},
        "calibration": {"examples": 8, "max_length": 128},
        "pruning": {"keep": 4},
        "finetuning": learning | finetuning,
        "evaluation": {"models": ["recovered"], "examples": 4, "max_new_tokens": 48},
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """`two`: on two ranks (or more), by the real command. `one`: here, on one, with batches as large as those of all."""
    folder = tmp_path_factory.mktemp("distillation")
    (folder / "two.yaml").write_text(dump_values(values("two", batch=2, accumulation=1)))
    command = ranks(RANKS, str(ROOT / "toolkit" / "train.py"), "two.yaml")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=540, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    (folder / "said").write_text(done.stdout)
    distributed.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run(Recipe.model_validate(values("one", batch=2 * RANKS, accumulation=1)), until="recover")
        yield folder
    distributed.stop()


def log(folder: Path, name: str, key: str) -> list[float]:
    entries = [json.loads(line) for line in (folder / "runs" / name / "training_log.jsonl").read_text().splitlines()]
    return [entry[key] for entry in entries if key in entry]


@pytest.mark.launcher
@pytest.mark.parametrize("kind", ["teacher", "answers"])
def test_two_ranks_leave_the_same_files_as_one(folder: Path, kind: str) -> None:
    one, two = (
        {path.name: path.read_bytes() for path in sorted((folder / "runs" / name / kind).rglob("*")) if path.is_file()}
        for name in ("one", "two")
    )
    assert len(one) >= 2 and one == two


@pytest.mark.launcher
def test_the_loss_is_the_same_on_two_ranks(folder: Path) -> None:
    for key in ("loss", "cross_entropy", "divergence", "eval_loss", "num_tokens"):
        one, two = (log(folder, name, key) for name in ("one", "two"))
        assert len(one) == (1 if key == "eval_loss" else 3) and one == pytest.approx(two, rel=1e-3), key
    one, two = (load_file(folder / "runs" / name / "recovered" / "model.safetensors") for name in ("one", "two"))
    apart = torch.cat([(one[key] - two[key]).abs().flatten() for key in one])
    assert apart.max() <= 6e-3 and apart.mean() <= 1e-5  # Adam: a near-zero gradient may turn, at most 3 steps of 1e-3 each


@pytest.mark.launcher
def test_the_loss_is_its_two_parts(folder: Path) -> None:
    parts = zip(*(log(folder, "one", key) for key in ("loss", "cross_entropy", "divergence")), strict=True)
    for loss, cross, divergence in parts:
        assert loss == pytest.approx(0.5 * cross + 0.5 * 4 * divergence, rel=1e-4) and divergence > 0.01


@pytest.mark.launcher
def test_accumulated_batches_are_one_batch_and_the_teacher_is_asked_once(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = log(folder, "one", "loss")
    capsys.readouterr()
    run(Recipe.model_validate(values("one", batch=2, accumulation=RANKS)), until="recover")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines if line[1:] == ["done", "already,", "skipped"]] == [
        "calibrate", "select", "prune", "answers", "teacher",
    ]  # fmt: skip
    assert log(folder, "one", "loss") == pytest.approx(before, rel=1e-4)


@pytest.mark.launcher
def test_packed_rows_learn_and_log_what_padded_ones_do(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = ("loss", "cross_entropy", "divergence", "eval_loss", "num_tokens", "routing_entropy_mean", "grad_norm")
    run(Recipe.model_validate(values("one", batch=4, accumulation=1)), until="recover")
    padded = {key: log(folder, "one", key) for key in keys}
    monkeypatch.setattr(packing, "ROW", 96)  # some rows end in padding
    run(Recipe.model_validate(values("one", batch=4, accumulation=1, packing=True)), until="recover")
    for key in keys:
        assert padded[key] and log(folder, "one", key) == pytest.approx(padded[key], rel=1e-3 if key == "grad_norm" else 1e-4), (
            key
        )


@pytest.mark.launcher
@pytest.mark.parametrize("method", ["lora", "qlora", "router"])
def test_every_method_learns_from_the_teacher(folder: Path, method: str) -> None:
    wish = values("one", batch=2 * RANKS, accumulation=1)
    run(Recipe.model_validate(wish), until="recover")
    full = log(folder, "one", "divergence")[0]
    run(Recipe.model_validate(wish | {"finetuning": wish["finetuning"] | {"method": method}}), until="recover")
    found = log(folder, "one", "divergence")
    assert len(found) == 3 and found[0] == pytest.approx(full, rel=0.1 if method == "qlora" else 1e-4)  # before any step


@pytest.mark.launcher
def test_what_is_made_is_said_beforehand(folder: Path) -> None:
    said = (folder / "said").read_text()
    assert "tokens x 388 bytes = " in said and "GiB free" in said
    assert "own answers: " in said and "answers to 12 prompts kept: right, ended, no two the same" in said


@pytest.mark.parametrize("other", [{"label_smoothing_factor": 0.1}, {"loss_type": "dft"}, {"router_aux_loss_coef": 0.01}])
def test_another_loss_beside_the_distilled_one_is_refused(other: dict, tmp_path: Path) -> None:
    arguments = {"router_aux_loss_coef": 0.0, "use_cpu": True, "bf16": False} | other
    with raises("recovery.other-loss", f"finetuning.trainer.{next(iter(other))}"):
        check_loss_alone(SFTConfig(str(tmp_path), **arguments), "finetuning.teacher")
