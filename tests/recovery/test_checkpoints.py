"""Law: a training resumes only from a complete checkpoint of its own, and the newest and the best are never removed."""

import shutil
import sys
from collections import namedtuple
from pathlib import Path

import pytest
from conftest import raises, tiny_model

from toolkit.recovery import checkpoints
from toolkit.recovery.checkpoints import (
    CheckpointRotation,
    DiskSpace,
    check_disk_space,
    declare_complete,
    disk_space_needed,
    last_checkpoint,
    newest_first,
)


def saved(folder: Path, step: int, fingerprint: str = "mine", ranks: int = 1, finished: bool = False) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    (checkpoint / f"global_step{step}").mkdir(parents=True)
    (checkpoint / f"global_step{step}" / "states.pt").write_bytes(bytes(100))
    (checkpoint / "trainer_state.json").write_text("{}")
    declare_complete(checkpoint, fingerprint, ranks, finished)
    return checkpoint


def test_training_goes_on_from_the_newest_by_number(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        saved(tmp_path, step, finished=step == 100)
    assert last_checkpoint(tmp_path, "mine") == (tmp_path / "checkpoint-100", True)
    assert last_checkpoint(tmp_path / "nothing", "mine") is None


@pytest.mark.parametrize("harm", ["killed before the end", "a file is cut", "a file is gone", "complete.json is cut"])
def test_a_damaged_checkpoint_is_skipped_and_the_one_before_serves(tmp_path: Path, harm: str) -> None:
    saved(tmp_path, 10)
    last = saved(tmp_path, 20)
    if harm == "killed before the end":
        (last / "complete.json").unlink()
    elif harm == "a file is cut":
        (last / "global_step20" / "states.pt").write_bytes(bytes(99))
    elif harm == "a file is gone":
        (last / "trainer_state.json").unlink()
    else:
        (last / "complete.json").write_text('{"fingerprint": "mi')
    assert last_checkpoint(tmp_path, "mine") == (tmp_path / "checkpoint-10", False)
    assert not last.exists()


def test_another_recipes_checkpoints_are_not_gone_on_from(tmp_path: Path) -> None:
    saved(tmp_path, 30, fingerprint="of a changed recipe")
    saved(tmp_path, 20)
    assert last_checkpoint(tmp_path, "mine") == (tmp_path / "checkpoint-20", False)
    assert [path.name for path in newest_first(tmp_path)] == ["checkpoint-20"]


def test_copies_that_somebody_made_of_checkpoints_are_neither_used_nor_removed(tmp_path: Path) -> None:
    best = saved(tmp_path, 20, fingerprint="of a changed recipe")
    for name in ("checkpoint-20-best", "checkpoint-best", "checkpoint-", "checkpoint-20.bak"):
        shutil.copytree(best, tmp_path / name)
    (tmp_path / "checkpoint-30").write_text("a file")
    assert last_checkpoint(tmp_path, "mine") is None
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint-", "checkpoint-20-best", "checkpoint-20.bak", "checkpoint-30", "checkpoint-best",
    ]  # fmt: skip


def test_another_number_of_ranks_is_told_the_command_that_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path, 20, ranks=4)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    for argv, command in (
        (["toolkit/train.py", "--local_rank=0", "my.yaml", "pruning.keep=2"], "toolkit/train.py my.yaml pruning.keep=2`"),
        (["/usr/bin/pollard", "recover", "my.yaml"], "--module toolkit.cli recover my.yaml`"),
    ):
        monkeypatch.setattr("sys.argv", argv)
        with raises("recovery.other-ranks", tmp_path, "4 ranks", f"`deepspeed --num_gpus 4 {command}"):
            last_checkpoint(tmp_path, "mine")
    assert (tmp_path / "checkpoint-20").exists()


@pytest.mark.parametrize(
    ("limit", "best", "left"), [(1, None, [50]), (2, None, [50, 40]), (2, 10, [50, 10]), (1, 10, [50, 10]), (3, 10, [50, 40, 10])]
)
def test_the_newest_and_the_best_stay_within_the_limit(tmp_path: Path, limit: int, best: int | None, left: list[int]) -> None:
    for step in (10, 20, 30, 40, 50):
        saved(tmp_path, step)
    CheckpointRotation("mine", limit)._rotate(tmp_path, best and str(tmp_path / f"checkpoint-{best}"))
    assert [path.name for path in newest_first(tmp_path)] == [f"checkpoint-{step}" for step in left]


def test_a_removal_that_is_killed_leaves_nothing_that_looks_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = saved(tmp_path, 10)
    monkeypatch.setattr(checkpoints.shutil, "rmtree", lambda *args, **kwargs: None)  # killed at its first file
    checkpoints.remove_checkpoint(old)
    monkeypatch.undo()
    assert old.exists() and last_checkpoint(tmp_path, "mine") is None


def test_a_disk_without_room_is_told_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 70 * 10**9))
    check_disk_space(tmp_path, DiskSpace(each=20 * 10**9, number=3, result=5 * 10**9))
    with raises("recovery.no-disk-space", "77.0 GB", "70.0 GB", "3 checkpoints of 24.0 GB", "save_total_limit=1"):
        check_disk_space(tmp_path, DiskSpace(each=24 * 10**9, number=3, result=5 * 10**9))
    saved(tmp_path, 10)  # is there already
    check_disk_space(tmp_path, DiskSpace(each=24 * 10**9, number=3, result=5 * 10**9))
    check_disk_space(tmp_path, DiskSpace(each=100 * 10**9, number=0, result=5 * 10**9))  # trained, and not yet saved


def test_what_is_frozen_has_no_optimizer_state() -> None:
    model = tiny_model("mixtral")
    numbers = sum(parameter.numel() for parameter in model.parameters())
    assert disk_space_needed(model, "adamw_torch", 2) == (16 * numbers, 3, 4 * numbers)
    assert disk_space_needed(model, "adamw_bnb_8bit", 1) == (10 * numbers, 2, 4 * numbers)
    model.requires_grad_(False)
    assert disk_space_needed(model, "adamw_torch", 2).each == 4 * numbers
