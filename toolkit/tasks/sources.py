"""Where examples come from: data files, or a split of a data set from the hub or a folder, as lines that remember where
they stood."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolkit.runtime.errors import PollardError
from toolkit.runtime.files import fingerprint_of_path
from toolkit.tasks.data_files import ENDINGS, Source, ending_of, files_of, is_saved_by_datasets
from toolkit.tasks.file_formats import NARROW, Line, as_narrow, class_names_of, read_file


@dataclass(frozen=True)
class Lines:
    """What a source holds, in its order. `class_names`: of columns that number their classes (ClassLabel), the names."""

    lines: list[Line]
    class_names: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def columns(self) -> list[dict[str, Any]]:
        """Of the lines that could be read."""
        return [columns for _, columns in self.lines if isinstance(columns, dict)]


def read_files(source: Source) -> Lines:
    """All lines of one file or several. Raises PollardError for a file that cannot be read."""
    files = files_of(source)
    if len(files) == 1 and Path(files[0]).is_dir():
        return _saved_by_datasets(files[0], files[0])
    names = class_names_of(files[0]) if files else {}
    return Lines([line for file in files for line in _lines_of(file)], names)


def _lines_of(path: str) -> list[Line]:
    return _saved_by_datasets(path, path).lines if Path(path).is_dir() else list(read_file(path))


def _saved_by_datasets(folder: str, name: str) -> Lines:
    from datasets import load_from_disk

    try:
        return _rows(load_from_disk(folder), name)
    except Exception as error:  # a damaged folder, or one of a newer version
        raise PollardError(f"Cannot read {folder}, which `datasets` has saved: {error}") from error


def read_hub(dataset: str, subset: str | None, split: str, revision: str | None) -> Lines:
    """A split of a data set from the hub, or of a folder; raises PollardError saying what to do when it cannot be had."""
    from datasets import load_dataset

    if Path(dataset).is_dir() and (lines := _of_folder(dataset, subset, split)):
        return lines
    try:
        return _rows(load_dataset(dataset, subset, split=split, revision=revision), f"{dataset} {split}")
    except Exception as error:  # the hub library raises many types; each means the same to a user
        raise PollardError(
            f"Cannot load {dataset} (subset {subset}, split {split}) from the hub: {error}\n"
            "Check the name and the network, run `hf auth login` for a gated data set, or give local data files: "
            "task.train=… task.test=…"
        ) from error


def _of_folder(folder: str, subset: str | None, split: str) -> Lines | None:
    """A split of a folder's data files, as `datasets` tells splits by the names of files or the folder's README, and with its
    grammar of parts ("train[:10%]+test"); None where not all of them are data files of ours."""
    from datasets import ReadInstruction, load_dataset_builder

    if is_saved_by_datasets(Path(folder) / split):
        return _saved_by_datasets(f"{folder}/{split}", f"{folder} {split}")
    if is_saved_by_datasets(Path(folder)):
        raise PollardError(f"{folder} holds a single split, without a name: say `task.train: {folder}` or `task.test: {folder}`.")
    try:
        found = load_dataset_builder(folder, subset).config.data_files or {}
        files = {name: [str(file) for file in found[name]] for name in found if name in re.split(r"[^\w.-]", split)}
        if not all(ending_of(file) in ENDINGS for name in files for file in files[name]):
            return None
        read = {name: read_files(files[name]) for name in files}
        parts = ReadInstruction.from_spec(split).to_absolute({name: len(lines.lines) for name, lines in read.items()})
    except PollardError:
        raise
    except Exception as error:
        raise PollardError(f"Cannot read the data set in {folder} (subset {subset}, split {split}): {error}") from error
    names = {column: classes for lines in read.values() for column, classes in lines.class_names.items()}
    return Lines([line for part in parts for line in read[part.splitname].lines[part.from_ : part.to]], names)


def _rows(dataset: Any, name: str) -> Lines:
    names = {column: kind.names for column, kind in dataset.features.items() if hasattr(kind, "int2str")}
    narrow = {column: dtype for column, kind in dataset.features.items() if (dtype := getattr(kind, "dtype", "")) in NARROW}
    return Lines([(f"{name}, row {number}", as_narrow(dict(row), narrow)) for number, row in enumerate(dataset)], names)


def fingerprint_of_data(source: Source) -> Any:
    """What identifies the content of data files, whatever their names; the name of what is not there."""
    try:
        found = [fingerprint_of_path(file) for file in files_of(source)]
    except (OSError, PollardError):
        return source
    return found[0] if len(found) == 1 else found


def fingerprint_of_folder(folder: str) -> Any:
    """What identifies a folder with a data set: all its files, in folders below, too."""
    paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): fingerprint_of_path(path) for path in paths}
