"""What is written through the writer is what was to be written, however much the system takes at a time."""

import os
from pathlib import Path
from typing import IO, Any

import pytest
from conftest import raises

from toolkit.moe import disk_writer
from toolkit.moe.disk_writer import DiskWriter


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(os.urandom(3 * disk_writer.BUFFER + 77))
    return path


class Reluctant:
    """A file that takes at most 1,000 bytes at a time."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file

    def write(self, data: memoryview) -> int:
        return self.file.write(data[:1000])

    def fileno(self) -> int:
        return self.file.fileno()


@pytest.mark.parametrize("wrap", [lambda file: file, Reluctant], ids=["all at once", "in parts"])
def test_pieces_of_a_file_and_bytes_stand_one_behind_the_other(
    source: Path, tmp_path: Path, wrap: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(disk_writer, "BEGIN_EVERY", 2**16)
    monkeypatch.setattr(os, "posix_fadvise", lambda number, begin, count, advice: told.append((begin, count)), raising=False)
    with source.open("rb", buffering=0) as file, (tmp_path / "target").open("wb", buffering=0) as target:
        writer = DiskWriter(wrap(target))
        writer.write(b"header")
        writer.copy(file, 5, 2 * disk_writer.BUFFER + 1)
        writer.write(b"")
        writer.copy(file, 0, 3)
        writer.finish()
    data = source.read_bytes()
    written = (tmp_path / "target").read_bytes()
    assert written == b"header" + data[5 : 2 * disk_writer.BUFFER + 6] + data[:3]
    ends = [begin + count for begin, count in told]  # the disk hears of every byte once, in order
    assert told[0][0] == 0 and [begin for begin, _ in told[1:]] == ends[:-1] and len(written) - ends[-1] < 2**16


def test_a_source_that_became_shorter_is_an_error(source: Path, tmp_path: Path) -> None:
    writing = (tmp_path / "target").open("wb", buffering=0)
    with source.open("rb", buffering=0) as file, writing as target, raises("checkpoint.shortened", source):
        DiskWriter(target).copy(file, 3 * disk_writer.BUFFER, 78)
