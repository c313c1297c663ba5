"""Text files, packed or not, and what is no text."""

import bz2
import gzip
import importlib
import io
import lzma
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from toolkit.runtime.errors import PollardError
from toolkit.tasks.data_files import READ, TABLES, ending_of

OPEN: dict[str, Callable[[str], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
NO_UTF8 = re.compile("[\udc80-\udcff]")  # what Python makes of such bytes
SIGNATURES = {  # what a file of another kind begins with
    b"\x1f\x8b": "packed by gzip: its name must end with .gz",
    b"BZh9": "packed by bzip2: its name must end with .bz2",
    b"\xfd7zXZ": "packed by xz: its name must end with .xz",
    b"(\xb5/\xfd": "packed by Zstandard: its name must end with .zst",
    b"PAR1\x15": "Parquet: its name must end with .parquet",
    b"PK\x03\x04": "a ZIP archive or an Excel file: unpack it, or save the table as CSV",
}
NOT_UTF8 = "not UTF-8 text: convert the file, for example with `iconv -f LATIN1 -t UTF-8`."


@contextmanager
def opened(path: str) -> Iterator[TextIO]:
    """A text file, packed or not; bytes that are no UTF-8 come as lone surrogates (`is_utf8`)."""
    packed = Path(path).suffix.lower()
    if packed == ".zst":
        try:
            opener: Callable[[str], Any] = importlib.import_module("zstandard").open
        except ImportError:
            raise PollardError(f"Cannot read {path}: Python needs a package for .zst, `pip install zstandard`.") from None
    else:
        opener = OPEN.get(packed, io.FileIO)
    with opener(path) as found, io.BufferedReader(found) as file:
        start = file.peek(1024)[:1024]
        if kind := next((kind for sign, kind in SIGNATURES.items() if start.startswith(sign)), ""):
            raise PollardError(f"Cannot read {path}: it is no UTF-8 text, but {kind}.")
        if start.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in start:
            raise PollardError(
                f"Cannot read {path}: it is no UTF-8 text, but UTF-16 or no text at all. Data files are {READ}. "
                f"To convert UTF-16: iconv -f UTF-16 -t UTF-8 {path} > converted{ending_of(path)}"
            )
        yield io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline=None if is_json(path) else "")


def is_json(path: str) -> bool:
    return ending_of(path) not in TABLES


def is_utf8(text: str) -> bool:
    return text.isascii() or not NO_UTF8.search(text)
