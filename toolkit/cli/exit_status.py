"""How a command ends: its exit status, the one message on rank 0, the traceback of a bug, and Ctrl-C.

0 done; 1 a mistake that the user can mend; 2 wrong usage; 3 a bug of Pollard's; 130 interrupted.
"""

import logging
import os
import socket
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from toolkit.cli.interrupt import INTERRUPTED
from toolkit.runtime.distributed import FILE_SYSTEM_DELAY, console, is_main, rank, say, stop
from toolkit.runtime.errors import PollardError
from toolkit.runtime.run_files import foreign_entries

MISTAKE, BUG = 1, 3  # exit statuses


class Bug(Exception):
    """An unforeseen exception. `traceback_file` is where its traceback was written."""

    def __init__(self, error: Exception, traceback_file: Path) -> None:
        super().__init__(str(error))
        self.error, self.traceback_file = error, traceback_file

    def __str__(self) -> str:
        lines = str(self.error).strip().splitlines()
        return (
            f"{type(self.error).__name__}: {lines[0] if lines else '(no message)'}\n"
            "This is a bug: Pollard should have said what to do, or done it. Please report it with the traceback, which is in\n"
            f"  {self.traceback_file}\n"
            "(--debug shows it here). Stages that are done stay done: the same command goes on."
        )


def exit_status_of(work: Callable[[], None], debug: bool = False) -> int:
    """Calls `work` and returns the command's exit status. An exception becomes one message on rank 0: the text of a
    PollardError, or that anything else is a bug and where its traceback is. `debug` prints the traceback as well."""
    quiet_libraries()
    try:
        with tracebacks_in():
            work()
    except (PollardError, Bug) as error:
        if debug:
            traceback.print_exception(error)
        return report_error(error)
    except KeyboardInterrupt:
        if debug:
            traceback.print_exc()
        say("\n[bold yellow]stopped[/] by Ctrl-C")
        return INTERRUPTED
    except BrokenPipeError:  # pollard … | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    finally:
        if "torch" in sys.modules:
            stop()
    return 0


def report_error(error: PollardError | Bug) -> int:
    """Prints the message, unless rank 0 reports it too, and returns the exit status."""
    status = BUG if isinstance(error, Bug) else MISTAKE
    if isinstance(error, PollardError) and error.already_reported and not is_main():
        return status
    where = ""
    if not is_main():  # rank 0 reports what all ranks find, and then the launcher ends the others
        time.sleep(FILE_SYSTEM_DELAY)
        where = f"rank {rank()} on {socket.gethostname()}: "
    console.print("[bold red]error[/] ", end="")
    console.print(where + str(error), markup=False)
    return status


@contextmanager
def tracebacks_in(folder: Path | None = None) -> Iterator[None]:
    """Inside, an exception other than a PollardError is raised as a Bug, with its traceback in a file of `folder` (of a
    temporary folder where that one does not exist or is not Pollard's)."""
    try:
        yield
    except (PollardError, Bug):
        raise
    except Exception as error:
        raise Bug(error, _write_traceback(error, folder)) from error


def _write_traceback(error: Exception, folder: Path | None) -> Path:
    """Returns the path of the file."""
    name = "traceback.txt" if rank() == 0 else f"traceback-rank{rank()}.txt"
    text = f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}  {sys.argv}\n{''.join(traceback.format_exception(error))}"
    if folder is None or not os.access(folder, os.W_OK) or _is_foreign(folder):
        folder = Path(tempfile.mkdtemp(prefix="pollard-"))
    path = folder / name
    path.write_text(text)
    return path


def _is_foreign(folder: Path) -> bool:
    return not (folder / "manifest.json").exists() and bool(foreign_entries(folder))


def quiet_libraries() -> None:
    """Silences what libraries print while they start."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it misses a faster kernel, on machines without a GPU
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module="torch")
