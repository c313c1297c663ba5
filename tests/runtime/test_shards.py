"""Work in pieces: only what is missing is made, another purpose starts anew, and one rank's fault is everybody's."""

import os
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from conftest import raises

from toolkit.runtime.distributed import stop
from toolkit.runtime.errors import PollardError
from toolkit.runtime.shards import make_shards, missing_shards


def write(number: int, path: Path) -> None:
    path.write_text(str(number))


def test_only_what_is_missing_is_made(tmp_path: Path) -> None:
    folder = tmp_path / "pieces"
    assert missing_shards(folder, {"for": "one"}, 3, ".txt") == [0, 1, 2]
    make_shards(folder, [0, 2], ".txt", write, "making")
    (folder / "00001.txt.tmp").write_text("half")
    assert missing_shards(folder, {"for": "one"}, 3, ".txt") == [1]
    assert missing_shards(folder, {"for": "another"}, 3, ".txt") == [0, 1, 2]
    assert [path.name for path in folder.iterdir()] == ["about.json"]


def test_files_that_are_no_pieces_are_left(tmp_path: Path) -> None:
    mine = ("notes.txt", "00000.csv", "raw/00001.txt")
    for name in mine:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    missing_shards(tmp_path, {"for": "one"}, 2, ".txt")
    make_shards(tmp_path, [0, 1], ".txt", write, "making")
    (tmp_path / "about.json").write_text("{")  # damaged: nobody can tell what the pieces are of
    assert missing_shards(tmp_path, {"for": "one"}, 2, ".txt") == [0, 1]
    assert all((tmp_path / name).read_text() == "mine" for name in mine)
    assert not (tmp_path / "00000.txt").exists()


def _rank(rank: int, folder: str) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE="2")
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)

    def fails_on_the_second(number: int, path: Path) -> None:
        if number == 1:
            raise PollardError("piece 1 cannot be made", code="a.kind")
        write(number, path)

    pieces = Path(folder, "pieces")
    missing = missing_shards(pieces, {}, 4, ".txt")
    with raises("a.kind", "piece 1 cannot be made"):  # it was rank 1's; rank 0 does not wait for ever
        make_shards(pieces, missing, ".txt", fails_on_the_second, "making")
    Path(folder, f"done{rank}").touch()
    stop()


@pytest.mark.launcher
def test_what_one_rank_cannot_make_every_rank_says(tmp_path: Path) -> None:
    mp.spawn(_rank, (str(tmp_path),), nprocs=2)
    assert (tmp_path / "done0").exists() and (tmp_path / "done1").exists()
    assert sorted(path.name for path in (tmp_path / "pieces").glob("*.txt")) == ["00000.txt", "00002.txt"]
