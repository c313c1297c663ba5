import bz2
import gzip
import json
import lzma
import socket
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
from conftest import raises

from toolkit.runtime.errors import PollardError
from toolkit.tasks.sources import Lines, fingerprint_of_data, read_files, read_hub
from toolkit.tasks.templates import text_of

zipped = partial(gzip.compress, mtime=0)  # the same bytes in every process: they name the tests

ROWS = [{"q": 'é, "one" \nand more', "a": "1"}, {"q": "two", "a": "007"}, {"q": "", "a": "NA"}]


def written(path: Path, content: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def read(path: Path, content: str | bytes) -> list[tuple[str, Any]]:
    """The lines of a file, each by where it stood in it."""
    return [(where.replace(f"{path}, ", ""), columns) for where, columns in read_files(written(path, content)).lines]


def refusal(source: Any) -> str:
    with pytest.raises(PollardError) as caught:
        read_files(source)
    return str(caught.value)


def as_lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def as_csv(between: str) -> str:
    quoted = [[f'"{cell}"' for cell in (row["q"].replace('"', '""'), row["a"])] for row in ROWS]
    return "\n".join(between.join(cells) for cells in [["q", "a"], *quoted]) + "\n"


def as_table(path: Path) -> None:
    pa.parquet.write_table(pa.Table.from_pylist(ROWS), path)


def as_feather(path: Path) -> None:
    pa.feather.write_feather(pa.Table.from_pylist(ROWS), path)


def as_stream(path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


FORMS: dict[str, str | bytes | Callable[[Path], None]] = {
    "a.jsonl": as_lines(ROWS),
    "windows.jsonl": as_lines(ROWS).replace("\n", "\r\n"),
    "marked.jsonl": "\ufeff" + as_lines(ROWS),
    "spaced.ndjson": "\n \n" + as_lines(ROWS),
    "no-ending": as_lines(ROWS),
    "lines.json": as_lines(ROWS),
    "array.json": json.dumps(ROWS, indent=1),
    "one-line.json": json.dumps(ROWS),
    "array.jsonl": json.dumps(ROWS, indent=1),
    "under-a-key.json": json.dumps({"version": "1.1", "sizes": [3], "data": ROWS}),
    "under-a-key-indented.json": json.dumps({"version": "1.1", "data": ROWS}, indent=1),
    "a.jsonl.gz": zipped(as_lines(ROWS).encode()),
    "a.json.gz": zipped(json.dumps(ROWS).encode()),
    "a.jsonl.bz2": bz2.compress(as_lines(ROWS).encode()),
    "a.csv.xz": lzma.compress(as_csv(",").encode()),
    "a.csv": as_csv(","),
    "windows.csv": as_csv(",").replace('"\n', '"\r\n'),
    "european.csv": "\ufeff" + as_csv(";"),
    "A.CSV": as_csv(","),
    "a.tsv": as_csv("\t"),
    "a.parquet": as_table,
    "a.feather": as_feather,
    "a.arrow": as_stream,
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_a_file_holds_the_same_rows_and_changes_none(tmp_path: Path, name: str) -> None:
    content, path = FORMS[name], tmp_path / name
    if isinstance(content, str | bytes):
        written(path, content)
    else:
        content(path)
    assert read_files(str(path)).columns == ROWS


@pytest.mark.parametrize(
    ("name", "content", "places"),
    [
        ("a.jsonl", '{"a": 1}\n\n   \n{"a": 2}\n', ["line 1", "line 4"]),
        ("a.jsonl.gz", zipped(b'{"a": 1}\n\n{"a": 2}'), ["line 1", "line 3"]),
        ("a.json", '[{"a": 1}, {"a": 2}]', ["item 1", "item 2"]),
        ("a.json", '{"data": [{"a": 1}, {"a": 2}]}', ["item 1 of data", "item 2 of data"]),
        ("a.csv", 'a\n"1\n1"\n\n2\n', ["line 2", "line 5"]),
    ],
)
def test_rows_remember_where_they_stood(tmp_path: Path, name: str, content: str | bytes, places: list[str]) -> None:
    assert [where for where, _ in read(tmp_path / name, content)] == places


def test_rows_of_tables_count_from_0(tmp_path: Path) -> None:
    as_table(tmp_path / "a.parquet")
    assert read_files(str(tmp_path / "a.parquet")).lines[2] == (f"{tmp_path}/a.parquet, row 2", ROWS[2])


@pytest.mark.parametrize(
    ("name", "content", "place", "fault"),
    [
        ("a.jsonl", '{"a": 1}\n\n{\'a\': 1}\n{"a": 2}\n', "line 3", "not valid JSON"),
        ("a.jsonl", '{"a": 1}\n{\n', "line 2", "not valid JSON"),
        ("a.jsonl", '{"a": 1}\n[1]\n', "line 2", "holds list, not a JSON object"),
        ("a.jsonl", '{"a": 1}\n{"a": 1} {"a": 2}\n', "line 2", "not valid JSON (Extra data"),
        ("a.jsonl", '{"a": 1}\n{"a": 1, "b": {"c": 1, "c": 2}}\n', "line 2", "an object has the key 'c' twice"),
        ("a.jsonl", '{"a": 1}\n{"a": "\0"}\n' + " " * 2000, "line 2", "no UTF-8 text, but UTF-16"),
        ("a.jsonl", b'{"a": 1}\n{"a": "caf\xe9"}\n', "line 2", "not UTF-8 text"),
        ("a.jsonl", '{"a": 1}\n{"a": ' + "[" * 9000 + "]" * 9000 + "}\n", "line 2", "nested too deeply"),
        ("a.json", '[{"a": 1}, "x"]', "item 2", "holds str, not a JSON object"),
        ("a.csv", "a,b\n1,2\n1,2,3\n4,5\n", "line 3", "3 cells where the header names 2 columns."),
        ("a.csv", "a,b\n1,2\n1\n4,5\n", "line 3", "1 cell where the header names 2 columns."),
        ("a.csv", 'a,b\n1,2\n1,"2"3\n4,5\n', "line 3", "not valid CSV"),
        ("a.csv", 'a,b\n1,2\n1,"2\n', "line 3", "not valid CSV (unexpected end of data)"),
        ("a.csv", b"a,b\n1,2\n1,caf\xe9\n4,5\n", "line 3", "not UTF-8 text"),
    ],
)
def test_a_line_that_cannot_be_read_is_one_among_others(
    tmp_path: Path, name: str, content: str | bytes, place: str, fault: str
) -> None:
    if "UTF-16" in fault:
        assert fault in refusal(written(tmp_path / name, content))
        return
    lines = read(tmp_path / name, content)
    assert isinstance(lines[0][1], dict)
    ((where, said),) = [(where, columns) for where, columns in lines if isinstance(columns, str)]
    assert where == place and fault in said


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("a.json", '[{"a": 1},\n{"a": 2]', "a.json: not valid JSON (Expecting ',' delimiter: line 2"),
        ("a.json", '{"x": [{"a": 1}], "y": [{"a": 1}]}', "holds several lists of objects (x, y)"),
        ("a.json", "[\n" + "[" * 9000, "Cannot read a.json: it is nested too deeply."),
        ("a.jsonl.gz", '{"a": 1}\n', "Cannot read a.jsonl.gz: Not a gzipped file"),
        ("a.jsonl.gz", zipped(b'{"a": 1}\n' * 999)[:-20], "Cannot read a.jsonl.gz: Compressed file ended"),
        ("a.jsonl.bz2", b"x" * 99, "Cannot read a.jsonl.bz2: Invalid data stream"),
        ("a.jsonl.zst", b"x" * 99, "Cannot read a.jsonl.zst: "),
        ("a.parquet", b"x" * 99, "Cannot read a.parquet: "),
        ("a.arrow", b"x" * 99, "Cannot read a.arrow: "),
        ("a.csv", "a,b,a\n1,2,3\n", "Cannot read a.csv: its header names 'a' twice."),
        ("a.jsonl", as_lines(ROWS).encode("utf-16"), "iconv -f UTF-16 -t UTF-8 a.jsonl > converted.jsonl"),
        ("a.csv", as_csv(",").encode("utf-16-le"), "iconv -f UTF-16 -t UTF-8 a.csv > converted.csv"),
        ("a.xlsx", b"PK\x03\x04\0\0", "Cannot read a.xlsx: it is no UTF-8 text, but a ZIP archive or an Excel file"),
        (
            "a.jsonl",
            zipped(b'{"a": 1}\n'),
            "Cannot read a.jsonl: it is no UTF-8 text, but packed by gzip: its name must end with .gz.",
        ),
        ("a.csv", b"PAR1\x15\x04", "Cannot read a.csv: it is no UTF-8 text, but Parquet: its name must end with .parquet."),
        ("notes", "What I know of it.\n", "Cannot read notes: it holds no JSON, and by its name it is no data file (.jsonl, "),
    ],
)
def test_a_file_that_cannot_be_read_is_explained(tmp_path: Path, name: str, content: str | bytes, fault: str) -> None:
    assert fault in refusal(written(tmp_path / name, content)).replace(f"{tmp_path}/", "")


TABS = [{"a": '"1', "b": "2"}, {"a": 'said "x"', "b": "3"}, {"a": '"y" or z', "b": "4"}]


# A quote that is never closed hides all that follows: left out or not, each of its lines is counted.
@pytest.mark.parametrize(
    ("content", "good", "bad"),
    [
        ('a,b\n1,2\n1,"2\n4,5\n6,7\n', [2], [3, 4, 5]),
        ('a,b\n1,2\n1,"2\n4,5\n6,"7"\n8,9\n', [2, 6], [3, 4, 5]),
        ('a,b\n"1\n2"\n4,5\n', [4], [2, 3]),
    ],
)
def test_every_line_of_a_row_that_is_none_is_counted(tmp_path: Path, content: str, good: list[int], bad: list[int]) -> None:
    lines = read(tmp_path / "a.csv", content)
    assert [where for where, row in lines if isinstance(row, dict)] == [f"line {number}" for number in good]
    assert [where for where, row in lines if isinstance(row, str)] == [f"line {number}" for number in bad]


@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        ("a.csv", '"a, or b";c\nx;"y;z"\n', [{"a, or b": "x", "c": "y;z"}]),
        ("a.csv", "\n \na,b\n1,2\n", [{"a": "1", "b": "2"}]),
        ("a.csv", "PK,b\n1,2\n", [{"PK": "1", "b": "2"}]),
        ("a.tsv", 'a\tb\n"1\t2\nsaid "x"\t3\n"y" or z\t4\n', TABS),
        ("a.tsv", 'a\tb\n"1\t1"\t2\n"3 ""x"""\t4\n', [{"a": "1\t1", "b": "2"}, {"a": '3 "x"', "b": "4"}]),
        ("a.tsv", 'a\tb\n"1\n1"\t2\n', [{"a": "1\n1", "b": "2"}]),
        ("a.json", '{"a": ["x", "y"], "b": [1, 2]}', [{"a": "x", "b": 1}, {"a": "y", "b": 2}]),
        ("a.json", '{\n"a": {"0": "x", "1": "y"},\n"b": {"0": 1, "1": null}}', [{"a": "x", "b": 1}, {"a": "y", "b": None}]),
        ("a.json", '{"a": ["x", "y"], "b": [1]}', [{"a": ["x", "y"], "b": [1]}]),
        ("a.json", '{"a": "x", "b": ["y", "z"]}', [{"a": "x", "b": ["y", "z"]}]),
        ("a.jsonl", '{"a": ["x", "y"], "b": [1, 2]}', [{"a": ["x", "y"], "b": [1, 2]}]),
    ],
)  # fmt: skip
def test_tables_are_read_as_they_were_meant(tmp_path: Path, name: str, content: str, rows: list[dict[str, Any]]) -> None:
    assert [row for _, row in read(tmp_path / name, content)] == rows


def test_an_empty_file_has_no_lines(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.json", "a.csv"):
        assert read(tmp_path / name, "") == []
    assert read(tmp_path / "b.csv", "a,b\n") == read(tmp_path / "b.json", "[]") == []


def test_one_object_is_one_row_where_it_holds_no_rows(tmp_path: Path) -> None:
    chat = {"messages": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Ho."}]}
    assert [row for _, row in read(tmp_path / "a.json", json.dumps(chat))] == [chat]
    assert [row for _, row in read(tmp_path / "b.json", json.dumps(chat, indent=1))] == [chat]


def test_several_files_are_read_in_their_order(tmp_path: Path) -> None:
    b, a = written(tmp_path / "b.jsonl", '{"n": 1}\n'), written(tmp_path / "a.csv", "n\n2\n")
    assert read_files([b, a]).lines == [(f"{b}, line 1", {"n": 1}), (f"{a}, line 2", {"n": "2"})]
    assert [row["n"] for row in read_files(f"{tmp_path}/*").columns] == ["2", 1]
    assert [row["n"] for row in read_files(str(tmp_path)).columns] == ["2", 1]


def test_dates_and_nothing_come_as_what_they_are(tmp_path: Path) -> None:
    pa.parquet.write_table(pa.table({"on": [date(2024, 2, 29), None]}), tmp_path / "a.parquet")
    assert read_files(str(tmp_path / "a.parquet")).columns == [{"on": date(2024, 2, 29)}, {"on": None}]


def test_numbers_of_32_bits_stay_what_they_are(tmp_path: Path) -> None:
    table = pa.table({"x": pa.array([0.1, None], pa.float32()), "y": pa.array([0.1, 0.2], pa.float16())})
    pa.parquet.write_table(table, tmp_path / "a.parquet")
    datasets.Dataset(table).save_to_disk(tmp_path / "saved")
    for source in (tmp_path / "a.parquet", tmp_path / "saved"):
        first, second = read_files(str(source)).columns
        assert (text_of(first["x"]), text_of(first["y"]), second["x"]) == ("0.1", "0.1", None)


def test_a_folder_saved_by_datasets_is_read(tmp_path: Path) -> None:
    data = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": data, "test": data.select([1])}).save_to_disk(tmp_path / "saved")
    assert read_files(str(tmp_path / "saved" / "train")).columns == ROWS
    assert read_hub(str(tmp_path / "saved"), None, "test", None).columns == [ROWS[1]]
    assert "give one of its folders" in refusal(str(tmp_path / "saved"))
    with raises("data.no-split", "task.train: "):
        read_hub(str(tmp_path / "saved" / "train"), None, "train", None)


@pytest.mark.parametrize("names", [("train.csv", "test.csv"), ("train/a.csv", "test/a.csv")])
def test_a_folder_is_a_data_set_whose_splits_the_names_say(tmp_path: Path, names: tuple[str, str]) -> None:
    train, test = (written(tmp_path / name, f"a\n00{number}\n") for number, name in enumerate(names))
    assert read_hub(str(tmp_path), None, "train", None).lines == [(f"{train}, line 2", {"a": "000"})]
    assert read_hub(str(tmp_path), None, "test", None).lines == [(f"{test}, line 2", {"a": "001"})]
    assert read_hub(str(tmp_path), None, "train+test[:100%]", None).columns == [{"a": "000"}, {"a": "001"}]
    assert read_hub(str(tmp_path), None, "train[1:]", None).columns == []
    with raises("data.unreadable", "split validation"):
        read_hub(str(tmp_path), None, "validation", None)


# What the numbers of a data set's own classes mean is known: nobody needs to guess it.
def test_the_names_of_classes_are_read_with_them(tmp_path: Path) -> None:
    kinds = datasets.Features({"label": datasets.ClassLabel(names=["pos", "neg"])})
    data = datasets.Dataset.from_dict({"label": [0, 1]}, features=kinds)
    data.to_parquet(tmp_path / "train.parquet")
    data.save_to_disk(tmp_path / "saved")
    for lines in (read_files(str(tmp_path / "train.parquet")), read_files(str(tmp_path / "saved"))):
        assert lines.class_names == {"label": ["pos", "neg"]} and lines.columns == [{"label": 0}, {"label": 1}]


# conftest.py sets HF_HUB_OFFLINE=1: this must fail without a connection, and say what else could be done.
def test_a_data_set_that_cannot_be_had_says_what_to_try(monkeypatch: pytest.MonkeyPatch) -> None:
    connections: list[object] = []
    monkeypatch.setattr(socket.socket, "connect", lambda _, address: connections.append(address))
    with raises("data.hub") as caught:
        read_hub("nobody/nothing", "main", "train", None)
    assert not connections
    text = str(caught.value)
    assert text.startswith("Cannot load nobody/nothing (subset main, split train) from the hub: ")
    assert "`hf auth login`" in text and "task.train=… task.test=…" in text


def test_the_content_of_every_file_identifies_a_source(tmp_path: Path) -> None:
    a, b = written(tmp_path / "a.jsonl", '{"n": 1}\n'), written(tmp_path / "b.jsonl", '{"n": 2}\n')
    sources: list[Any] = [a, [a, b], f"{tmp_path}/*.jsonl", str(tmp_path)]
    before = [fingerprint_of_data(source) for source in sources]
    written(tmp_path / "b.jsonl", '{"n": 3}\n')
    assert [fingerprint_of_data(source) == old for source, old in zip(sources, before, strict=True)] == [
        True,
        False,
        False,
        False,
    ]
    assert fingerprint_of_data(str(tmp_path / "none.jsonl")) == str(tmp_path / "none.jsonl")


def test_lines_that_were_read_are_told_from_those_that_were_not() -> None:
    assert Lines([("a, line 1", {"a": 1}), ("a, line 2", "not valid JSON.")]).columns == [{"a": 1}]
