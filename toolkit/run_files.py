"""Which files of a run directory are the product's own: only those are ever removed, whatever else lies beside them.

Checkpoints hold files of the original under names that nobody knows beforehand; of those the manifest lists what a stage wrote.
"""

import os
import re
import shutil
import stat
from collections.abc import Iterable, Mapping
from itertools import count
from pathlib import Path

BEFORE_A_MANIFEST = re.compile(r"lock|traceback(-rank\d+)?\.txt|manifest\.json\.tmp|[0-9a-f]{32}\.tmp")
"""What a run may leave in its folder before it has written its manifest."""

TEMPORARY = re.compile(r"\.tmp\w*|.+\.(json|jsonl|safetensors|html|md|yaml)\.tmp")
"""Half-written files: ours end in .tmp, those of safetensors begin with it."""

TEMPORARY_AT_THE_TOP = re.compile(r"(manifest|recipe|plan|alternatives|report|speed|README|\w+_log)\.\w+\.tmp")
UNFINISHED_FOLDERS = ("recovered.tmp", "control.tmp", "adapter.tmp", "control_adapter.tmp")
"""Half-written checkpoints. (`pruned.tmp` is no such: pruning goes on from it.)"""
IN_WHOLE_CHECKPOINTS = ("README.md.tmp", "skipping.json.tmp")

PIECES = r"about\.json|\d{5}\.(safetensors|jsonl)"
OWN = {  # folder: its files, as regular expressions of their path in it
    "calibration": r"statistics\.(safetensors|json)",
    "teacher": PIECES,
    "answers": rf"\d+/({PIECES})",
    "fidelity": PIECES,
    "checkpoints": r"(recovered|control)/checkpoint-\d+/.+",
    "evaluation": r"\w+\.(json|predictions\.jsonl|fidelity\.json|harness\.json)|\w+\.answers/\d+\.jsonl",
    "sweep": r"table\.json|keep\d+-[0-9a-f]+\.json|original/(" + PIECES + r")"
    r"|calibration/[0-9a-f]+/(manifest\.json|lock|calibration/statistics\.(safetensors|json))",
}


def foreign_files(folder: Path) -> list[str]:
    """Of a folder without a manifest, the names of what a run has not left there; empty where there is no such folder."""
    if not folder.is_dir():
        return []
    inherited = ("answers", "teacher")  # of a round: links to what its run has made
    return sorted(
        path.name + "/" * path.is_dir()
        for path in folder.iterdir()
        if not (BEFORE_A_MANIFEST.fullmatch(path.name) or (path.name in inherited and path.is_symlink()))
    )


def free_name(folder: Path) -> str:
    """A name beside the folder that is not taken: "small-2"."""
    numbered = (f"{folder.name}-{number}" for number in count(2))
    return next(name for name in numbered if not (folder.parent / name).exists())


def own_files(folder: Path, pattern: str) -> list[Path]:
    """The files below `folder` whose path in it matches `pattern`, and half-written ones. Links are not followed."""
    wanted = re.compile(pattern)
    return [
        path
        for path in files_below(folder)
        if wanted.fullmatch(path.relative_to(folder).as_posix()) or TEMPORARY.fullmatch(path.name)
    ]


def listed_files(folder: Path, sizes: Mapping[str, int]) -> list[Path]:
    """Those of `sizes` (by path in `folder`) that are still of their size: what has been put there since, or changed, is not."""
    found = (folder / name for name in sizes)
    return [path for path in found if path.is_file() and path.stat().st_size == sizes[path.relative_to(folder).as_posix()]]


def files_below(folder: Path) -> list[Path]:
    """Every file below `folder`, links as they are; none where it is itself a link."""
    if folder.is_symlink():
        return []
    return [Path(at, name) for at, _, names in os.walk(folder) for name in sorted(names)]


def sizes_of(folder: Path) -> dict[str, int]:
    """The size in bytes of every file below `folder`, by its path in it."""
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files_below(folder) if path.is_file()}


def bytes_of(paths: Iterable[Path]) -> int:
    """What files take on disk, links not followed."""
    return sum(status.st_size for path in paths if stat.S_ISREG((status := path.lstat()).st_mode))


def remove_files(paths: Iterable[Path], folder: Path) -> list[Path]:
    """Removes the files, and `folder` with the folders below it as far as they are empty then. Returns what is left in it."""
    for path in paths:
        path.unlink(missing_ok=True)
    if folder.is_symlink() or not folder.is_dir():
        return []
    for at, _, _ in os.walk(folder, topdown=False):
        if not os.listdir(at):
            os.rmdir(at)
    return files_below(folder)


def remove_half_written(run: Path) -> None:
    """Of a run directory what a kill left under temporary names. In its rounds there are runs that remove theirs themselves."""
    for name in UNFINISHED_FOLDERS:
        shutil.rmtree(run / name, ignore_errors=True)
    below = [path for name in (*OWN, "pruned.tmp") for path in files_below(run / name) if TEMPORARY.fullmatch(path.name)]
    near = [path for path in run.glob("*.tmp") if path.is_file() and TEMPORARY_AT_THE_TOP.fullmatch(path.name)]
    beside_weights = [path for name in IN_WHOLE_CHECKPOINTS for path in run.glob(f"*/{name}")]
    for left in (*near, *below, *beside_weights):
        left.unlink(missing_ok=True)


def remove_own(folder: Path, pattern: str) -> list[Path]:
    """Removes what of `folder` is the product's own; returns what is left: somebody else's."""
    return remove_files(own_files(folder, pattern), folder)
