"""Programs in a reader's environment: run to their end, or serving answers for as long as they are asked.

What they print goes into a log file. Where one fails, the last error in it is the reader's own reason.
"""

import ctypes
import os
import re
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from toolkit.runtime.errors import PollardError
from toolkit.runtime.files import full_disk_words

PROGRAMS = Path(__file__).parent / "programs"
SERVING = "serving "  # a server's line on standard output, before its address
PR_SET_PDEATHSIG = 1
REFUSED = re.compile(r"error loading model: (.+)")  # llama.cpp's; what is raised afterwards says less
RAISED = re.compile(r"^([\w.]*(Error|Exception|Interrupt)\b.*)$", re.MULTILINE)


def run_program(python: Path, program: Path, arguments: Sequence[str], log: Path, what: str) -> None:
    """Raises PollardError with the reader's own reason where it fails, and RuntimeError with its words where the disk is full."""
    with log.open("w", encoding="utf-8") as output:
        command = [str(python), str(program), *arguments]
        status = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            check=False,
            env=_environment(),
            preexec_fn=_end_with_parent,
        ).returncode
    if status:
        raise _failure(log, what, status)


@contextmanager
def serving(python: Path, program: str, arguments: Sequence[str], log: Path, what: str) -> Iterator[str]:
    """The address of a server that a program starts. It ends with the context, and with this process, however that dies."""
    command = [str(python), str(PROGRAMS / program), *arguments]
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
            text=True,
            env=_environment(),
            preexec_fn=_end_with_parent,
        )
        try:
            assert process.stdout
            address = _address(process.stdout)
            if not address:
                raise _failure(log, what, process.wait())
            yield address
        finally:
            process.kill()
            process.communicate()


def _environment() -> dict[str, str]:
    """Without the user's own packages; nothing is looked for on the hub."""
    return {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")} | {"HF_HUB_OFFLINE": "1"}


def _end_with_parent() -> None:
    """In the child: a killed export leaves no program behind that still writes."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _address(lines: IO[str]) -> str:
    for line in lines:
        if line.startswith(SERVING):
            return line.removeprefix(SERVING).strip()
    return ""


def reason_in(text: str) -> str:
    """The last error that a program's output names, else its last line."""
    if refused := REFUSED.findall(text):
        return str(refused[-1])
    raised = RAISED.findall(text)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return str(raised[-1][0]) if raised else lines[-1] if lines else "it printed nothing"


def _failure(log: Path, what: str, status: int) -> Exception:
    text = log.read_text(encoding="utf-8", errors="replace")
    if words := full_disk_words(text):
        return RuntimeError(words)
    killed = f"it was killed (signal {-status}: out of memory?); " if status < 0 else ""
    return PollardError(f"{what}: {killed}{reason_in(text)}\nAll that it printed: {log}", code="export.refused")
