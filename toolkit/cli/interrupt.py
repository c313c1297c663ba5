"""Ctrl-C, and the SIGTERM of a launcher or of SLURM's time limit: a run can be stopped at any moment and says how to resume it.

Python raises KeyboardInterrupt only when the C++ code that waits for other ranks returns, and it never does once they are
gone. So a separate thread receives the signal, prints the command that resumes the run, and ends the process. The run
resumes from what is on disk by then, as after a kill.
"""

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from toolkit.runtime.distributed import console, is_main
from toolkit.runtime.typed_command import command_again

INTERRUPTED = 130  # exit status
SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def resumable() -> Iterator[None]:
    """Inside, SIGINT and SIGTERM end this process at once, without a traceback; rank 0 prints the command that resumes the run.

    Does nothing outside the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    listener = threading.Thread(target=_listen, args=(receiver,), daemon=True)
    previous = {number: signal.signal(number, _ignore) for number in SIGNALS}
    fd = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    listener.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(fd)
        for number, handler in previous.items():
            signal.signal(number, handler)
        sender.close()  # which ends the listener
        listener.join()
        receiver.close()


def _ignore(number: int, frame: Any) -> None:
    """Python writes to the wake-up socket by itself, but only for signals that have a Python handler."""


def _listen(receiver: socket.socket) -> None:
    while received := receiver.recv(1):
        if received[0] in SIGNALS:
            _exit_with_advice()


def _exit_with_advice() -> None:
    if is_main():
        console.print("\n[bold yellow]stopped[/]: what is done stays done, and this goes on from there:")
        console.print(f"  {command_again()}", markup=False)
    console.show_cursor(True)  # a progress bar had hidden it
    sys.stdout.flush()
    os._exit(INTERRUPTED)
