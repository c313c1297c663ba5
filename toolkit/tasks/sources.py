"""Where data come from: files, or a split of a data set from the hub or a folder, as lines with their places.

Plain text, without questions and answers, may be a source of calibration data and of a sweep's off-task measure:

{"text": "The harbour of Odense was dug in 1803 and …"}      a line of a .jsonl file, or of any other data file
paragraphs, with empty lines between them                    a .txt file
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from glob import has_magic
from pathlib import Path
from typing import Any

from toolkit.runtime.errors import PollardError, first_of
from toolkit.runtime.files import fingerprint_of_path
from toolkit.tasks.data_files import ENDINGS, NOT_UTF8, Source, ending_of, files_of, is_saved_by_datasets, is_utf8, open_text
from toolkit.tasks.file_formats import NARROW_TYPES, Line, class_names_of, read_file, with_narrow_numbers
from toolkit.tasks.templates import Row, check_texts, fields_in


@dataclass(frozen=True)
class Lines:
    """The lines of a source, in its order. `class_names`: the classes of columns that number them (ClassLabel)."""

    lines: list[Line]
    class_names: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def columns(self) -> list[Row]:
        """The columns of the lines that could be read."""
        return [row for _, row in self.lines if isinstance(row, dict)]


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
        raise PollardError(f"Cannot read {folder}, which `datasets` has saved: {error}", code="data.unreadable") from error


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
            "task.train=… task.test=…",
            code="data.hub",
        ) from error


def _of_folder(folder: str, subset: str | None, split: str) -> Lines | None:
    """A split of a folder's data files, as `datasets` tells splits by the names of files or the folder's README, and with its
    grammar of parts ("train[:10%]+test"); None where not all of them are data files of ours."""
    from datasets import ReadInstruction, load_dataset_builder

    if is_saved_by_datasets(Path(folder) / split):
        return _saved_by_datasets(f"{folder}/{split}", f"{folder} {split}")
    if is_saved_by_datasets(Path(folder)):
        raise PollardError(
            f"{folder} holds a single split, without a name: say `task.train: {folder}` or `task.test: {folder}`.",
            code="data.no-split",
        )
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
        raise PollardError(
            f"Cannot read the data set in {folder} (subset {subset}, split {split}): {error}", code="data.unreadable"
        ) from error
    names = {column: classes for lines in read.values() for column, classes in lines.class_names.items()}
    return Lines([line for part in parts for line in read[part.splitname].lines[part.from_ : part.to]], names)


def _rows(dataset: Any, name: str) -> Lines:
    names = {column: kind.names for column, kind in dataset.features.items() if hasattr(kind, "int2str")}
    narrow = {column: dtype for column, kind in dataset.features.items() if (dtype := getattr(kind, "dtype", "")) in NARROW_TYPES}
    return Lines([(f"{name}, row {number}", with_narrow_numbers(dict(row), narrow)) for number, row in enumerate(dataset)], names)


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


TEXT_ENDINGS = (*ENDINGS, ".txt")


def read_texts(path: str) -> list[str]:
    """The texts in data files or a .txt file. Raises PollardError for another kind of file, and for one without text."""
    several = has_magic(path) or Path(path).is_dir()
    texts = []
    for file in files_of(path) if several or ending_of(path) in TEXT_ENDINGS else [path]:
        if ending_of(file) not in TEXT_ENDINGS and not Path(file).is_dir():
            raise PollardError(
                f"{file} is no text file: plain text is a .jsonl file (a `text` in every line) or a .txt file.",
                code="text.other-file",
            )
        texts += _paragraphs(file) if ending_of(file) == ".txt" else _texts_in(file)
    found = [text.strip() for text in texts if text.strip()]
    if not found:
        raise PollardError(f"{path} is empty: it holds no text.", code="text.empty")
    return found


def _paragraphs(path: str) -> list[str]:
    try:
        with open_text(path) as file:
            text = file.read()
    except (OSError, EOFError) as error:
        raise PollardError(
            f"Cannot read {path}: {error}. Give the path of a text file, relative to where you start.", code="data.unreadable"
        ) from None
    if not is_utf8(text):
        raise PollardError(f"Cannot read {path}: {NOT_UTF8}", code="data.not-utf8")
    return re.split(r"\n\s*\n", text)


def _texts_in(path: str) -> list[str]:
    """The column `text` of data files. Raises PollardError with the first of the lines that have none."""
    texts, faults = [], []
    for where, row in read_files(path).lines:
        try:
            texts.append(_text_of_line(where, row))
        except PollardError as error:
            faults.append(error)
    if faults:
        raise PollardError(first_of(list(map(str, faults))), code=shared_code(faults))
    return texts


def _text_of_line(where: str, row: Row | str) -> str:
    if isinstance(row, str):
        raise bad_line(where, row)
    text = row.get("text")
    if not isinstance(text, str):
        raise PollardError(
            f"{where}: plain text is read from the field `text`. Fields there: {fields_in(row)}.", code="text.no-field"
        )
    check_texts("text", text, where)
    return text


def bad_line(where: str, problem: str) -> PollardError:
    return PollardError(f"{where}: {problem}", code="data.bad-line")


def shared_code(faults: Sequence[PollardError]) -> str:
    """The code of many lines' faults where all are of one kind."""
    codes = {fault.code for fault in faults}
    return codes.pop() if len(codes) == 1 else "data.bad-lines"
