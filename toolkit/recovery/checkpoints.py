"""The state of a training on disk: what a killed run goes on from.

    checkpoints/recovered/checkpoint-40/   DeepSpeed's partitions, the scheduler, every rank's random numbers, the log so far
    checkpoints/recovered/checkpoint-40/complete.json   {"fingerprint": "…", "ranks": 2, "finished": false, "files": {…}}

complete.json is written last. A folder without it, or whose files are not of the sizes it lists, is what a kill or a
full disk left: it is skipped, and the one before it serves.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn
from transformers import TrainerCallback

from toolkit.runtime.distributed import barrier, on_main, say, world_size
from toolkit.runtime.errors import PollardError
from toolkit.runtime.files import write_text
from toolkit.runtime.typed_command import command_again

COMPLETE = "complete.json"
CHECKPOINT = re.compile(r"checkpoint-\d+")


class Keeper(TrainerCallback):
    """Declares every checkpoint whole once all ranks have written theirs, then removes those beyond `limit`.

    The newest and the best always stay. Every save is preceded by a log, so that a run that goes on from it logs the same
    steps together as one that was never stopped.
    """

    def __init__(self, fingerprint: str, limit: int) -> None:
        self.fingerprint = fingerprint
        self.limit = limit

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_log |= control.should_save

    on_epoch_end = on_step_end

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        folder = Path(args.output_dir)
        facts = {"fingerprint": self.fingerprint, "ranks": world_size(), "finished": bool(control.should_training_stop)}
        barrier()

        def declare() -> None:
            declare_complete(folder / f"checkpoint-{state.global_step}", facts)
            self._rotate(folder, state.best_model_checkpoint)

        on_main(declare)

    def _rotate(self, folder: Path, best: str | None) -> None:
        saved = newest_first(folder)
        protected = {saved[0].name, Path(best).name if best else ""}
        others = [path for path in saved if path.name not in protected]
        for path in others[max(0, self.limit - (len(saved) - len(others))) :]:
            remove(path)


def declare_complete(checkpoint: Path, facts: dict[str, Any]) -> None:
    """Writes complete.json: `facts` (fingerprint, ranks, and whether nothing is left to train), and every file's size."""
    files = {str(path.relative_to(checkpoint)): path.stat().st_size for path in checkpoint.rglob("*") if path.is_file()}
    write_text(checkpoint / COMPLETE, json.dumps(facts | {"files": files}) + "\n")


def last_checkpoint(folder: Path, fingerprint: str) -> tuple[Path, bool] | None:
    """The newest whole checkpoint of the training with this fingerprint, and whether it has finished; the others that are
    damaged or another's are removed. Call it on every rank.

    Raises PollardError where it was written by another number of ranks, among which its partitions cannot be shared out.
    """
    found = on_main(lambda: _last_checkpoint(folder, fingerprint))
    if found is None:
        return None
    path, facts = found
    if facts["ranks"] != world_size():
        raise PollardError(
            f"The training in {folder} was begun by {ranks(facts['ranks'])}, and its checkpoints are theirs: "
            f"{ranks(world_size())} cannot go on with them. Go on with `{command_again(ranks=facts['ranks'])}`, or remove that "
            f"folder to train from the start with {ranks(world_size())}."
        )
    return path, facts["finished"]


def _last_checkpoint(folder: Path, fingerprint: str) -> tuple[Path, dict[str, Any]] | None:
    found = None
    for path in newest_first(folder):
        facts = _facts_if_whole(path)
        if facts is None:
            say(f"  {path.name} is not whole (killed while it was written?): not used")
        elif facts["fingerprint"] != fingerprint:
            say(f"  {path.name} belongs to another recipe, or to other data: not used")
        else:
            found = found or (path, facts)
            continue
        remove(path)
    return found


def _facts_if_whole(checkpoint: Path) -> dict[str, Any] | None:
    try:
        facts = json.loads((checkpoint / COMPLETE).read_text())
        whole = all((checkpoint / name).stat().st_size == size for name, size in facts["files"].items())
        return facts if whole else None
    except (OSError, ValueError, KeyError):
        return None


def remove(checkpoint: Path) -> None:
    """First what declares it whole: a kill in the middle must not leave half a checkpoint that looks like one."""
    (checkpoint / COMPLETE).unlink(missing_ok=True)
    shutil.rmtree(checkpoint, ignore_errors=True)


def newest_first(folder: Path) -> list[Path]:
    """All checkpoint folders, whole or not; a copy that somebody made of one (checkpoint-40-best) is none."""
    found = [path for path in folder.glob("checkpoint-*") if CHECKPOINT.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")), reverse=True)


def kept(folder: Path) -> str:
    """What a training that stops leaves, and what to do, for people."""
    whole = [path for path in newest_first(folder) if (path / COMPLETE).exists()]
    if not whole:
        return "No checkpoint had been made: make room, and the same command begins again."
    return f"The last whole checkpoint is {whole[0]}: make room, and the same command goes on from there."


def ranks(number: int) -> str:
    return f"{number} rank{'s' * (number > 1)}"


class Space(NamedTuple):
    """Bytes that a training writes: `number` checkpoints of `each`, and its `result`."""

    each: int
    number: int
    result: int


def space(model: nn.Module, optim: str, kept: int) -> Space:
    """What to expect of AdamW: per trained parameter its own bytes, a float32 copy and two moments. One checkpoint more than
    are kept, while the next is written (of an unlimited number, three)."""
    moments = 2 if "8bit" in optim else 8
    each = result = 0
    for parameter in model.parameters():
        numbers = getattr(parameter, "ds_numel", parameter.numel())  # ZeRO-3 leaves an empty one in its place
        own = numbers * parameter.element_size()
        each += own + (numbers * (4 + moments) if parameter.requires_grad else 0)
        result += own
    return Space(each, min(kept, 2) + 1, result)


def check_space(folder: Path, needed: Space) -> None:
    """Raises PollardError where the disk has no room for them beside what is there already."""
    folder.mkdir(parents=True, exist_ok=True)
    there = len(newest_first(folder))
    together = needed.each * max(needed.number - there, min(needed.number, 1)) + needed.result
    free = shutil.disk_usage(folder).free
    if together > free:
        raise PollardError(
            f"Training needs about {size(together)} of disk at {folder}, and {size(free)} are free: {needed.number} checkpoints "
            f"of {size(needed.each)} (model and optimizer; one more than are kept, while the next is written) and "
            f"{size(needed.result)} for the result. Free some, keep fewer (finetuning.trainer.save_total_limit=1), or write none "
            "(finetuning.trainer.save_strategy=no: a killed training then starts again)."
        )


def size(number: int) -> str:
    return f"{number / 1e9:,.1f} GB"
