"""What of a run directory can be made again, and what removing it gives back. Trained models are no such thing.

A part is removed file by file, and only what the product wrote (runtime/run_files.py; of checkpoints
runtime/signed_folders.py). The manifest notes it: a stage whose result is gone is done again where a later one needs it, and
only there.
"""

from dataclasses import dataclass
from pathlib import Path

from toolkit.pipeline.run_directory import RunDirectory
from toolkit.pipeline.run_status import BEST_FIRST, why_model_stale
from toolkit.pipeline.stage_list import STAGES
from toolkit.recipe.roles import Role
from toolkit.runtime.errors import PollardError, did_you_mean
from toolkit.runtime.run_files import (
    RESUMED_FOLDERS,
    RUN_FILE_PATTERNS,
    SHARD_PATTERN,
    bytes_of,
    files_below,
    matching_files,
    remove_files,
)
from toolkit.runtime.signed_folders import foreign_files, own_files

_OUTPUTS = {slot.stage.output: slot for slot in reversed(STAGES) if slot.stage.output}
_REMADE = {output: slot.stage for output, slot in _OUTPUTS.items() if slot.stage.remaking}

AGAIN: dict[str, str] = {  # part: what making it again takes
    "checkpoints": "a training that was stopped begins anew",
    **{output: stage.remaking for output, stage in _REMADE.items() if stage.resumes},
    "unfinished": "what was stopped in the middle begins anew",
    "drafts": "`pollard drafts` has its questions answered again",
    "sweep": "a sweep with settings of its own calibrates again; its results stay",
    **{output: stage.remaking for output, stage in _REMADE.items() if not stage.resumes},
}

COSTLY: dict[str, str] = {  # only where they are named
    folder: "hours of training" for slot in STAGES if slot.stage.result == "unique" for folder in slot.stage.checkpoints
}


@dataclass(frozen=True)
class Removable:
    """Files of one part of a run, all of them the product's own."""

    run: RunDirectory
    part: str
    folders: list[Path]
    files: list[Path]

    @property
    def bytes(self) -> int:
        return bytes_of(self.files)


def removable(run: RunDirectory, parts: list[str] | None = None) -> list[Removable]:
    """What can be removed of a run and of the runs inside of it: everything that can be made again, or `parts`. Parts without
    files are left out. Raises PollardError for a part that is none."""
    for part in parts or ():
        if part not in AGAIN | COSTLY:
            known = [*AGAIN, *COSTLY]
            raise PollardError(
                f"`{part}` is no part of a run{did_you_mean(part, known)} Parts: {', '.join(known)}.", code="clean.unknown-part"
            )
    found = []
    for directory in (run, *run.inner_runs()):
        for part in parts or AGAIN:
            folders = _folders(directory, part)
            files = [path for folder in folders for path in _files(directory, part, folder)]
            if files:
                found.append(Removable(directory, part, folders, files))
    return found


def remove(found: Removable) -> list[Path]:
    """Removes the files, and notes it; returns what is left in their folders: files that are not the product's."""
    run, part = found.run, found.part
    if slot := _OUTPUTS.get(part):
        run.note_removed(slot.name)
    return [path for folder in found.folders for path in remove_files([p for p in found.files if folder in p.parents], folder)]


def _is_current(run: RunDirectory, role: Role) -> bool:
    """Whether the run has a model of this role, made as its recipe says."""
    return (run.path / role / "config.json").exists() and not why_model_stale(run, role)


def _folders(run: RunDirectory, part: str) -> list[Path]:
    if part == "unfinished":
        return [*(run.path / name for name in RESUMED_FOLDERS), *run.evaluation.glob("*.answers")]
    if part == "sweep":
        return [run.sweep / "calibration", run.sweep / "original"]
    on_the_way = (
        sorted(run.student.glob(f"*/{part}")) if part in COSTLY else []
    )  # trainings before the last on the student's text
    return [folder for folder in (run.path / part, *on_the_way) if folder.is_dir()]


def _files(run: RunDirectory, part: str, folder: Path) -> list[Path]:
    if part in RUN_FILE_PATTERNS and part != "sweep":
        return matching_files(folder, RUN_FILE_PATTERNS[part])
    if folder.name in RESUMED_FOLDERS:
        return files_below(folder) if folder.is_dir() and not foreign_files(folder) else []
    if part == "unfinished":
        return matching_files(folder, r"\d+\.jsonl")
    if part == "sweep":
        inside = {path for path in matching_files(run.sweep, RUN_FILE_PATTERNS["sweep"]) if folder in path.parents}
        return sorted(inside | set(matching_files(folder, SHARD_PATTERN) if folder.name == "original" else ()))
    better = BEST_FIRST[: BEST_FIRST.index(Role(part))] if part in (Role.PRUNED, Role.REFITTED) else ()
    if better and not any(_is_current(run, role) for role in better):
        return []  # it is what the run has made so far
    return own_files(folder)
