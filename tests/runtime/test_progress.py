import io

import pytest
from rich.console import Console

from toolkit.runtime import distributed, progress
from toolkit.runtime.progress import duration, format_progress, steps_bar


class Clock:
    """Every item takes `step` seconds."""

    def __init__(self, step: float) -> None:
        self.now, self.step = 0.0, step

    def monotonic(self) -> float:
        return self.now


def lines_of(count: int, step: float, monkeypatch: pytest.MonkeyPatch, capsys, **how) -> list[str]:
    clock = Clock(step)
    monkeypatch.setattr(progress, "time", clock)
    seen = []
    for item in progress.progress(range(count), "answering", **how):
        seen.append(item)
        clock.now += step
    assert seen == list(range(count))
    return capsys.readouterr().out.splitlines()


def test_a_log_file_gets_a_line_for_every_tenth(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    lines = lines_of(100, 1.0, monkeypatch, capsys)
    assert lines[0] == "  answering 10/100 (10 %), 1.0/s, 1 min 30 s left"
    assert lines[-1] == "  answering 90/100 (90 %), 1.0/s, 10 s left"
    assert len(lines) == 9


def test_what_takes_long_is_told_before_a_tenth_is_done(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    lines = lines_of(1000, 6.0, monkeypatch, capsys)
    assert lines[0] == "  answering 5/1,000 (0 %), 6.0 s each, 1 h 39 min left"
    assert lines[1].startswith("  answering 10/1,000")


def test_what_is_quick_is_not_told_at_all(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    assert lines_of(100, 0.01, monkeypatch, capsys) == []


# Batches are dealt out: of 40 questions in batches of 4 this rank has 20.
def test_batches_count_by_what_is_in_them_and_the_others_ranks_count_too(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    lines = lines_of(5, 10.0, monkeypatch, capsys, sizes=[4] * 5, total=40)
    assert lines[0] == "  answering 8/40 (20 %), 1.2 s each, 40 s left"


def test_other_ranks_are_quiet(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("RANK", "1")
    assert lines_of(100, 1.0, monkeypatch, capsys) == []


def at_a_terminal(monkeypatch: pytest.MonkeyPatch, **environment: str) -> io.StringIO:
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"TERM": "xterm-256color"} | environment).items():
        monkeypatch.setenv(name, value)
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100, highlight=False)
    for module in (progress, distributed):
        monkeypatch.setattr(module, "console", console)
    return screen


def test_a_terminal_gets_a_bar_with_rate_and_time_left_that_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = at_a_terminal(monkeypatch)
    for _ in progress.progress(range(3), "answering"):
        pass
    drawn = screen.getvalue()
    assert "answering" in drawn and "3/3 (100 %)" in drawn and "0 s left" in drawn
    assert drawn.endswith("\x1b[2K")  # erased


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    colourful, plain = at_a_terminal(monkeypatch), None
    distributed.say("[red]error[/]")
    assert "\x1b[31m" in colourful.getvalue()
    plain = at_a_terminal(monkeypatch, NO_COLOR="1")
    distributed.say("[red]error[/]")
    for _ in progress.progress(range(3), "answering"):
        pass
    assert "\x1b[31m" not in plain.getvalue() and "\x1b[38;" not in plain.getvalue()


def test_a_training_that_goes_on_is_timed_by_its_own_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    assert format_progress(50, 100, 10, first=40) == "50/100 (50 %), 1.0/s, 50 s left"
    screen = at_a_terminal(monkeypatch)
    with steps_bar("training") as at:
        at(40, 100)
        at(41, 100)
    assert "41/100 (41 %)" in screen.getvalue()


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.2, "0.2 s"), (9.96, "10 s"), (59.7, "1 min 0 s"), (84, "1 min 24 s"), (8040, "2 h 14 min")]
)
def test_durations_read_like_speech(seconds: float, said: str) -> None:
    assert duration(seconds) == said
