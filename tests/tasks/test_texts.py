import gzip
import json
from pathlib import Path

import pytest
from conftest import PLAYGROUND, raises

from toolkit.moe import load_tokenizer
from toolkit.tasks import encode_texts, read_texts


def test_paragraphs_of_a_text_file_and_lines_of_a_jsonl_file_are_texts(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("One line,\nanother.\n\n \n\nThe second.\n")
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "One."}) + "\n\n" + json.dumps({"text": "Two.", "more": 1}) + "\n")
    assert read_texts(str(tmp_path / "a.txt")) == ["One line,\nanother.", "The second."]
    assert read_texts(str(tmp_path / "a.jsonl")) == ["One.", "Two."]


def test_texts_stand_in_data_files_of_every_kind_and_in_several(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,n\nOne.,1\n")
    (tmp_path / "b.json").write_text(json.dumps([{"text": "Two."}]))
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(b"Three.\n\nFour."))
    assert read_texts(str(tmp_path / "a.csv")) == ["One."]
    assert read_texts(str(tmp_path / "[ab].*")) == ["One.", "Two."]
    assert read_texts(str(tmp_path / "c.txt.gz")) == ["Three.", "Four."]


def test_all_lines_without_text_are_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "One."}\n{"text": null}\nx\n{"text": "cut \\ud83d"}\n')
    with raises("data.bad-lines") as caught:
        read_texts(str(tmp_path / "a.jsonl"))
    assert [line.split(":")[0].rpartition(", ")[2] for line in str(caught.value).splitlines()] == ["line 2", "line 3", "line 4"]


def test_a_long_text_is_cut_into_pieces_that_lose_nothing_and_all_of_it_is_completion() -> None:
    tokenizer = load_tokenizer(str(PLAYGROUND / "model"))
    texts = ["Mia has 6 boxes with 4 pens each and gives away 9 pens.", "Why?"]
    whole = [tokenizer(text)["input_ids"] for text in texts]
    pieces = encode_texts(tokenizer, texts, 5)
    assert [token for piece in pieces for token in piece.input_ids] == [token for ids in whole for token in ids]
    assert max(len(piece.input_ids) for piece in pieces) == 5
    assert all(piece.completion_mask == [1] * len(piece.input_ids) for piece in pieces)


@pytest.mark.parametrize(
    ("name", "content", "code", "named"),
    [
        ("a.txt", b" \n\n", "text.empty", "a.txt"),
        ("a.jsonl", b"", "text.empty", "a.jsonl"),
        ("a.jsonl", b'{"text": 5}\n', "text.no-field", "line 1"),
        ("a.txt", b"\xff\xfe\xff", "data.not-text", "a.txt"),
        ("a.pdf", b"%PDF", "text.other-file", "a.pdf"),
    ],
)
def test_what_is_no_text_is_an_error(tmp_path: Path, name: str, content: bytes, code: str, named: str) -> None:
    (tmp_path / name).write_bytes(content)
    with raises(code, named):
        read_texts(str(tmp_path / name))
