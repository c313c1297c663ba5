"""The state of a training on disk: what a killed run goes on from.

    checkpoints/recovered/checkpoint-40/   DeepSpeed's partitions, the scheduler, every rank's random numbers, the log so far
    checkpoints/recovered/checkpoint-40/complete.json   {"fingerprint": "…", "ranks": 2, "finished": false, "files": {…}}

complete.json is written last. A folder without it, or with files of other sizes than it lists, was left by a kill or a full
disk: it is skipped, and the checkpoint before it is used.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from torch import nn
from transformers import TrainerCallback

from toolkit.runtime.distributed import barrier, on_main, say, world_size
from toolkit.runtime.errors import PollardError
from toolkit.runtime.files import write_text
from toolkit.runtime.typed_command import command_again

COMPLETE = "complete.json"
CHECKPOINT = re.compile(r"checkpoint-\d+")


class Completion(TypedDict):
    """complete.json."""

    fingerprint: str
    ranks: int
    finished: bool  # nothing is left to train
    files: dict[str, int]  # bytes, by path within the checkpoint


class CheckpointRotation(TrainerCallback):
    """Declares every checkpoint complete once all ranks have written theirs, then removes those beyond `limit`.

    The newest and the best always stay. Every save is preceded by a log, so that a resumed training logs the same steps
    as one that was never stopped.
    """

    def __init__(self, fingerprint: str, limit: int) -> None:
        self.fingerprint = fingerprint
        self.limit = limit

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_log |= control.should_save

    on_epoch_end = on_step_end

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        folder = Path(args.output_dir)
        finished, written_by = bool(control.should_training_stop), world_size()  # inside `on_main` it is 1
        barrier()

        def declare() -> None:
            declare_complete(folder / f"checkpoint-{state.global_step}", self.fingerprint, written_by, finished)
            self._rotate(folder, state.best_model_checkpoint)

        on_main(declare)

    def _rotate(self, folder: Path, best: str | None) -> None:
        saved = newest_first(folder)
        protected = {saved[0].name, Path(best).name if best else ""}
        others = [path for path in saved if path.name not in protected]
        for path in others[max(0, self.limit - (len(saved) - len(others))) :]:
            remove_checkpoint(path)


def declare_complete(checkpoint: Path, fingerprint: str, ranks: int, finished: bool) -> None:
    """Writes complete.json; `finished`: nothing is left to train."""
    files = {str(path.relative_to(checkpoint)): path.stat().st_size for path in checkpoint.rglob("*") if path.is_file()}
    completion = Completion(fingerprint=fingerprint, ranks=ranks, finished=finished, files=files)
    write_text(checkpoint / COMPLETE, json.dumps(completion) + "\n")


class Resumable(NamedTuple):
    """A checkpoint from which a training goes on."""

    path: Path
    finished: bool  # nothing is left to train


def last_checkpoint(folder: Path, fingerprint: str) -> Resumable | None:
    """The newest complete checkpoint of the training with this fingerprint; damaged ones and those of other trainings are
    removed. Call it on every rank.

    Raises PollardError where another number of ranks wrote it: its partitions belong to that number.
    """
    found = on_main(lambda: _last_checkpoint(folder, fingerprint))
    if found is None:
        return None
    path, completion = found
    if completion["ranks"] != world_size():
        raise PollardError(
            f"The training in {folder} was begun by {ranks(completion['ranks'])}, and its checkpoints are theirs: "
            f"{ranks(world_size())} cannot go on with them. Go on with `{command_again(ranks=completion['ranks'])}`, or remove "
            f"that folder to train from the start with {ranks(world_size())}.",
            code="recovery.other-ranks",
        )
    return Resumable(path, completion["finished"])


def _last_checkpoint(folder: Path, fingerprint: str) -> tuple[Path, Completion] | None:
    found = None
    for path in newest_first(folder):
        completion = _completion(path)
        if completion is None:
            say(f"  {path.name} is not whole (killed while it was written?): not used")
        elif completion["fingerprint"] != fingerprint:
            say(f"  {path.name} belongs to another recipe, or to other data: not used")
        else:
            found = found or (path, completion)
            continue
        remove_checkpoint(path)
    return found


def _completion(checkpoint: Path) -> Completion | None:
    """What complete.json says; None where there is none, or a file is not of the size it lists."""
    try:
        completion: Completion = json.loads((checkpoint / COMPLETE).read_text())
        sizes_match = all((checkpoint / name).stat().st_size == size for name, size in completion["files"].items())
        return completion if sizes_match else None
    except (OSError, ValueError, KeyError):
        return None


def remove_checkpoint(checkpoint: Path) -> None:
    """complete.json first: a kill in the middle must not leave half a checkpoint that looks like a whole one."""
    (checkpoint / COMPLETE).unlink(missing_ok=True)
    shutil.rmtree(checkpoint, ignore_errors=True)


def newest_first(folder: Path) -> list[Path]:
    """All checkpoint folders, complete or not; a copy that somebody made of one (checkpoint-40-best) is not counted."""
    found = [path for path in folder.glob("checkpoint-*") if CHECKPOINT.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")), reverse=True)


def resume_advice(folder: Path) -> str:
    """For the message of a training that stopped: what it leaves, and how to resume it."""
    whole = [path for path in newest_first(folder) if (path / COMPLETE).exists()]
    if not whole:
        return "No checkpoint had been made: make room, and the same command begins again."
    return f"The last whole checkpoint is {whole[0]}: make room, and the same command goes on from there."


def ranks(number: int) -> str:
    return f"{number} rank{'s' * (number > 1)}"


class DiskSpace(NamedTuple):
    """Bytes that a training writes: `number` checkpoints of `each`, and its `result`."""

    each: int
    number: int
    result: int


def disk_space_needed(model: nn.Module, optim: str, kept: int) -> DiskSpace:
    """Of AdamW: per trained parameter its own bytes, a float32 copy and two moments. One checkpoint more than the `kept`,
    while the next is written; for an unlimited number, three."""
    moments = 2 if "8bit" in optim else 8
    each = result = 0
    for parameter in model.parameters():
        numbers = getattr(parameter, "ds_numel", parameter.numel())  # ZeRO-3 leaves an empty one in its place
        own = numbers * parameter.element_size()
        each += own + (numbers * (4 + moments) if parameter.requires_grad else 0)
        result += own
    return DiskSpace(each, min(kept, 2) + 1, result)


def check_disk_space(folder: Path, needed: DiskSpace) -> None:
    """Raises PollardError where the disk at `folder` lacks room; checkpoints that lie there already count as written."""
    folder.mkdir(parents=True, exist_ok=True)
    existing = len(newest_first(folder))
    total = needed.each * max(needed.number - existing, min(needed.number, 1)) + needed.result
    free = shutil.disk_usage(folder).free
    if total > free:
        raise PollardError(
            f"Training needs about {gigabytes(total)} of disk at {folder}, and {gigabytes(free)} are free: {needed.number} "
            f"checkpoints of {gigabytes(needed.each)} (model and optimizer; one more than are kept, while the next is written) "
            f"and {gigabytes(needed.result)} for the result. Free some, keep fewer (finetuning.trainer.save_total_limit=1), or "
            "write none (finetuning.trainer.save_strategy=no: a killed training then starts again).",
            code="recovery.no-disk-space",
        )


def gigabytes(number: int) -> str:
    return f"{number / 1e9:,.1f} GB"
