import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT

from toolkit.terminal.interrupt import LAUNCHER, command_again, resumable

WAITING = """
import sys, time
sys.argv = ["toolkit/train.py", "recipes/a b.yaml", "pruning.keep=2", "--fresh"]
from toolkit.terminal.interrupt import resumable
with resumable():
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_process_at_once_with_the_command_that_goes_on(number: signal.Signals) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout and process.stdout.readline() == "ready\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=10)
    assert process.returncode == 130 and err == ""
    assert "stopped: what is done stays done, and this goes on from there:" in out
    assert "  python toolkit/train.py 'recipes/a b.yaml' pruning.keep=2\n" in out


def test_afterwards_signals_are_what_they_were() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts tests in the background ignores it
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with resumable():
        assert signal.getsignal(signal.SIGINT) is not before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)


@pytest.mark.parametrize(
    ("argv", "environment", "command"),
    [
        (["/usr/bin/pollard", "run", "r.yaml", "--fresh"], {}, "pollard run r.yaml"),
        (["/x/toolkit/cli.py", "--local_rank=0", "sweep", "r.yaml"], {"WORLD_SIZE": "2"},
         "deepspeed --num_gpus 2 --module toolkit.cli sweep r.yaml"),
        (["toolkit/train.py", "--local_rank=0", "r.yaml"], {"WORLD_SIZE": "4"}, "deepspeed --num_gpus 4 toolkit/train.py r.yaml"),
        (["toolkit/train.py", "r.yaml"], {LAUNCHER: "./launch.sh --ranks 2"}, "./launch.sh --ranks 2 r.yaml"),
    ],
)  # fmt: skip
def test_the_command_is_the_one_that_was_typed(
    argv: list[str], environment: dict[str, str], command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", argv)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert command_again() == command
