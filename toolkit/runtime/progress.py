"""How far a stage is: a moving bar where somebody looks, else lines that a log file keeps and grep finds.

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
Advance = Callable[[float], None]  # told how much has been done since it was last called

REPORTED_SHARE = 0.1  # a line after each tenth,
SHORTEST_PAUSE = 5  # but no sooner than so many seconds after the one before,
LONGEST_PAUSE = 30  # and no later than this


def progress(items: Sequence[T], description: str, sizes: Sequence[int] = (), total: int | None = None) -> Iterator[T]:
    """Iterates over this rank's share, and on rank 0 shows how far it is.

    `sizes`: how much each item is, where items are batches (what is counted is then their content); `total`: what all ranks
    do together. It is shown as if every rank were as far as rank 0.
    """
    sizes = sizes or [1] * len(items)
    mine = sum(sizes)
    factor = total / mine if total and mine else 1
    with progress_display(description, total or mine) as advance:
        for item, size in zip(items, sizes, strict=True):
            yield item
            advance(size * factor)


def progress_display(description: str, total: int) -> AbstractContextManager[Advance]:
    """Shows on rank 0, inside the context, how much of `total` is done."""
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
    """A bar on rank 0 at a terminal, and nothing elsewhere; it is told how much is done and of how much. Where it is told
    first, work began: a training that goes on has steps that took no time."""
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
    """The same words as a line has."""

    def render(self, task: Task) -> Text:
        return Text(format_progress(task.completed, task.total or 0, task.elapsed or 0.0, task.fields["first"]))


@contextmanager
def _lines(description: str, total: int) -> Iterator[Advance]:
    started = told_at = time.monotonic()
    done = told_of = 0.0

    def advance(amount: float) -> None:
        nonlocal done, told_of, told_at
        done += amount
        since = time.monotonic() - told_at
        enough = done - told_of >= REPORTED_SHARE * total and since >= SHORTEST_PAUSE
        if (enough or since >= LONGEST_PAUSE) and round(done) < total:  # what comes of it is said by the stage
            told_at, told_of = time.monotonic(), done
            say(f"  {description} {format_progress(done, total, told_at - started)}")

    yield advance


def format_progress(done: float, total: float, seconds: float, first: float = 0) -> str:
    """120, 1319, 8.45 -> "120/1,319 (9 %), 14.2/s, 1 min 24 s left". What was done at `first` took none of the seconds."""
    said = f"{round(done):,}/{round(total):,} ({done / total if total else 1:.0%})".replace("%", " %")
    now = done - first
    if now <= 0 or seconds <= 0:
        return said
    return f"{said}, {speed(now / seconds)}, {duration(seconds * (total - done) / now)} left"


def speed(per_second: float) -> str:
    """14.2 -> "14.2/s"; below one a second, how long one takes."""
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
    """`sizes` of batches."""
    return [len(batch) for batch in batches]
