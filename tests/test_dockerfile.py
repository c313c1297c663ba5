"""The Dockerfile, as far as that can be told without building it: hadolint's rules, and that what it copies is there."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

DOCKERFILE = ROOT / "Dockerfile"


def copied() -> list[str]:
    """The paths that COPY lines name, without their targets."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if line.startswith("COPY ")]
    return [source for line in lines for source in shlex.split(line)[1:-1]]


def test_hadolint_finds_no_fault() -> None:
    program = Path(sys.executable).with_name("hadolint")
    if not program.exists():
        pytest.skip("hadolint is not installed here: ./launch.sh setup dev")
    done = subprocess.run([program, str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    wrong = subprocess.run([program, "-"], input="FROM ubuntu\nRUN cd /tmp\n", capture_output=True, text=True, check=False)
    assert "DL3003" in wrong.stdout  # it does look


def test_what_is_copied_is_there_and_is_sent_to_the_builder() -> None:
    sent = [line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    sources = copied()
    assert len(sources) > 5
    for source in sources:
        assert (ROOT / source).exists(), source
        assert any(source == path or source.startswith(f"{path}/") or path.startswith(f"{source}/") for path in sent), source


def test_the_first_layer_has_what_launch_sh_and_the_build_need() -> None:
    """The packages are installed before the rest of the toolkit is copied."""
    sources = copied()
    before = sources[: sources.index("toolkit")]
    assert {"launch.sh", "pyproject.toml", "constraints.txt", "README.md", "LICENSE", "toolkit/train.py"} <= set(before)
