"""Ranks: start and stop them, share work out, gather results, raise errors on all of them. Everything works on one rank, too."""

import os
import pickle
import socket
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from toolkit.runtime.errors import PollardError

T = TypeVar("T")

console = Console(soft_wrap=True, highlight=False)
_own_environment: dict[str, str] = {}  # set by `start` where no launcher had
FILE_SYSTEM_DELAY = 10  # seconds after which a network file system shows a file to other machines
_alone = False  # inside `on_main`, where rank 0 works and the others wait


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    return 1 if _alone else int(os.environ.get("WORLD_SIZE", 1))


def ranks_per_node() -> int:
    """The ranks on this machine, as the launcher started them."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", 1)))  # set by torchrun, by DeepSpeed


def is_main() -> bool:
    return rank() == 0


def say(text: str = "") -> None:
    """Prints on rank 0; the other ranks are quiet."""
    if is_main():
        console.print(text)
        sys.stdout.flush()


def join() -> None:
    """Joins the process group and silences progress bars. To be called on every rank."""
    start()
    hide_progress_bars()


def hide_progress_bars() -> None:
    """Shows transformers' progress bars only where somebody looks: on rank 0, at a terminal."""
    from transformers.utils import logging

    if not (is_main() and console.is_terminal):
        logging.disable_progress_bar()


def start() -> None:
    """Joins the process group that the launcher describes, or makes one of a single rank (DeepSpeed needs a group).

    Raises PollardError when the launcher started more ranks than this machine has accelerators.
    """
    import torch

    if "RANK" not in os.environ:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        _own_environment.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", LOCAL_WORLD_SIZE="1")
        _own_environment.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        os.environ.update(_own_environment)
    local, gpus = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    local_ranks = ranks_per_node()
    if local_ranks > 1 and "OMP_NUM_THREADS" not in os.environ:  # more threads than cores only wait for each other
        threads = max(1, len(os.sched_getaffinity(0)) // local_ranks)
        os.environ["OMP_NUM_THREADS"] = str(threads)  # or accelerate sets a number of its own
        torch.set_num_threads(threads)
    if not gpus:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or DeepSpeed looks for others, and warns
    if 0 < gpus <= local:
        raise PollardError(
            f"Rank {rank()} has no GPU: {socket.gethostname()} has {gpus}. Start with `deepspeed --num_gpus {gpus} …`, "
            "or hide the GPUs (CUDA_VISIBLE_DEVICES=) to run on CPU.",
            code="ranks.more-than-gpus",
        )
    if gpus:
        torch.cuda.set_device(local)
    if not torch.distributed.is_initialized():
        # Rank 0 may write a large checkpoint while the others wait: the default of 30 minutes is too short.
        torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=timedelta(hours=12))


def stop() -> None:
    """Leaves the process group and restores the environment."""
    import torch

    if torch.distributed.is_initialized():
        deepspeed = sys.modules.get("deepspeed")
        if deepspeed and deepspeed.comm.is_initialized():
            deepspeed.comm.destroy_process_group()  # and its own references, which training in the next group would use
        else:
            torch.distributed.destroy_process_group()
    for name in _own_environment:
        os.environ.pop(name, None)
    _own_environment.clear()


def device() -> Any:
    """This rank's torch.device."""
    import torch

    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def shard(items: Sequence[T]) -> list[T]:
    """This rank's items: every `world_size`-th one."""
    return list(items[rank() :: world_size()])


def shard_in_step(items: Sequence[T], filler: T) -> list[T]:
    """This rank's items, padded with `filler` to the length of the longest shard."""
    mine = shard(items)
    return mine + [filler] * (-(-len(items) // world_size()) - len(mine))


def gather(items: T) -> list[T]:
    """The `items` of all ranks in rank order, on every rank. They must pickle."""
    import torch

    if world_size() == 1 or not torch.distributed.is_initialized():
        return [items]
    gathered: list[Any] = [None] * world_size()
    torch.distributed.all_gather_object(gathered, items)
    return gathered


def sum_over_ranks(tensor: Any) -> None:
    """Adds up a torch tensor over all ranks, in place; it must have the same shape on each."""
    import torch

    if world_size() > 1 and torch.distributed.is_initialized():
        torch.distributed.all_reduce(tensor)


def from_main(tensor: Any) -> None:
    """Replaces a torch tensor by rank 0's, in place."""
    import torch

    if world_size() > 1 and torch.distributed.is_initialized():
        torch.distributed.broadcast(tensor, 0)


def on_main(function: Callable[[], T]) -> T:
    """Runs `function` on rank 0 alone and returns its result (which must pickle) on every rank.

    Inside, rank 0 is alone: `shard` and `gather` see one rank. An exception is raised on every rank, so that none is left
    waiting: a PollardError with its class and attributes, any other as a PollardError with its text.
    """
    import torch

    if world_size() == 1 or not torch.distributed.is_initialized():
        return function()
    outcome: list[Any] = [None, None]  # result, error
    if is_main():
        global _alone
        _alone = True
        try:
            outcome[0] = function()
        except Exception as error:
            torch.distributed.broadcast_object_list([None, _for_other_ranks(error)])
            raise
        finally:
            _alone = False
    torch.distributed.broadcast_object_list(outcome)
    result, failure = outcome
    if failure is not None:
        failure.already_reported = True
        raise failure
    return result


def _for_other_ranks(error: Exception) -> PollardError:
    if not isinstance(error, PollardError):
        return PollardError(str(error), code="ranks.failed")
    try:
        pickle.dumps(error)
    except Exception:  # an attribute that cannot travel: its text can
        return PollardError(str(error), code=error.code)
    return error


def on_all_ranks(function: Callable[[], T]) -> T:
    """Runs `function` on every rank and waits for all. What one rank raises is raised on every rank, as `on_main` does.

    `function` itself must not wait for other ranks.
    """
    outcome: T | None = None
    error: Exception | None = None
    try:
        outcome = function()
    except Exception as raised:
        error = raised
    errors = gather(None if error is None else _for_other_ranks(error))
    if error is not None:
        raise error
    for other in filter(None, errors):
        raise other
    return outcome  # type: ignore[return-value]


def check_shared(folder: Path) -> None:
    """Raises PollardError, on every rank, where some machine does not see what rank 0 writes into `folder`."""
    if world_size() == 1:
        return
    probe = folder / f"{on_main(lambda: uuid.uuid4().hex)}.tmp"
    on_main(probe.touch)
    deadline = time.monotonic() + FILE_SYSTEM_DELAY
    while not (visible := probe.exists()) and time.monotonic() < deadline:
        time.sleep(0.2)
    everyone = gather((socket.gethostname(), visible))
    on_main(probe.unlink)
    blind = sorted({host for host, visible in everyone if not visible})
    if blind:
        raise PollardError(
            f"{folder.absolute()} is not the same folder on all machines: {', '.join(blind)} cannot see what rank 0 "
            f"({everyone[0][0]}) writes there. Stages talk through files: start in a folder that all machines share.",
            code="ranks.folder-not-shared",
        )


def barrier() -> None:
    """Waits for every rank."""
    gather(None)
