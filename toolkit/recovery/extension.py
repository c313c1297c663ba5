"""DeepSpeed's communication module for CPU ranks, compiled once per environment, before DeepSpeed asks for it.

torch guards a compilation by a lock *file*: a process killed meanwhile leaves it behind, and every later one waits for
ever. Here the kernel guards (flock dies with its holder), in a folder of our own where nobody else compiles.
"""

import fcntl
import hashlib
import io
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import torch

from toolkit.distributed import barrier, console, rank
from toolkit.errors import PollardError
from toolkit.typed_command import SHELL_PATH

SHARED_MEMORY = Path("/dev/shm")  # where Linux shows what shm_open makes
CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "pollard"
# Another environment has other headers, and another machine, with which a home folder may be shared, another processor
FOLDER = CACHE / hashlib.sha256(f"{platform.node()} {sys.prefix} {sys.version} {torch.__version__}".encode()).hexdigest()[:12]


def build_communication() -> None:
    """Call it on every rank, after `distributed.start`. Does nothing on GPUs, which need no such module.

    Raises PollardError where there is no compiler.
    """
    if torch.cuda.is_available():
        return
    if not (shutil.which("g++") or shutil.which("c++")):
        raise PollardError(
            "DeepSpeed compiles its communication module and finds no C++ compiler: install one, e.g. `apt install g++`."
        )
    # ninja stands beside the Python that runs this, which a launcher on another machine need not have on its PATH
    os.environ.setdefault(SHELL_PATH, os.environ["PATH"])
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    import deepspeed
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    os.environ["TORCH_EXTENSIONS_DIR"] = str(FOLDER)
    builder = ShareMemCommBuilder()
    folder = FOLDER / builder.NAME
    with guard():
        (folder / "lock").unlink(missing_ok=True)  # whoever left it is dead: the living hold the guard
        if not (folder / f"{builder.NAME}.so").exists():
            console.print("[dim]compiling DeepSpeed's communication module (about a minute, once)[/]")
        builder.load(verbose=False)
    with redirect_stdout(io.StringIO()):  # each rank would print that it has loaded the module
        deepspeed.init_distributed("gloo", verbose=False)
    barrier()
    # Every rank has mapped the others' buffers by now. DeepSpeed leaves the names, and with them 66 MiB of RAM per rank, for good
    buffer = f"deepspeed_allreduce_buffer_{os.getuid()}_{os.environ['MASTER_ADDR']}_{os.environ['MASTER_PORT']}_{rank()}"
    (SHARED_MEMORY / buffer).unlink(missing_ok=True)


@contextmanager
def guard() -> Iterator[None]:
    """One process at a time, on this machine."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / "guard").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
