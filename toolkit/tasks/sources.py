"""Where examples come from: a local JSONL file or a split of a hub data set, as rows that remember where they stood."""

import json
from pathlib import Path
from typing import Any

from toolkit.errors import PollardError

Row = tuple[str, dict[str, Any]]  # where ("train.jsonl, line 7"), columns


def is_local(name: str) -> bool:
    """Whether `name` means a file rather than a split of a hub data set."""
    return name.endswith((".jsonl", ".json")) or "/" in name


def read_jsonl(path: str) -> list[Row]:
    """The objects of a JSONL file; raises PollardError naming file and line of the first that is none."""
    rows: list[Row] = []
    try:
        with Path(path).open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                where = f"{path}, line {number}"
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise PollardError(f"{where}: not valid JSON ({error}). Every line must hold one JSON object.") from None
                if not isinstance(row, dict):
                    raise PollardError(f"{where}: holds {type(row).__name__}, not a JSON object with columns.")
                rows.append((where, row))
    except (OSError, UnicodeDecodeError) as error:
        raise PollardError(f"Cannot read {path}: {error}. Give the path of a JSONL file, relative to where you start.") from None
    return rows


def read_hub(dataset: str, subset: str | None, split: str, revision: str | None) -> list[Row]:
    """The rows of a hub split; raises PollardError saying what to do when it cannot be had."""
    from datasets import load_dataset

    try:
        rows = load_dataset(dataset, subset, split=split, revision=revision)
    except Exception as error:  # the hub library raises many types; each means the same to a user
        raise PollardError(
            f"Cannot load {dataset} (subset {subset}, split {split}) from the hub: {error}\n"
            "Check the name and the network, run `hf auth login` for a gated data set, or give local JSONL files: "
            "task.train=… task.test=…"
        ) from error
    return [(f"{dataset} {split}, row {number}", dict(row)) for number, row in enumerate(rows)]
