"""Conversations with tools mean the same in every file and shape that they are published in."""

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from toolkit.tasks.conversation import Conversation, conversation_in
from toolkit.tasks.sources import read_files

ARGUMENTS = json.dumps({"city": "Bern"})
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
CALL = {"type": "function", "function": {"name": "weather", "arguments": ARGUMENTS}}
OPENAI = [
    {"messages": [{"role": "user", "content": "Weather?"}, {"role": "assistant", "content": None, "tool_calls": [CALL]}]},
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello", "tool_calls": None}]},
]
CALLED = json.dumps({"name": "weather", "arguments": {"city": "Bern"}})
SHAREGPT = [
    {"conversations": [{"from": "human", "value": "Weather?"}, {"from": "function_call", "value": CALLED}]},
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
]
FORMATS = ["a.jsonl", "array.json", "object.json", "a.csv", "a.tsv", "a.parquet"]


def write(path: Path, rows: list[dict]) -> None:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps({"data": rows} if path.stem == "object" else rows, indent=1))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            table.writeheader()
            table.writerows({key: json.dumps(value) for key, value in row.items()} for row in rows)


def conversations(path: Path, column: str) -> list[Conversation]:
    return [conversation_in(row, column) for _, row in read_files(str(path)).lines]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("column", "rows"), [("messages", OPENAI), ("conversations", SHAREGPT)])
def test_a_conversation_is_the_same_from_every_file_and_shape(tmp_path, name, column, rows):
    write(tmp_path / name, [row | {"tools": TOOLS} for row in rows])
    called, answered = conversations(tmp_path / name, column)
    assert [message["content"] for message in (*called.messages, *answered.messages)] == ["Weather?", "Hi"]
    assert json.loads(called.gold) == [{"name": "weather", "arguments": {"city": "Bern"}}]
    assert answered.gold == "Hello"
    assert [tool["function"]["name"] for tool in (*called.tools, *answered.tools)] == ["weather", "weather"]
