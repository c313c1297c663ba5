"""What nobody foresaw: one screen for the reader, and the traceback in a file for whoever mends it."""

import os
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from toolkit.runtime.distributed import rank
from toolkit.runtime.errors import PollardError
from toolkit.runtime.run_files import left_by_others

BUG = 3  # exit status


class Bug(Exception):
    """An error that is Pollard's own; `written` is where its traceback is."""

    def __init__(self, error: Exception, written: Path) -> None:
        super().__init__(str(error))
        self.error, self.written = error, written

    def __str__(self) -> str:
        what = str(self.error).strip().splitlines()
        return (
            f"{type(self.error).__name__}: {what[0] if what else '(no message)'}\n"
            "This is a bug: Pollard should have said what to do, or done it. Please report it with the traceback, which is in\n"
            f"  {self.written}\n"
            "(--debug shows it here). Stages that are done stay done: the same command goes on."
        )


@contextmanager
def tracebacks_in(folder: Path | None = None) -> Iterator[None]:
    """What is neither a PollardError nor foreseen otherwise becomes a Bug with its traceback in `folder` (or, where that is
    not there, in a temporary one)."""
    try:
        yield
    except (PollardError, Bug):
        raise
    except Exception as error:
        raise Bug(error, write_traceback(error, folder)) from error


def write_traceback(error: Exception, folder: Path | None) -> Path:
    """Returns where it is."""
    name = "traceback.txt" if rank() == 0 else f"traceback-rank{rank()}.txt"
    text = f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}  {sys.argv}\n{''.join(traceback.format_exception(error))}"
    if folder is None or not os.access(folder, os.W_OK) or _is_somebody_elses(folder):
        folder = Path(tempfile.mkdtemp(prefix="pollard-"))
    path = folder / name
    path.write_text(text)
    return path


def _is_somebody_elses(folder: Path) -> bool:
    return not (folder / "manifest.json").exists() and bool(left_by_others(folder))
