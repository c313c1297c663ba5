from pathlib import Path

import pytest

from toolkit.runtime.errors import PollardError
from toolkit.tasks.data_files import Source, files_of, is_local

FILES: tuple[Source, ...] = (
    "train.jsonl", "train.json", "train.csv", "TRAIN.CSV", "train.jsonl.gz", "train.parquet", "*.tsv", "data/train.txt",
    "./train", "train.jsonl/", ["a", "b"],
)  # fmt: skip
SPLITS = ("train", "train[:10]", "train[:10%]", "train+test", "validation_matched", "v1.2")


@pytest.mark.parametrize(("name", "local"), [*((name, True) for name in FILES), *((name, False) for name in SPLITS)])
def test_a_file_is_told_from_a_split(name: Source, local: bool) -> None:
    assert is_local(name) is local


def made(folder: Path, *names: str) -> list[str]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return [str(folder / name) for name in names]


def refusal(source: Source, folder: Path) -> str:
    with pytest.raises(PollardError) as caught:
        files_of(source)
    return str(caught.value).replace(str(folder), "HERE")


def test_a_name_may_mean_several_files(tmp_path: Path) -> None:
    a, b, c = made(tmp_path, "a.csv", "b.csv", "below/c.csv")
    assert files_of(a) == [a]
    assert files_of([b, a]) == [b, a]
    assert files_of([f"{tmp_path}/*.csv", a]) == [a, b, a]  # what is named twice is read twice
    assert files_of(f"{tmp_path}/**/*.csv") == [a, b, c]
    assert files_of(str(tmp_path)) == [a, b, c]


def test_a_name_with_brackets_may_be_a_file(tmp_path: Path) -> None:
    (file,) = made(tmp_path, "a[1].csv")
    assert files_of(file) == [file]


def test_a_folder_may_hold_notes_about_its_data(tmp_path: Path) -> None:
    a, *_ = made(tmp_path, "a.csv", "README.md", "LICENSE", ".gitattributes", ".cache/x.csv", "_SUCCESS", "dataset_info.json")
    assert files_of(str(tmp_path)) == [a]


def test_what_is_not_there_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert refusal("train.csv", tmp_path) == (
        "Cannot read train.csv: there is no such file. Give its path relative to where you start, HERE."
    )
    assert refusal("https://example.org/a.csv", tmp_path) == (
        "Cannot read https://example.org/a.csv: data files are read from this machine. Download it, and name the copy."
    )
    assert refusal("*.csv", tmp_path).startswith("Cannot read *.csv: no file matches it.")
    assert refusal(str(tmp_path), tmp_path).startswith("Cannot read HERE: no file in it is a data file (.jsonl, ")


# Nothing is left out without a word, and no test question gets into training by a folder's name.
@pytest.mark.parametrize(
    ("names", "fault"),
    [
        (["a.csv", "b.xlsx"], "HERE holds b.xlsx, which is no data file"),
        (["a.csv", "b.csv.zip"], "HERE holds b.csv.zip, which is no data file"),
        (["train.csv", "test.csv"], "HERE holds several splits (train, test): say `task.dataset: HERE`"),
        (["train-00000.parquet", "dev.parquet"], "HERE holds several splits (train, validation)"),
        (["x/train/a.jsonl", "x/eval/a.jsonl"], "HERE holds several splits (train, test)"),
    ],
)
def test_a_folder_that_could_mean_more_is_refused(tmp_path: Path, names: list[str], fault: str) -> None:
    made(tmp_path, *names)
    assert refusal(str(tmp_path), tmp_path).startswith(fault)


def test_words_that_only_contain_the_name_of_a_split_are_none(tmp_path: Path) -> None:
    assert files_of(str(tmp_path)) if made(tmp_path, "trains.csv", "contest.csv", "latest.csv", "train.csv") else None
