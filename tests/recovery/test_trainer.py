"""What the trainer does beside training, on one rank in this process.

Law: a disk that fills stops a training with one message, and the same command goes on from the last whole checkpoint.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from small_disk import files_of_at_most
from small_run import small_folder, small_recipe

from toolkit.recipe.schema import Recipe
from toolkit.recovery.recover import recover
from toolkit.recovery.trainer import ProgressLines, RecoveryTrainer, entropy_bits
from toolkit.runtime.errors import PollardError

ROOM = 100  # bytes per file


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The original serves as the pruned model."""
    with small_folder(tmp_path_factory, "full") as folder:
        yield folder


def recipe(name: str, **trainer: object) -> Recipe:
    Path("runs", name).mkdir(parents=True)
    Path("runs", name, "pruned").symlink_to(Path("original").absolute())
    usual = {"max_steps": 3, "per_device_train_batch_size": 2, "logging_steps": 1, "save_steps": 1, "eval_strategy": "no"}
    return small_recipe(name=name, finetuning={"zero": 0, "examples": 8, "trainer": usual | trainer})


def fills_after(owner: Any, name: str, times: int, patch: pytest.MonkeyPatch, stack: ExitStack) -> None:
    """From the end of the call of that number on, there is no more room."""
    whole, calls = getattr(owner, name), []

    def call(*arguments: Any, **options: Any) -> Any:
        found = whole(*arguments, **options)
        calls.append(name)
        if len(calls) == times:
            stack.enter_context(files_of_at_most(ROOM))
        return found

    patch.setattr(owner, name, call)


def refusal(recipe: Recipe, owner: Any, name: str, times: int) -> str:
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack, pytest.raises(PollardError) as error:
        fills_after(owner, name, times, patch, stack)
        recover(recipe)
    return str(error.value)


@pytest.mark.parametrize(
    ("after", "times", "what", "last"),
    [
        ((ProgressLines, "on_log"), 3, "checkpoints/recovered/checkpoint-3: the file could not be written to its end", 2),
        ((RecoveryTrainer, "train"), 1, "recovered: ", 3),
    ],
    ids=["a checkpoint", "the result"],
)
def test_the_last_checkpoint_stays_and_the_same_command_goes_on(
    after: tuple[Any, str], times: int, what: str, last: int, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full = recipe(f"until{last}")
    said = refusal(full, *after, times)
    checkpoint = f"runs/{full.name}/checkpoints/recovered/checkpoint-{last}"
    assert said.startswith(f"Cannot write runs/{full.name}/{what}") and "GB free there)" in said
    assert said.endswith(f"The last whole checkpoint is {checkpoint}: make room, and the same command goes on from there.")
    assert not Path("runs", full.name, "recovered").exists()
    assert recover(full)["steps"] == 3
    assert f"going on from {checkpoint}" in capsys.readouterr().out
    assert Path("runs", full.name, "recovered", "model.safetensors").exists()


def test_a_log_that_cannot_be_written_is_named(folder: Path) -> None:
    said = refusal(recipe("log", save_strategy="no", logging_steps=1), ProgressLines, "on_train_begin", 1)
    assert said.startswith("Cannot write runs/log/training_log.jsonl: File too large (")
    assert said.endswith("No checkpoint had been made: make room, and the same command begins again.")


def test_entropy_tells_how_many_experts_are_really_used() -> None:
    assert entropy_bits([5, 5, 5, 5]) == pytest.approx(2.0)  # log2 of four, used alike
    assert entropy_bits([9, 0, 0, 0]) == 0.0
    assert entropy_bits([1, 1, 0, 0]) == pytest.approx(1.0)
    assert 1.0 < entropy_bits([4, 2, 1, 1]) < 2.0
