"""Files: written whole or not at all (under a temporary name first), a full disk explained, and fingerprints, which identify
settings, files and sources, so that finished work is recognised. Folders are in signed_folders.py."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from errno import EDQUOT, EFBIG, ENOSPC
from pathlib import Path
from typing import Any

from rich.markup import escape

from toolkit.runtime.distributed import say
from toolkit.runtime.errors import PollardError

JsonObject = dict[str, Any]  # the content of a JSON or YAML file: what is inside is known to who wrote it
DISK_FULL_ERRORS = (ENOSPC, EDQUOT, EFBIG)  # the disk, this user's share of it, or what one file may have
RESUME_ADVICE = "Files that are whole are kept: make room, and the same command goes on from there."


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Replaces the file's content atomically."""
    partial = Path(f"{os.fspath(path)}.tmp")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def set_aside(path: Path) -> Path:
    """Renames a file that somebody has edited (recipe.edited.yaml), reports it, and returns the new path."""
    candidates = (path.with_name(f"{path.stem}.edited{number}{path.suffix}") for number in ("", *range(2, 1000)))
    kept = next(at for at in candidates if not at.exists())
    path.rename(kept)
    say(f"{escape(str(path))} was edited by hand: kept as {escape(str(kept))}")
    return kept


@contextmanager
def explain_full_disk(target: Path, advice: Callable[[], str]) -> Iterator[None]:
    """Inside, the error of a full disk while `target` is written becomes a PollardError that says how much room there is and
    ends with `advice()`. Every other error passes."""
    try:
        yield
    except PollardError:  # explained already
        raise
    except Exception as error:
        reason = _no_room(error)
        if reason is None:
            raise
        there = next(path for path in (target, *target.absolute().parents) if path.exists())
        free = shutil.disk_usage(there).free
        raise PollardError(
            f"Cannot write {target}: {reason} ({free / 1e9:,.1f} GB free there). {advice()}", code="files.disk-full"
        ) from error


def _no_room(error: Exception) -> str | None:
    """The system's message, if the disk was full; None for other errors."""
    if isinstance(error, OSError):
        return os.strerror(error.errno) if error.errno in DISK_FULL_ERRORS else None
    if words := full_disk_words(str(error)):  # libraries quote them in errors of their own
        return words
    # torch forgets them
    failed = re.search(r"inline_container.*\] \. (unexpected pos|PytorchStreamWriter failed writing)", str(error))
    return "the file could not be written to its end" if failed else None


def full_disk_words(text: str) -> str | None:
    """The system's words for a full disk, where a program's output has them."""
    return next((words for words in map(os.strerror, DISK_FULL_ERRORS) if words in text), None)


def fingerprint_of(*parts: Any) -> str:
    """A short hash of JSON-able values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def fingerprint_of_path(path: str | Path) -> Any:
    """What identifies a local file or folder: contents, or size and time of files too large to read for this."""
    path = Path(path)
    if path.is_dir():
        return {file.name: fingerprint_of_path(file) for file in sorted(path.iterdir()) if file.is_file()}
    stat = path.stat()
    if stat.st_size > 64 * 2**20:
        return [stat.st_size, stat.st_mtime_ns]
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def fingerprint_of_source(name: str) -> Any:
    """Identity of a model or data source: the content of a local one, the name of one on the hub."""
    try:
        return fingerprint_of_path(name)
    except OSError:
        return name
