"""Law: the command that a run says goes on can be pasted where it was typed, whatever that shell has on its path."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from toolkit.runtime.typed_command import CALLED_FROM, LAUNCHER, command_again, program_path

BIN = Path(sys.executable).parent
BARE = "/usr/bin:/bin"  # a shell that has not activated the environment


@pytest.fixture(autouse=True)
def _typed_here(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (LAUNCHER, CALLED_FROM, "WORLD_SIZE", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("argv", "environment", "command"),
    [
        (["/usr/bin/pollard", "run", "r.yaml", "--fresh"], {}, "pollard run r.yaml"),
        (["/x/toolkit/cli/__main__.py", "run", "r.yaml"], {}, "python -m toolkit.cli run r.yaml"),
        (["/x/toolkit/cli/__main__.py", "--local_rank=0", "sweep", "r.yaml"], {"WORLD_SIZE": "2"},
         "deepspeed --num_gpus 2 --module toolkit.cli sweep r.yaml"),
        (["toolkit/train.py", "--local_rank=0", "r.yaml"], {"WORLD_SIZE": "4"}, "deepspeed --num_gpus 4 toolkit/train.py r.yaml"),
        (["a folder/toolkit/train.py", "r.yaml"], {}, "python 'a folder/toolkit/train.py' r.yaml"),
        (["toolkit/train.py", "r.yaml"], {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none"},
         "torchrun --nproc-per-node 2 toolkit/train.py r.yaml"),
        (["toolkit/train.py", "r.yaml"], {LAUNCHER: "./launch.sh --ranks 2"}, "./launch.sh --ranks 2 r.yaml"),
    ],
)  # fmt: skip
def test_the_command_is_the_one_that_was_typed(
    argv: list[str], environment: dict[str, str], command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setenv("PATH", f"{BIN}:{BARE}")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert command_again() == command


@pytest.mark.parametrize("path", [f"{BIN}:{BARE}", BARE], ids=["activated", "not activated"])
@pytest.mark.parametrize(
    "argv",
    [
        [str(BIN / "pollard"), "run", "--help"],
        [str(ROOT / "toolkit" / "train.py"), "--help"],
        [str(ROOT / "toolkit" / "cli" / "__main__.py"), "run", "--help"],
    ],
)
def test_the_command_runs_as_it_stands(argv: list[str], path: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setenv("PATH", path)
    monkeypatch.chdir(tmp_path)
    environment = {"PATH": path, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    done = subprocess.run(command_again(), shell=True, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "usage: " in done.stdout, done.stderr


@pytest.mark.parametrize("name", ["pollard", "deepspeed", "torchrun"])
def test_a_program_of_the_environment_is_found_from_anywhere(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for folder in (tmp_path, BIN):  # from its own folder a bare name would be looked for on the path
        monkeypatch.chdir(folder)
        for path in (BARE, f"{tmp_path}:{BARE}"):
            monkeypatch.setenv("PATH", path)
            assert os.path.samefile(_found(program_path(name)), BIN / name)
    monkeypatch.setenv("PATH", f"{BIN}:{BARE}")
    assert program_path(name) == name
    monkeypatch.setenv(LAUNCHER, "./launch.sh --ranks 2")  # which leaves the path of the shell as it was
    assert program_path(name) != name


def _found(written: str) -> str:
    (word,) = shlex.split(written)
    assert "/" in word
    return word


# Another environment's pollard would be another version, or another program of that name.
def test_a_program_of_another_environment_is_not_taken_for_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "pollard").write_text("#!/bin/sh\n")
    (tmp_path / "pollard").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{BARE}")
    assert os.path.samefile(program_path("pollard"), BIN / "pollard")


def test_other_ranks_and_other_verbs_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{BIN}:{BARE}")
    monkeypatch.setattr(sys, "argv", ["/x/pollard", "prune", "r.yaml", "pruning.keep=2"])
    assert command_again(("prune", "run")) == "pollard run r.yaml pruning.keep=2"
    assert command_again(ranks=2) == "deepspeed --num_gpus 2 --module toolkit.cli prune r.yaml pruning.keep=2"
    monkeypatch.setattr(sys, "argv", ["toolkit/train.py", "r.yaml"])
    monkeypatch.setenv(LAUNCHER, "./launch.sh --ranks 4")
    assert command_again(ranks=2) == "./launch.sh --ranks 2 r.yaml"


def test_a_run_that_went_to_another_folder_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["toolkit/train.py", "r.yaml"])
    monkeypatch.setenv(LAUNCHER, "./launch.sh --ranks 2")
    monkeypatch.setenv(CALLED_FROM, os.getcwd())
    assert command_again() == "./launch.sh --ranks 2 r.yaml"
    monkeypatch.setenv(CALLED_FROM, str(tmp_path))
    assert command_again() == f"cd {shlex.quote(os.getcwd())} && ./launch.sh --ranks 2 r.yaml"
