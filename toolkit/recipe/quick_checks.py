"""Further mistakes of a recipe that has one already, as far as they can be found at once: missing files, and unknown fields of
the trainer. So a user mends several keys in one go. The checks before a run find the rest.

Nothing is imported for it: the trainer's fields are read from the source of trl and transformers.
"""

import ast
import glob
import os
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from toolkit.runtime.errors import did_you_mean

TRAINER = {  # the classes that SFTConfig is made of, by package and file
    "SFTConfig": ("trl", "trainer/sft_config.py"),
    "_BaseConfig": ("trl", "trainer/base_config.py"),
    "TrainingArguments": ("transformers", "training_args.py"),
}
DATA = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".feather", ".gz", ".bz2", ".xz", ".zst", ".txt")
Key = tuple[str, ...]


def quick_checks(values: Mapping[str, Any]) -> Iterator[tuple[Key, str]]:
    """Yields each faulty key of a recipe's values, with the reason. Skips values of a wrong type: the schema reports them."""
    model = values.get("model")
    path = model.get("path") if isinstance(model, dict) else model
    if isinstance(path, str) and _is_missing_model(path):
        yield ("model",) if path is model else ("model", "path"), f"there is no folder {path}, and a hub id reads owner/name."
    for section in ((), ("calibration", "data"), ("finetuning", "data")):
        for key, source in _sources(values, section):
            for name in ("train", "test", "text"):
                named = source.get(name)
                for file in [named] if isinstance(named, str) else named if isinstance(named, list) else ():
                    if isinstance(file, str) and _is_missing_file(file):
                        yield (*key, name), f"cannot read {file}: there is no such file, from where you start."
    yield from _trainer(values)


def _sources(values: Mapping[str, Any], section: Key) -> Iterator[tuple[Key, Mapping[str, Any]]]:
    """The recipe's task, or the sources of a mix and their tasks, each with its key."""
    found: Any = values
    for part in section:
        found = found.get(part) if isinstance(found, dict) else None
    items = enumerate(found) if isinstance(found, list) else [(None, found)] if not section else []
    for number, item in items:
        at = section if number is None else (*section, str(number))
        if isinstance(item, dict):
            if number is not None:
                yield at, item
            if isinstance(item.get("task"), dict):
                yield (*at, "task"), item["task"]


def _is_missing_file(name: str) -> bool:
    local = "/" in name or name.lower().endswith(DATA)
    return local and not glob.has_magic(name) and not os.path.exists(os.path.expanduser(name))


def _is_missing_model(path: str) -> bool:
    is_hub_id = path.count("/") == 1 and not path.startswith((".", "~", "/"))
    return not is_hub_id and not os.path.exists(os.path.expanduser(path))


def _trainer(values: Mapping[str, Any]) -> Iterator[tuple[Key, str]]:
    section = values.get("finetuning")
    trainer = section.get("trainer") if isinstance(section, dict) else None
    fields = trainer_fields() if isinstance(trainer, dict) else ()
    for key in trainer if isinstance(trainer, dict) and fields else ():
        if str(key) not in fields:
            yield ("finetuning", "trainer", str(key)), f"it is not a field of trl's SFTConfig{did_you_mean(str(key), fields)}"


@cache
def trainer_fields() -> tuple[str, ...]:
    """The fields that SFTConfig takes; none where the sources are not as expected."""
    fields: list[str] = []
    for name, (package, file) in TRAINER.items():
        spec = find_spec(package)
        try:
            source = (Path(str(spec and spec.origin)).parent / file).read_text(encoding="utf-8")
            body = next(node.body for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == name)
        except (OSError, ValueError, SyntaxError, StopIteration):
            return ()
        fields += [node.target.id for node in body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)]
    return tuple(field for field in dict.fromkeys(fields) if not field.startswith("_"))
