"""How each kind of data file becomes lines that know their places.

    train.jsonl, line 7       train.csv, line 7       as an editor counts them, from 1
    train.json, item 3        of a JSON array, from 1
    train.parquet, row 6      from 0, as pandas and `datasets` count rows

JSON is read by the standard library and not by `datasets`, which fits all lines into one table: there a line has no number,
fields that it lacks become null, and one value of another type stops everything. So is CSV: pandas would read the texts
"007" and "NA" as 7 and as nothing.
"""

import csv
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np

from toolkit.runtime.errors import PollardError
from toolkit.tasks.data_files import (
    COLUMNAR_ENDINGS,
    ENDINGS,
    NOT_UTF8,
    SUPPORTED_FILES,
    TABLE_ENDINGS,
    ending_of,
    is_utf8,
    open_text,
)
from toolkit.tasks.templates import Row

Line = tuple[str, Row | str]  # its place, and its columns, or what is wrong with it

ARROW_TYPES = {"float": "float32", "halffloat": "float16"}  # numpy's names of Arrow's numbers of fewer than 64 bits
NARROW_TYPES = set(ARROW_TYPES.values())
MESSAGE_KEYS = {"role", "from"}  # a list of objects with one of them is a conversation, and no list of lines


def read_file(path: str) -> Iterable[Line]:
    """The lines of a data file. Raises PollardError for a file that cannot be read at all."""
    ending = ending_of(path)
    reader = read_columns if ending in COLUMNAR_ENDINGS else read_table if ending in TABLE_ENDINGS else read_json
    try:
        yield from reader(path)
    except PollardError:
        raise
    except RecursionError:
        raise PollardError(f"Cannot read {path}: it is nested too deeply.", code="data.nested") from None
    except Exception as error:  # every library raises its own for a file that is damaged, or of another kind
        what = str(error) or type(error).__name__
        raise PollardError(
            f"Cannot read {path}: {what}. Data files are {SUPPORTED_FILES}, by the ends of their names.", code="data.unreadable"
        ) from None


def read_json(path: str) -> Iterator[Line]:
    """Objects, one a line; or all of them in one list, which may stand under a key."""
    with open_text(path) as file:
        first = list(islice((line for line in file if line.strip()), 2))
    if _is_document(first, ending_of(path)):
        yield from _document(path)
        return
    if first and ending_of(path) not in ENDINGS and not first[0].lstrip().startswith(("[", "{")):
        raise PollardError(
            f"Cannot read {path}: it holds no JSON, and by its name it is no data file ({SUPPORTED_FILES}).", code="data.no-json"
        )
    with open_text(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield f"{path}, line {number}", _object(line)


def _is_document(first: list[str], ending: str) -> bool:
    """Whether the file is one JSON value, by its first two lines."""
    if not first or not first[0].lstrip().startswith(("[", "{")):
        return False
    try:
        value = json.loads(first[0])
    except RecursionError:
        return False
    except ValueError:
        goes_on = len(first) == 2 and not first[1].lstrip().startswith("{")
        return first[0].lstrip().startswith("[") or (ending == ".json" and goes_on)
    return len(first) == 1 and (
        isinstance(value, list) or (ending == ".json" and (_lists_in(value) != [] or len(_rows_of(value)) > 1))
    )


def _document(path: str) -> Iterator[Line]:
    with open_text(path) as file:
        text = file.read()
    if not is_utf8(text):
        raise PollardError(f"Cannot read {path}: {NOT_UTF8}", code="data.not-utf8")
    try:
        value = json.loads(text, object_pairs_hook=_without_repetition)
    except ValueError as error:
        raise PollardError(f"{path}: not valid JSON ({error}).", code="data.no-json") from None
    key = ""
    if isinstance(value, dict):
        keys = _lists_in(value)
        if len(keys) > 1:
            raise PollardError(
                f"{path} holds several lists of objects ({', '.join(keys)}): write each into a file of its own.",
                code="data.several-lists",
            )
        key, value = (f" of {keys[0]}", value[keys[0]]) if keys else ("", _rows_of(value))
    for number, item in enumerate(value, start=1):
        yield f"{path}, item {number}{key}", item if isinstance(item, dict) else _no_object(item)


def _rows_of(value: Row) -> list[Row]:
    """The rows of a table that is kept by columns, {"q": ["…", "…"], "a": ["…", "…"]}, or as pandas writes it by default,
    {"q": {"0": "…", "1": "…"}, …}; else the object as the only row."""
    columns = list(value.values())
    if columns and all(isinstance(column, dict) and list(column) == [str(n) for n in range(len(column))] for column in columns):
        columns = [list(column.values()) for column in columns]
    is_table = all(isinstance(column, list) and len(column) == len(columns[0]) > 1 for column in columns)
    if (
        not columns
        or not is_table
        or any(isinstance(item, dict) and MESSAGE_KEYS & item.keys() for column in columns for item in column)
    ):
        return [value]
    return [dict(zip(value, cells, strict=True)) for cells in zip(*columns, strict=True)]


def _lists_in(value: Row) -> list[str]:
    """The keys under which lists of objects stand that are no conversations."""
    return [
        key
        for key, items in value.items()
        if isinstance(items, list) and items and all(isinstance(item, dict) and not MESSAGE_KEYS & item.keys() for item in items)
    ]


def _object(line: str) -> Row | str:
    if not is_utf8(line):
        return NOT_UTF8
    try:
        value = json.loads(line, object_pairs_hook=_without_repetition)
    except RecursionError:
        return "nested too deeply to be read."
    except ValueError as error:
        return f"not valid JSON ({error}). Every line must hold one JSON object."
    return value if isinstance(value, dict) else _no_object(value)


def _no_object(value: Any) -> str:
    return f"holds {type(value).__name__}, not a JSON object with columns."


def _without_repetition(pairs: list[tuple[str, Any]]) -> Row:
    """An object whose keys are all different: of two alike, Python would keep the last."""
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"an object has the key {twice!r} twice")
    return row


def read_table(path: str) -> Iterator[Line]:
    """Rows of text under a header, with commas, semicolons or tabs between them. Every cell stays the text that it is.

    Of a row that is none, each line that it reaches over comes by itself: a quote that is never closed hides many.
    """
    csv.field_size_limit(sys.maxsize)  # 128 KiB by default, and a document may be longer
    tabs = ending_of(path) == ".tsv"
    with open_text(path) as file:
        first = next((line for line in file if line.strip()), "")
    unquoted = re.sub('"[^"]*"', "", first)
    between = max("\t,;" if tabs else ",;\t", key=unquoted.count)
    quotes_are_text = tabs and _quotes_are_text(path, between)
    with open_text(path) as file:
        quoting: Any = csv.QUOTE_NONE if quotes_are_text else csv.QUOTE_MINIMAL
        reader = csv.reader(file, delimiter=between, quoting=quoting, strict=True)
        header = next((cells for cells in reader if "".join(cells).strip()), [])
        if twice := [name for name in header if header.count(name) > 1]:
            raise PollardError(f"Cannot read {path}: its header names {twice[0]!r} twice.", code="data.column-twice")
        if not is_utf8("".join(header)):
            raise PollardError(f"Cannot read {path}: {NOT_UTF8}", code="data.not-utf8")
        while True:
            start = reader.line_num + 1
            try:
                cells = next(reader)
                row = _row(header, cells)
            except StopIteration:
                return
            except csv.Error as error:
                row = f"not valid CSV ({error})."
            if row is None:
                continue
            yield f"{path}, line {start}", row
            if isinstance(row, str):
                for number in range(start + 1, reader.line_num + 1):
                    yield f"{path}, line {number}", f"belongs to the row of line {start}, where a quote opens."


def _row(header: list[str], cells: list[str]) -> Row | str | None:
    """A row's columns, or what is wrong with it; None for an empty line, which is none."""
    if not cells:
        return None
    if len(cells) != len(header):
        return f"{_count(cells, 'cell')} where the header names {_count(header, 'column')}."
    return dict(zip(header, cells, strict=True)) if is_utf8("".join(cells)) else NOT_UTF8


def _quotes_are_text(path: str, between: str) -> bool:
    """Whether quotes in a file with tabs are signs like any other, as in many: every line is a row by itself, and in some of
    them a quote that stood around a cell would not close."""
    broken = False
    with open_text(path) as file:
        lines = (line for line in file if line.strip())
        number = next(lines, "").count(between)
        for line in lines:
            if line.count(between) != number:
                return False
            try:
                broken = broken or ('"' in line and not list(csv.reader([line], delimiter=between, strict=True)))
            except csv.Error:
                broken = True
    return broken


def _count(things: list[str], name: str) -> str:
    return f"{len(things)} {name}{'s' * (len(things) != 1)}"


def read_columns(path: str) -> Iterator[Line]:
    """The rows of a Parquet or Arrow (Feather) file, or of a folder that `Dataset.save_to_disk` wrote."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if ending_of(path) == ".parquet":
        with pq.ParquetFile(path) as file:
            yield from _numbered(path, file.schema_arrow, file.iter_batches())
        return
    with pa.memory_map(path) as source:
        try:
            table = pa.ipc.open_file(source).read_all()
        except pa.ArrowInvalid:  # as `datasets` writes them
            source.seek(0)
            table = pa.ipc.open_stream(source).read_all()
        yield from _numbered(path, table.schema, table.to_batches())


def class_names_of(path: str) -> dict[str, list[str]]:
    """The class names of columns that number their classes, in a Parquet file that `datasets` has written."""
    import pyarrow.parquet as pq

    if ending_of(path) != ".parquet":
        return {}
    try:
        about = json.loads((pq.read_schema(path).metadata or {}).get(b"huggingface", b"{}"))
        kinds = about.get("info", {}).get("features", {}).items()
        return {column: kind["names"] for column, kind in kinds if isinstance(kind, dict) and kind.get("_type") == "ClassLabel"}
    except Exception:  # a damaged file is reported where it is read
        return {}


def _numbered(path: str, schema: Any, batches: Iterable[Any]) -> Iterator[Line]:
    if twice := [name for name in schema.names if schema.names.count(name) > 1]:
        raise PollardError(f"Cannot read {path}: it has two columns of the name {twice[0]!r}.", code="data.column-twice")
    kinds = {column.name: ARROW_TYPES.get(str(column.type), "") for column in schema}
    narrow = {name: kind for name, kind in kinds.items() if kind}
    rows = (row for batch in batches for row in batch.to_pylist())
    yield from ((f"{path}, row {number}", with_narrow_numbers(row, narrow)) for number, row in enumerate(rows))


def with_narrow_numbers(row: Row, kinds: Mapping[str, str]) -> Row:
    """The row with numbers of 32 or 16 bits as such: 0.1, which as a number of 64 bits would be 0.10000000149011612."""
    narrow = {name: np.dtype(kind).type(row[name]) for name, kind in kinds.items() if row[name] is not None}
    return row | narrow if narrow else row
