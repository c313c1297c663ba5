"""Starts real ranks with the variables that DeepSpeed's launcher sets, without the imports it takes a launcher to start.

    python tests/rank_launcher.py [--port PORT] RANKS SCRIPT …
    python tests/rank_launcher.py RANKS --module toolkit.cli sweep r.yaml

What users type (`deepspeed`, torchrun, launch.sh) is in test_train.py and test_launch.py; elsewhere a test needs ranks, and not
a launcher.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

RANKS = int(os.environ.get("POLLARD_TEST_RANKS", "2"))
"""Of a test that asks what ranks do together. More are a rehearsal: POLLARD_TEST_RANKS=4 pytest -m launcher."""
SECONDS = 540  # of a launch: a rank that waits for the other would wait for ever
PATIENCE = 20  # seconds that the other ranks have to end by themselves when one has failed, and to say why


def ranks(number: int, *arguments: str, port: str = "") -> list[str]:
    """The command that runs a script, with its arguments, on so many ranks."""
    return [sys.executable, __file__, *(["--port", port] if port else []), str(number), *arguments]


def launch_ranks(script: Path, folder: Path) -> None:
    """Runs `script` on `RANKS` ranks, with `folder` as its argument, where what they say is left in said.txt."""
    with (folder / "said.txt").open("w") as said:
        command = ranks(RANKS, str(script), str(folder))
        launched = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code = launched.wait(SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(launched.pid, signal.SIGTERM)  # the launcher ends its ranks
            code = None
    assert code == 0, (folder / "said.txt").read_text()[-8000:]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", default="")
    parser.add_argument("ranks", type=int)
    parser.add_argument("script", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    module = ["-m", options.script.pop(1)] if options.script[0] == "--module" else [options.script[0]]
    arguments = options.script[1:]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": options.port or free_port(), "WORLD_SIZE": str(options.ranks)}
    processes = []
    for rank in range(options.ranks):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_SIZE": str(options.ranks)}
        command = [sys.executable, "-u", *module, f"--local_rank={rank}", *arguments]
        processes.append(subprocess.Popen(command, env=os.environ | shared | own))

    def end(number: int, frame: FrameType | None) -> None:
        for process in processes:
            process.terminate()

    signal.signal(signal.SIGTERM, end)
    while None in (statuses := [process.poll() for process in processes]) and not any(statuses):
        time.sleep(0.05)
    until = time.monotonic() + PATIENCE
    while any(process.poll() is None for process in processes) and time.monotonic() < until:
        time.sleep(0.05)
    for process in processes:
        process.kill()
    return next((status for status in (process.wait() for process in processes) if status), 0)


def free_port() -> str:
    """A port for a launch: tests run side by side."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
