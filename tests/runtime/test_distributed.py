import os
import socket
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from conftest import raises
from rank_launcher import free_port

from toolkit.runtime import distributed
from toolkit.runtime.distributed import (
    check_shared,
    gather,
    is_main,
    on_all_ranks,
    on_main,
    shard,
    shard_in_step,
    start,
    stop,
    world_size,
)
from toolkit.runtime.errors import ItemsFailed, PollardError


def test_alone_every_function_still_works() -> None:
    assert shard([1, 2, 3]) == [1, 2, 3]
    assert gather("mine") == ["mine"]
    assert on_main(lambda: 7) == on_all_ranks(lambda: 7) == 7
    assert is_main() and world_size() == 1


def test_starting_alone_leaves_the_environment_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    before = dict(os.environ)
    start()
    assert torch.distributed.get_world_size() == 1
    stop()
    assert {k: v for k, v in os.environ.items() if k != "DS_ACCELERATOR"} == {
        k: v for k, v in before.items() if k != "DS_ACCELERATOR"
    }


def test_more_ranks_than_gpus_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "3", "LOCAL_RANK": "3", "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with raises("ranks.more-than-gpus", "Rank 3", "--num_gpus 2"):
        start()


# Without the launcher's word on threads, ranks of one machine share its cores.
def test_ranks_on_one_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for name, value in {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": free_port(),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(6)))
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    start()
    stop()
    assert asked == [3]


def _rank(rank: int, folder: str) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE="2")
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    assert shard([0, 1, 2, 3, 4]) == ([0, 2, 4] if rank == 0 else [1, 3])
    assert gather(rank * 10) == [0, 10]
    # rank 0 by itself: nothing inside may wait for the other
    assert on_main(lambda: (gather(rank), shard([1, 2]))) == ([0], [1, 2])

    def fail() -> None:
        raise ItemsFailed("rank 0 cannot", [3, 5])

    with raises("evaluation.items-failed", "rank 0 cannot") as failed:
        on_main(fail)
    assert isinstance(failed.value, ItemsFailed) and failed.value.items == [3, 5]  # whole on both
    assert failed.value.already_reported == (rank == 1)

    def fail_otherwise() -> None:
        error = PollardError("rank 0 cannot", code="a.kind")
        error.model = lambda: None  # type: ignore[attr-defined] # cannot travel
        raise error

    with raises("a.kind", "rank 0 cannot"):
        on_main(fail_otherwise)

    def fail_on_second() -> str:
        if rank == 1:
            raise OSError("rank 1 cannot")
        return "could"

    with pytest.raises(OSError) if rank == 1 else raises("ranks.failed", "rank 1 cannot"):
        on_all_ranks(fail_on_second)

    def fail_by_kind_on_second() -> None:
        if rank == 1:
            fail()

    with raises("evaluation.items-failed", "rank 0 cannot") as failed:
        on_all_ranks(fail_by_kind_on_second)
    assert failed.value.items == [3, 5]
    assert on_all_ranks(lambda: rank) == rank
    assert gather("still together") == ["still together"] * 2

    assert len(shard_in_step([0, 1, 2], -1)) == 2  # as many on both
    distributed.FILE_SYSTEM_DELAY = 1
    private = Path(folder, f"of{rank}")
    private.mkdir()
    check_shared(Path(folder))
    with raises("ranks.folder-not-shared", private, socket.gethostname()):
        check_shared(private)
    assert not list(Path(folder).rglob("*.tmp"))
    Path(folder, f"done{rank}").touch()
    stop()


@pytest.mark.launcher
def test_two_ranks_share_gather_and_fail_together(tmp_path: Path) -> None:
    mp.spawn(_rank, (str(tmp_path),), nprocs=2)
    assert (tmp_path / "done0").exists() and (tmp_path / "done1").exists()
