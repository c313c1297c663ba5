from pathlib import Path

import pytest
import torch
from conftest import raises
from safetensors.torch import save_file
from small_disk import files_of_at_most

from toolkit.runtime.errors import PollardError
from toolkit.runtime.files import explain_full_disk, write_text


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_text_is_replaced_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    for text in ("a longer text: é …\n", "short\n"):
        write_text(tmp_path / "file.json", text)
        assert (tmp_path / "file.json").read_text(encoding="utf-8") == text
    assert names_in(tmp_path) == ["file.json"]


def test_a_text_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    write_text(tmp_path / "file.json", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "file.json", "half \ud800")
    assert (tmp_path / "file.json").read_text() == "old"


@pytest.mark.parametrize("save", [
    lambda path: path.write_text("x" * 50_000),
    lambda path: torch.save(torch.zeros(50_000), path),
    lambda path: torch.save(torch.zeros(50_000), path, _use_new_zipfile_serialization=False),
    lambda path: save_file({"x": torch.zeros(50_000)}, path),
], ids=["text", "torch", "torch, its older format", "safetensors"])  # fmt: skip
def test_a_full_disk_is_said_whoever_writes(save, tmp_path: Path) -> None:
    with (
        raises("files.disk-full", tmp_path / "new" / "file", "GB free", "Make room."),
        explain_full_disk(tmp_path / "new" / "file", lambda: "Make room."),
        files_of_at_most(20_000),
    ):
        save(tmp_path / "file")


def test_other_errors_pass(tmp_path: Path) -> None:
    for error in (FileNotFoundError(2, "No such file"), RuntimeError("anything"), PollardError("No space left on device")):
        with pytest.raises(type(error)), explain_full_disk(tmp_path, lambda: ""):
            raise error
