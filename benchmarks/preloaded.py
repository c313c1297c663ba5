"""Runs of one rank, forked from a process that has imported the libraries once: a study has hundreds of them, and of a run of a
minute on one core some twelve seconds are imports (the launcher's two processes and its own)."""

import multiprocessing
import os
import runpy
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path


def run(command: Sequence[str], environment: Mapping[str, str], log: Path | None = None) -> bool:
    """Whether `python COMMAND` ended well: a script, or `--module NAME`, and what is said to it. What it prints goes to `log`,
    or on.

    Not for a machine with GPUs: importing looks for them, and what has looked must not be forked."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["preloaded_libraries"])
    # Python before 3.11.9 forgets to hand on where modules are found, and a module that is not found is no error there
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, dict.fromkeys(sys.path)))
    # The forking process has the folder and the environment of its own start
    process = context.Process(target=_run, args=(list(command), dict(environment), log, os.getcwd()))
    process.start()
    process.join()
    return process.exitcode == 0


def _run(command: list[str], environment: Mapping[str, str], log: Path | None, folder: str) -> None:
    import torch

    os.chdir(folder)
    os.environ.update(environment)
    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    if log is not None:
        with log.open("a") as file:
            os.dup2(file.fileno(), sys.stdout.fileno())
            os.dup2(file.fileno(), sys.stderr.fileno())
    if command[0] == "--module":
        sys.argv = command[1:]
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = command
        runpy.run_path(command[0], run_name="__main__")
