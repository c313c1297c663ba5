"""Ctrl-C, and the SIGTERM of a launcher or of SLURM's clock: a run may be left at any moment, and says how to go on.

Python would raise KeyboardInterrupt only once the C++ that waits for other ranks returns, which it does not when they are
gone; so a thread of its own hears the signal, says what there is to say, and ends the process. What is on disk by then is
what a run goes on from: the same as after a kill.
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
    """Inside, a signal ends this process at once, without a traceback; rank 0 says how to go on. Does nothing in a thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    hearing, signalled = socket.socketpair()
    signalled.setblocking(False)
    listener = threading.Thread(target=_listen, args=(hearing,), daemon=True)
    before = {number: signal.signal(number, _unheard) for number in SIGNALS}
    fd = signal.set_wakeup_fd(signalled.fileno(), warn_on_full_buffer=False)
    listener.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(fd)
        for number, handler in before.items():
            signal.signal(number, handler)
        signalled.close()  # which ends the listener
        listener.join()
        hearing.close()


def _unheard(number: int, frame: Any) -> None:
    """Python wakes the listener by itself, and only where a signal has a handler."""


def _listen(hearing: socket.socket) -> None:
    while heard := hearing.recv(1):
        if heard[0] in SIGNALS:
            _leave()


def _leave() -> None:
    if is_main():
        console.print("\n[bold yellow]stopped[/]: what is done stays done, and this goes on from there:")
        console.print(f"  {command_again()}", markup=False)
    console.show_cursor(True)  # a progress bar had hidden it
    sys.stdout.flush()
    os._exit(INTERRUPTED)
