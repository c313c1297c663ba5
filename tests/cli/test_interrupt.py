import os
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT

from toolkit.cli.interrupt import resumable

WAITING = """
import sys, time
sys.argv = ["toolkit/train.py", "recipes/a b.yaml", "pruning.keep=2", "--fresh"]
from toolkit.cli.interrupt import resumable
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
    command = out.splitlines()[-1]
    assert command.endswith("python toolkit/train.py 'recipes/a b.yaml' pruning.keep=2")
    program = shlex.split(command)[0]  # by its path, where the shell would find none or another
    assert (
        os.path.dirname(shutil.which(program) or "")
        and subprocess.run([program, "-c", "import torch"], check=False).returncode == 0
    )


def test_afterwards_signals_are_what_they_were() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts tests in the background ignores it
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with resumable():
        assert signal.getsignal(signal.SIGINT) is not before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
