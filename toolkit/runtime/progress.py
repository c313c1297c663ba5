"""Progress of a stage: a bar at a terminal, else lines that a log file keeps and grep finds.

answering 120/1,319 (9 %), 14.2/s, 1 min 24 s left
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

from toolkit.runtime.distributed import console, is_main, say

T = TypeVar("T")
Advance = Callable[[float], None]  # its argument: how much has been done since the last call

REPORTED_SHARE = 0.1  # a line after each tenth,
SHORTEST_PAUSE = 5  # but at least this many seconds after the last one,
LONGEST_PAUSE = 30  # and at most this many


def progress(items: Sequence[T], description: str, sizes: Sequence[int] = (), total: int | None = None) -> Iterator[T]:
    """Iterates over this rank's items and shows the progress on rank 0.

    `sizes`: what each item counts, e.g. the lengths of batches (default: 1); `total`: the sum over all ranks, which are assumed
    to be as far as rank 0.
    """
    sizes = sizes or [1] * len(items)
    mine = sum(sizes)
    factor = total / mine if total and mine else 1
    with progress_display(description, total or mine) as advance:
        for item, size in zip(items, sizes, strict=True):
            yield item
            advance(size * factor)


def progress_display(description: str, total: int) -> AbstractContextManager[Advance]:
    """Shows on rank 0, inside the context, how much of `total` is done. Yields the function that advances it."""
    if not is_main():
        return _hidden()
    return _bar(description, total) if console.is_terminal else _lines(description, total)


@contextmanager
def _hidden() -> Iterator[Advance]:
    yield lambda amount: None


@contextmanager
def _bar(description: str, total: int) -> Iterator[Advance]:
    with steps_bar(description) as at:
        done = 0.0
        at(done, total)

        def advance(amount: float) -> None:
            nonlocal done
            done += amount
            at(done, total)

        yield advance


@contextmanager
def steps_bar(description: str) -> Iterator[Callable[[float, float], None]]:
    """A bar on rank 0 at a terminal, and nothing elsewhere. Yields a function of (done, total). What is done at its first call
    took no time: the steps of a resumed training."""
    if not (is_main() and console.is_terminal):
        yield lambda done, total: None
        return
    columns = (TextColumn("  {task.description}"), BarColumn(bar_width=30), _Numbers())
    with Progress(*columns, console=console, transient=True) as bar:
        tasks: list[TaskID] = []

        def at(done: float, total: float) -> None:
            if not tasks:
                tasks.append(bar.add_task(description, total=total, first=done))
            bar.update(tasks[0], completed=done, total=total)

        yield at


class _Numbers(ProgressColumn):
    """The text that a line has."""

    def render(self, task: Task) -> Text:
        return Text(format_progress(task.completed, task.total or 0, task.elapsed or 0.0, task.fields["first"]))


@contextmanager
def _lines(description: str, total: int) -> Iterator[Advance]:
    started = reported_at = time.monotonic()
    done = reported = 0.0

    def advance(amount: float) -> None:
        nonlocal done, reported, reported_at
        done += amount
        pause = time.monotonic() - reported_at
        enough = done - reported >= REPORTED_SHARE * total and pause >= SHORTEST_PAUSE
        if (enough or pause >= LONGEST_PAUSE) and round(done) < total:  # the stage reports its end itself
            reported_at, reported = time.monotonic(), done
            say(f"  {description} {format_progress(done, total, reported_at - started)}")

    yield advance


def format_progress(done: float, total: float, seconds: float, first: float = 0) -> str:
    """120, 1319, 8.45 -> "120/1,319 (9 %), 14.2/s, 1 min 24 s left". `first`: what was done before the seconds began."""
    text = f"{round(done):,}/{round(total):,} ({done / total if total else 1:.0%})".replace("%", " %")
    now = done - first
    if now <= 0 or seconds <= 0:
        return text
    return f"{text}, {speed(now / seconds)}, {duration(seconds * (total - done) / now)} left"


def speed(per_second: float) -> str:
    """14.2 -> "14.2/s"; 0.5 -> "2.0 s each"."""
    if per_second >= 1:
        return f"{per_second:,.1f}/s"
    return f"{duration(1 / per_second)} each"


def duration(seconds: float) -> str:
    """5.2 -> "5 s"; 84 -> "1 min 24 s"; 8040 -> "2 h 14 min"."""
    if round(seconds) < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def batch_sizes(batches: Iterable[Sequence[object]]) -> list[int]:
    """The lengths of batches, for the `sizes` of `progress`."""
    return [len(batch) for batch in batches]
