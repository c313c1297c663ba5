"""Long work in shards, one file each, divided among the ranks. After a kill only the missing ones are made.

teacher/about.json  teacher/00000.safetensors  teacher/00001.safetensors  …
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from toolkit.runtime.distributed import on_all_ranks, on_main, shard
from toolkit.runtime.files import RESUME_ADVICE, JsonObject, explain_full_disk, write_text
from toolkit.runtime.progress import progress
from toolkit.runtime.run_files import remove_matching

ABOUT_FILE = "about.json"


def shard_path(folder: Path, number: int, suffix: str) -> Path:
    return folder / f"{number:05}{suffix}"


def missing_shards(folder: Path, about: JsonObject, count: int, suffix: str) -> list[int]:
    """The numbers of the shards that are still to be made. Shards made for other settings than `about` are removed first; other
    files of the folder are not touched."""

    def prepare() -> list[int]:
        path = folder / ABOUT_FILE
        if read_about(folder) != about:
            if folder.is_dir():
                remove_matching(folder, rf"{re.escape(ABOUT_FILE)}|\d{{5}}{re.escape(suffix)}(\.tmp)?")
            folder.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(about, indent=1) + "\n")
        return [number for number in range(count) if not shard_path(folder, number, suffix).exists()]

    return on_main(prepare)


def read_about(folder: Path) -> Any:
    """The settings that the folder's shards were made for; None if they cannot be read."""
    try:
        return json.loads((folder / ABOUT_FILE).read_text())
    except (OSError, ValueError):
        return None


def make_shards(folder: Path, missing: list[int], suffix: str, make: Callable[[int, Path], None], description: str) -> None:
    """Every rank makes its part of the `missing` shards; `make(number, path)` writes one.

    What one rank raises is raised on every rank. `make` must not wait for other ranks.
    """

    def make_mine() -> None:
        for number in progress(shard(missing), description, total=len(missing)):
            path = shard_path(folder, number, suffix)
            partial = path.with_name(path.name + ".tmp")
            with explain_full_disk(path, lambda: RESUME_ADVICE):  # on the rank that fails; the others raise the same
                make(number, partial)
            partial.replace(path)

    on_all_ranks(make_mine)
