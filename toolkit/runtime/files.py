"""Write a file whole or not at all, under a temporary name first; and what to say of a full disk. Folders: folders.py."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from errno import EDQUOT, EFBIG, ENOSPC
from pathlib import Path

from rich.markup import escape

from toolkit.runtime.distributed import say
from toolkit.runtime.errors import PollardError

FULL = (ENOSPC, EDQUOT, EFBIG)  # the disk, this user's share of it, or what one file may have
KEPT = "Files that are whole are kept: make room, and the same command goes on from there."


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Replaces the file's content atomically."""
    partial = Path(f"{os.fspath(path)}.tmp")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def kept_aside(path: Path) -> Path:
    """Gives a file that somebody has edited another name (recipe.edited.yaml), which is said, and returned."""
    numbered = (path.with_name(f"{path.stem}.edited{number}{path.suffix}") for number in ("", *range(2, 1000)))
    kept = next(at for at in numbered if not at.exists())
    path.rename(kept)
    say(f"{escape(str(path))} was edited by hand: kept as {escape(str(kept))}")
    return kept


@contextmanager
def explained_full_disk(target: Path, then: Callable[[], str]) -> Iterator[None]:
    """What a full disk refuses while `target` is written, as a PollardError: how much room there is, and what to do (`then`).

    Every other error passes.
    """
    try:
        yield
    except PollardError:  # told already
        raise
    except Exception as error:
        reason = _no_room(error)
        if reason is None:
            raise
        there = next(path for path in (target, *target.absolute().parents) if path.exists())
        free = shutil.disk_usage(there).free
        raise PollardError(f"Cannot write {target}: {reason} ({free / 1e9:,.1f} GB free there). {then()}") from error


def _no_room(error: Exception) -> str | None:
    """The system's words, where there was no room for a file."""
    if isinstance(error, OSError):
        return os.strerror(error.errno) if error.errno in FULL else None
    for words in map(os.strerror, FULL):  # libraries quote them in errors of their own
        if words in str(error):
            return words
    # torch forgets them
    failed = re.search(r"inline_container.*\] \. (unexpected pos|PytorchStreamWriter failed writing)", str(error))
    return "the file could not be written to its end" if failed else None
