"""DeepSpeed: its configurations by ZeRO stage, and its communication module for CPU ranks, compiled once per environment.

Values `auto` of a configuration are filled in by transformers from the training arguments.

torch protects a compilation by a lock *file*, which a killed process leaves behind, so that every later one waits for ever. This
module is therefore compiled ahead, in a folder of its own, under a lock of the kernel (flock), which ends with its holder.
"""

import fcntl
import hashlib
import io
import json
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch

from toolkit.runtime.distributed import barrier, console, rank
from toolkit.runtime.errors import PollardError
from toolkit.runtime.typed_command import SHELL_PATH


def deepspeed_config(zero: int | str) -> dict[str, Any]:
    """The configuration for a preset (0, 1, 2, 3, "3-offload") or a JSON file; raises PollardError for a broken file."""
    if isinstance(zero, str) and zero.endswith(".json"):
        try:
            return json.loads(Path(zero).read_text())
        except (OSError, ValueError) as error:
            raise PollardError(
                f"finetuning.zero: cannot read the DeepSpeed configuration {zero}: {error}", code="zero.no-config"
            ) from None
    stage = int(str(zero)[0])
    optimization: dict[str, Any] = {"stage": stage, "overlap_comm": stage > 1, "contiguous_gradients": True}
    if stage == 3:
        # Without it, ZeRO-3 silently writes a checkpoint of empty tensors
        optimization["stage3_gather_16bit_weights_on_model_save"] = True
    if zero == "3-offload":
        optimization["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
        optimization["offload_param"] = {"device": "cpu", "pin_memory": True}
    return {
        "train_micro_batch_size_per_gpu": "auto",
        "train_batch_size": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": "auto"},
        "zero_optimization": optimization,
        # transformers brings the optimizer (AdamW, or bitsandbytes' 8-bit one), and it runs on CPU as it is
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def partitioned_config(zero: int | str) -> dict[str, Any]:
    """The `zero_optimization` section for inference with ZeRO-3: `finetuning.zero`'s if that is stage 3, else the preset's."""
    section = deepspeed_config(zero).get("zero_optimization", {})
    if section.get("stage") != 3:
        section = deepspeed_config(3)["zero_optimization"]
    # There is no optimizer here, and no trainer to fill in "auto"
    return {key: value for key, value in section.items() if key != "offload_optimizer" and value != "auto"}


SHARED_MEMORY = Path("/dev/shm")  # where Linux shows what shm_open makes
CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "pollard"
# One folder per environment (headers) and machine (processor), since machines may share a home folder
BUILD_FOLDER = (
    CACHE / hashlib.sha256(f"{platform.node()} {sys.prefix} {sys.version} {torch.__version__}".encode()).hexdigest()[:12]
)


def build_communication() -> None:
    """Compiles and loads the module. To be called on every rank after `distributed.start`. Does nothing on GPUs.

    Raises PollardError if there is no compiler.
    """
    if torch.cuda.is_available():
        return
    if not (shutil.which("g++") or shutil.which("c++")):
        raise PollardError(
            "DeepSpeed compiles its communication module and finds no C++ compiler: install one, e.g. `apt install g++`.",
            code="zero.no-compiler",
        )
    # ninja is beside this Python, whose folder a launcher on another machine may not have on its PATH
    os.environ.setdefault(SHELL_PATH, os.environ["PATH"])
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    import deepspeed
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    os.environ["TORCH_EXTENSIONS_DIR"] = str(BUILD_FOLDER)
    builder = ShareMemCommBuilder()
    folder = BUILD_FOLDER / builder.NAME
    with build_lock():
        (folder / "lock").unlink(missing_ok=True)  # its owner is dead: a living one would hold the build lock
        if not (folder / f"{builder.NAME}.so").exists():
            console.print("[dim]compiling DeepSpeed's communication module (about a minute, once)[/]")
        builder.load(verbose=False)
    with redirect_stdout(io.StringIO()):  # each rank would print that it has loaded the module
        deepspeed.init_distributed("gloo", verbose=False)
    barrier()
    # Every rank has mapped the buffers by now. DeepSpeed never removes their names, and with them 66 MiB of RAM per rank
    buffer = f"deepspeed_allreduce_buffer_{os.getuid()}_{os.environ['MASTER_ADDR']}_{os.environ['MASTER_PORT']}_{rank()}"
    (SHARED_MEMORY / buffer).unlink(missing_ok=True)


@contextmanager
def build_lock() -> Iterator[None]:
    """Inside, no other process of this machine builds."""
    BUILD_FOLDER.mkdir(parents=True, exist_ok=True)
    with (BUILD_FOLDER / "guard").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
