"""Which files of a run directory Pollard wrote. Only those are ever removed, whatever else lies beside them.

This lists what stages write file by file. Checkpoints contain files of the original with arbitrary names: they are signed
instead (signed_folders.py).
"""

import os
import re
import stat
from collections.abc import Iterable
from itertools import count
from pathlib import Path

from toolkit.runtime.signed_folders import RUN_FOLDERS, foreign_files, partial_path, remove_own, restore

WRITTEN_BEFORE_MANIFEST = re.compile(r"lock|traceback(-rank\d+)?\.txt|manifest\.json\.tmp|[0-9a-f]{32}\.tmp")
"""Files that a run may leave in its folder before it has written its manifest."""

TEMPORARY = re.compile(r"\.tmp\w*|.+\.(json|jsonl|safetensors|html|md|yaml)\.tmp")
"""Half-written files: Pollard's end in .tmp, those of safetensors begin with it."""

TEMPORARY_RUN_FILE = re.compile(r"(manifest|recipe|layers|fit|plan|refit|alternatives|report|speed|README|\w+_log)\.\w+\.tmp")
TEMPORARY_CHECKPOINT_FILES = ("README.md.tmp", "skipping.json.tmp")

RESUMED_FOLDERS = ("pruned.tmp", "refitted.tmp")
"""Half-written checkpoints that their stages go on from."""

SHARD_PATTERN = r"about\.json|\d{5}\.(safetensors|jsonl)"
RUN_FILE_PATTERNS = {  # folder: its files, as regular expressions of their path in it
    "layers": r"losses\.json|similarities\.safetensors",
    "dense": r"plan\.(json|safetensors)",
    "calibration": r"statistics\.(safetensors|json)",
    "teacher": SHARD_PATTERN,
    "answers": rf"\d+/(questions/)?({SHARD_PATTERN})",
    "fidelity": SHARD_PATTERN,
    "off_task": SHARD_PATTERN,
    "student": rf"\d+/(answers/\d+|teacher)/({SHARD_PATTERN})",
    "checkpoints": r"(recovered|control|student-\d+)/checkpoint-\d+/.+",
    "evaluation": r"\w+\.(json|predictions\.jsonl|(fidelity|off_task|first_task|harness)\.json)|\w+\.answers/\d+\.jsonl",
    "fit": rf"(losses|allocation)\.json|measured/[\w-]+\.json|reference/({SHARD_PATTERN})",
    "drafts": rf"\w+/({SHARD_PATTERN})",
    "sweep": r"table\.json|(keep\d+|allocation)-[0-9a-f]+\.json|original/(" + SHARD_PATTERN + r")"
    r"|layers/(losses\.json|similarities\.safetensors)"
    r"|calibration/[0-9a-f]+/(manifest\.json|lock|layers\.json|calibration/statistics\.(safetensors|json))",
}


def foreign_entries(folder: Path) -> list[str]:
    """What in a folder without a manifest no run has left there, as names; empty if there is no such folder."""
    if not folder.is_dir():
        return []
    inherited = ("answers", "teacher")  # in a round: links to those of its run
    return sorted(
        path.name + "/" * path.is_dir()
        for path in folder.iterdir()
        if not (WRITTEN_BEFORE_MANIFEST.fullmatch(path.name) or (path.name in inherited and path.is_symlink()))
    )


def free_name(folder: Path) -> str:
    """An unused name for a folder beside this one: "small-2"."""
    candidates = (f"{folder.name}-{number}" for number in count(2))
    return next(name for name in candidates if not (folder.parent / name).exists())


def matching_files(folder: Path, pattern: str) -> list[Path]:
    """The files below `folder` whose path in it matches `pattern`, and half-written ones. Links are not followed."""
    wanted = re.compile(pattern)
    return [
        path
        for path in files_below(folder)
        if wanted.fullmatch(path.relative_to(folder).as_posix()) or TEMPORARY.fullmatch(path.name)
    ]


def files_below(folder: Path) -> list[Path]:
    """Every file below `folder`, without following links; none if it is a link itself."""
    if folder.is_symlink():
        return []
    return [Path(at, name) for at, _, names in os.walk(folder) for name in sorted(names)]


def bytes_of(paths: Iterable[Path]) -> int:
    """Total size of the files; links are not followed."""
    return sum(status.st_size for path in paths if stat.S_ISREG((status := path.lstat()).st_mode))


def remove_files(paths: Iterable[Path], folder: Path) -> list[Path]:
    """Removes the files, then the folders that this leaves empty, up to `folder`. Returns the files that are left in it."""
    for path in paths:
        path.unlink(missing_ok=True)
    if folder.is_symlink() or not folder.is_dir():
        return []
    for at, _, _ in os.walk(folder, topdown=False):
        if not os.listdir(at):
            os.rmdir(at)
    return files_below(folder)


def remove_half_written(run: Path) -> None:
    """Removes what a killed run left under temporary names. Its rounds are run directories of their own."""
    on_the_way = [path / name for path in sorted((run / "student").glob("*")) for name in ("recovered", "adapter")]
    for target in (*(run / name for name in (*RUN_FOLDERS, "refitted")), *on_the_way):
        restore(target)
        partial = partial_path(target)
        if partial.name not in RESUMED_FOLDERS and partial.is_dir() and not foreign_files(partial):
            remove_own(partial)
    below = [
        path
        for name in (*RUN_FILE_PATTERNS, *RESUMED_FOLDERS)
        for path in files_below(run / name)
        if TEMPORARY.fullmatch(path.name)
    ]
    at_the_top = [path for path in run.glob("*.tmp") if path.is_file() and TEMPORARY_RUN_FILE.fullmatch(path.name)]
    beside_weights = [path for name in TEMPORARY_CHECKPOINT_FILES for path in run.glob(f"*/{name}")]
    for path in (*at_the_top, *below, *beside_weights):
        path.unlink(missing_ok=True)


def remove_matching(folder: Path, pattern: str) -> list[Path]:
    """Removes the files of `folder` whose path matches, and half-written ones. Returns what is left: not Pollard's."""
    return remove_files(matching_files(folder, pattern), folder)
