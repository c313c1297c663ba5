"""Work in pieces: only what is missing is made, another purpose starts anew, and one rank's fault is everybody's."""

import os
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from toolkit.distributed import stop
from toolkit.errors import PollardError
from toolkit.shards import make_shards, missing_shards


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


@pytest.mark.parametrize("stranger", ["notes.txt", "00001.jsonl", "deep"])
def test_a_folder_with_somebodys_files_is_not_emptied(tmp_path: Path, stranger: str) -> None:
    for begun in (False, True):
        folder = tmp_path / f"pieces{begun}"
        if begun:
            missing_shards(folder, {"for": "one"}, 3, ".txt")
        (folder / stranger).mkdir(parents=True)
        with pytest.raises(PollardError, match=rf"holds what Pollard did not write: {stranger}\. Move it away"):
            missing_shards(folder, {"for": "another"}, 3, ".txt")
        assert (folder / stranger).is_dir()


def _rank(rank: int, folder: str) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE="2")
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)

    def fails_on_the_second(number: int, path: Path) -> None:
        if number == 1:
            raise PollardError("piece 1 cannot be made")
        write(number, path)

    pieces = Path(folder, "pieces")
    missing = missing_shards(pieces, {}, 4, ".txt")
    with pytest.raises(PollardError, match="piece 1 cannot be made"):  # it was rank 1's; rank 0 does not wait for ever
        make_shards(pieces, missing, ".txt", fails_on_the_second, "making")
    Path(folder, f"done{rank}").touch()
    stop()


@pytest.mark.launcher
def test_what_one_rank_cannot_make_every_rank_says(tmp_path: Path) -> None:
    mp.spawn(_rank, (str(tmp_path),), nprocs=2)
    assert (tmp_path / "done0").exists() and (tmp_path / "done1").exists()
    assert sorted(path.name for path in (tmp_path / "pieces").glob("*.txt")) == ["00000.txt", "00002.txt"]
