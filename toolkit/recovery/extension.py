"""DeepSpeed's communication module for CPU ranks, compiled once per machine, before DeepSpeed asks for it.

torch guards a compilation by a lock *file*: a process killed meanwhile leaves it behind, and every later one waits for
ever. Here the kernel guards (flock dies with its holder), in a folder of our own where nobody else compiles.
"""

import fcntl
import io
import os
import shutil
import sys
import time
from contextlib import redirect_stdout, suppress
from pathlib import Path

import torch

from toolkit.distributed import barrier, say
from toolkit.errors import PollardError

MOMENT = 5  # seconds: who only loads the finished module holds the lock for less
CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "pollard"
FOLDER = CACHE / f"python{sys.version_info.major}.{sys.version_info.minor}-torch{torch.__version__}"


def build_communication() -> None:
    """Call it on every rank. Does nothing on GPUs, which need none; raises PollardError where there is no compiler."""
    if torch.cuda.is_available():
        return
    if not (shutil.which("g++") or shutil.which("c++")):
        raise PollardError(
            "DeepSpeed compiles its communication module and finds no C++ compiler: install one, e.g. `apt install g++`."
        )
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    os.environ["TORCH_EXTENSIONS_DIR"] = str(FOLDER)
    if int(os.environ.get("LOCAL_RANK", 0)) == 0:
        builder = ShareMemCommBuilder()
        FOLDER.mkdir(parents=True, exist_ok=True)
        with (FOLDER / f"{builder.NAME}.flock").open("w") as guard:
            fcntl.flock(guard, fcntl.LOCK_EX)
            folder = FOLDER / builder.NAME
            _remove_stale(folder / "lock")
            if not (folder / f"{builder.NAME}.so").exists():
                say("[dim]compiling DeepSpeed's communication module (about a minute, once)[/]")
            builder.load(verbose=False)
    barrier()
    import deepspeed

    with redirect_stdout(io.StringIO()):  # each rank would print that it has loaded the module
        deepspeed.init_distributed("gloo", verbose=False)


def _remove_stale(lock: Path) -> None:
    """Nobody compiles while this process holds the guard: a lock that stays was left by the dead."""
    with suppress(FileNotFoundError):
        while time.time() - lock.stat().st_mtime < MOMENT:
            time.sleep(0.1)
        lock.unlink()
