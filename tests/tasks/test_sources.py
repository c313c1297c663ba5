import json
import time
from pathlib import Path

import pytest

from toolkit.errors import PollardError
from toolkit.tasks.sources import is_local, read_hub, read_jsonl

FILES = ("train.jsonl", "train.json", "data/train.txt", "./train", "train.jsonl/")
SPLITS = ("train", "train[:10]", "train+test")


@pytest.mark.parametrize(("name", "local"), [*((name, True) for name in FILES), *((name, False) for name in SPLITS)])
def test_a_file_is_told_from_a_split(name: str, local: bool) -> None:
    assert is_local(name) is local


@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_rows_remember_the_line_they_stood_in(tmp_path: Path, start: str) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(start + '{"a": "é"}\n\n   \n{"a": 2}\n', encoding="utf-8")  # empty lines are no rows, and count as lines
    assert read_jsonl(str(path)) == [(f"{path}, line 1", {"a": "é"}), (f"{path}, line 4", {"a": 2})]


@pytest.mark.parametrize(
    ("line", "told"), [("{'a': 1}", "not valid JSON"), ("{", "not valid JSON"), ("[1]", "holds list, not a JSON object")]
)
def test_a_broken_line_is_named_with_file_and_number(tmp_path: Path, line: str, told: str) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps({"a": 1}) + f"\n\n{line}\n")
    with pytest.raises(PollardError) as caught:
        read_jsonl(str(path))
    assert str(caught.value).startswith(f"{path}, line 3: {told}")


def test_a_file_that_cannot_be_read_is_explained(tmp_path: Path) -> None:
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\n")
    for path in (tmp_path / "none.jsonl", tmp_path / "binary.jsonl", tmp_path):
        with pytest.raises(
            PollardError, match=rf"Cannot read {path}: .*Give the path of a JSONL file, relative to where you start"
        ):
            read_jsonl(str(path))


# conftest.py sets HF_HUB_OFFLINE=1: this must fail at once, and say what else could be done.
def test_a_data_set_that_cannot_be_had_says_what_to_try() -> None:
    started = time.monotonic()
    with pytest.raises(PollardError) as caught:
        read_hub("nobody/nothing", "main", "train", None)
    assert time.monotonic() - started < 20
    text = str(caught.value)
    assert text.startswith("Cannot load nobody/nothing (subset main, split train) from the hub: ")
    assert "`hf auth login`" in text and "task.train=… task.test=…" in text
