"""Which data files a name in a recipe stands for, and text files opened, compressed or not.

train: tickets.csv
train: [january.jsonl, february.jsonl.gz]
train: "logs/2024-*.parquet"                 in the order of their names
train: exports/                              every data file in it
"""

import bz2
import glob
import gzip
import importlib
import io
import lzma
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from toolkit.runtime.errors import PollardError

JSON_ENDINGS, TABLE_ENDINGS, COLUMNAR_ENDINGS = (
    (".jsonl", ".ndjson", ".json"),
    (".csv", ".tsv"),
    (".parquet", ".arrow", ".feather"),
)
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
ENDINGS = (*JSON_ENDINGS, *TABLE_ENDINGS, *COLUMNAR_ENDINGS)
SUPPORTED_FILES = f"{', '.join(ENDINGS)}, the first five also with {', '.join(COMPRESSED)}"  # for messages
METADATA_FILES = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}  # written by `datasets`
IGNORED_ENDINGS = (".md", ".py", ".yaml", ".yml", ".lock")  # other files in folders of data
PATH_HINT = "Give its path relative to where you start, {}."
SPLITS = {
    "train": re.compile(r"(?:^|[^a-z])train(?:ing)?(?:[^a-z]|$)"),
    "validation": re.compile(r"(?:^|[^a-z])(?:validation|valid|val|dev)(?:[^a-z]|$)"),
    "test": re.compile(r"(?:^|[^a-z])(?:test|testing|eval|evaluation)(?:[^a-z]|$)"),
}

Source = str | Sequence[str]


def ending_of(name: str) -> str:
    """The ending without that of a compression: ".csv" of "A.CSV.gz"."""
    name = name.lower()
    packed = next((ending for ending in COMPRESSED if name.endswith(ending)), "")
    return Path(name.removesuffix(packed)).suffix


def is_local(source: Source) -> bool:
    """Whether a name stands for files, rather than for a split of a hub data set."""
    return not isinstance(source, str) or "/" in source or os.sep in source or ending_of(source) in ENDINGS


def files_of(source: Source) -> list[str]:
    """The files, in the order in which they are read. Raises PollardError for a name that stands for none."""
    names = [source] if isinstance(source, str) else source
    return [file for name in names for file in _files(os.path.expanduser(name))]


def is_saved_by_datasets(folder: Path) -> bool:
    """Whether `Dataset.save_to_disk` wrote the folder."""
    return (folder / "state.json").is_file()


def _files(name: str) -> list[str]:
    path = Path(name)
    try:
        if path.is_dir():
            return _in_folder(path)
        if path.exists():
            return [name]
        if glob.has_magic(name):
            found = sorted(file for file in glob.glob(name, recursive=True) if Path(file).is_file())
            if found:
                return found
            raise PollardError(f"Cannot read {name}: no file matches it. {PATH_HINT.format(Path.cwd())}", code="data.no-match")
    except (OSError, ValueError) as error:  # no permission; a NUL in the name
        raise PollardError(f"Cannot read {name!r}: {error}.", code="data.unreadable") from None
    if "://" in name:
        raise PollardError(
            f"Cannot read {name}: data files are read from this machine. Download it, and name the copy.", code="data.url"
        )
    raise PollardError(f"Cannot read {name}: there is no such file. {PATH_HINT.format(Path.cwd())}", code="data.no-file")


def _in_folder(folder: Path) -> list[str]:
    if is_saved_by_datasets(folder):
        return [str(folder)]
    if (folder / "dataset_dict.json").is_file():
        raise PollardError(
            f"{folder} holds a data set with several splits: give one of its folders, such as {folder}/train.",
            code="data.several-splits",
        )
    data: list[Path] = []
    other: list[Path] = []
    for path in _walk(folder):
        if (
            path.suffix.lower() in IGNORED_ENDINGS
            or path.name in METADATA_FILES
            or path.name.split(".")[0] in ("LICENSE", "README")
        ):
            continue
        (data if ending_of(path.name) in ENDINGS else other).append(path)
    if not data:
        raise PollardError(f"Cannot read {folder}: no file in it is a data file ({SUPPORTED_FILES}).", code="data.no-data-file")
    if other:
        raise PollardError(
            f"{folder} holds {other[0].relative_to(folder)}, which is no data file ({SUPPORTED_FILES}): give a pattern for "
            f"those that are meant, such as {folder}/*{data[0].suffix}.",
            code="data.other-files",
        )
    names = [str(path.relative_to(folder)).lower() for path in data]
    splits = [split for split, pattern in SPLITS.items() if any(map(pattern.search, names))]
    if len(splits) > 1:
        raise PollardError(
            f"{folder} holds several splits ({', '.join(splits)}): say `task.dataset: {folder}` with their names in `task.train` "
            f"and `task.test`, or give a pattern, such as {folder}/train*.",
            code="data.several-splits",
        )
    return [str(path) for path in data]


def _walk(folder: Path) -> list[Path]:
    """All files below, without hidden ones, by name."""
    found: list[Path] = []

    def refuse(error: OSError) -> None:
        raise error

    for at, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith((".", "_"))]
        found += [Path(at) / name for name in names if not name.startswith((".", "_"))]
    return sorted(found)


OPENERS: dict[str, Callable[[str], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
UNDECODABLE = re.compile("[\udc80-\udcff]")  # what `errors="surrogateescape"` makes of bytes that are no UTF-8
SIGNATURES = {  # the first bytes of files that are no text
    b"\x1f\x8b": "packed by gzip: its name must end with .gz",
    b"BZh9": "packed by bzip2: its name must end with .bz2",
    b"\xfd7zXZ": "packed by xz: its name must end with .xz",
    b"(\xb5/\xfd": "packed by Zstandard: its name must end with .zst",
    b"PAR1\x15": "Parquet: its name must end with .parquet",
    b"PK\x03\x04": "a ZIP archive or an Excel file: unpack it, or save the table as CSV",
}
NOT_UTF8 = "not UTF-8 text: convert the file, for example with `iconv -f LATIN1 -t UTF-8`."


@contextmanager
def open_text(path: str) -> Iterator[TextIO]:
    """A text file, compressed or not; bytes that are no UTF-8 come as lone surrogates (`is_utf8`)."""
    packed = Path(path).suffix.lower()
    if packed == ".zst":
        try:
            opener: Callable[[str], Any] = importlib.import_module("zstandard").open
        except ImportError:
            raise PollardError(
                f"Cannot read {path}: Python needs a package for .zst, `pip install zstandard`.", code="data.no-zstandard"
            ) from None
    else:
        opener = OPENERS.get(packed, io.FileIO)
    with opener(path) as raw, io.BufferedReader(raw) as file:
        start = file.peek(1024)[:1024]
        if kind := next((kind for sign, kind in SIGNATURES.items() if start.startswith(sign)), ""):
            raise PollardError(f"Cannot read {path}: it is no UTF-8 text, but {kind}.", code="data.not-text")
        if start.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in start:
            raise PollardError(
                f"Cannot read {path}: it is no UTF-8 text, but UTF-16 or no text at all. Data files are {SUPPORTED_FILES}. "
                f"To convert UTF-16: iconv -f UTF-16 -t UTF-8 {path} > converted{ending_of(path)}",
                code="data.not-text",
            )
        yield io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline=None if is_json(path) else "")


def is_json(path: str) -> bool:
    return ending_of(path) not in TABLE_ENDINGS


def is_utf8(text: str) -> bool:
    return text.isascii() or not UNDECODABLE.search(text)
