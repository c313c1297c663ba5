"""Write whole or not at all: everything goes to a temporary name first and is renamed when it is complete."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Replaces the file's content atomically."""
    partial = Path(f"{os.fspath(path)}.tmp")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


@contextmanager
def whole_folder(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields an empty folder that becomes `target` (replacing what was there) only if the block ends well."""
    target = Path(target)
    partial = target.with_name(target.name + ".tmp")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    put_in_place(partial, target)


def put_in_place(partial: Path, target: Path) -> None:
    """A folder that is whole gets its name, in place of what was there."""
    shutil.rmtree(target, ignore_errors=True)
    partial.replace(target)
