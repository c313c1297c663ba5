"""Law: the terminal shows every measured shape with report.json's numbers, in 120 columns, or in the terminal's fewer."""

import re

import pytest
from fit_cases import TOO_LARGE, fit_case, measured, shape

from toolkit.report import show_fit
from toolkit.report.fit_frontier import fit_facts
from toolkit.report.fit_table import METRICS, fit_lines, labels, rest_lines
from toolkit.runtime.distributed import console
from toolkit.runtime.formatting import amount, interval, percent, precise_size, signed_loss


@pytest.fixture
def columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """The console's width is as it was afterwards."""
    monkeypatch.setattr(console, "_width", None)


def rows(out: str) -> dict[str, list[str]]:
    """Cells by label: those of both tables, where there are two."""
    found: dict[str, list[str]] = {}
    for line in out.partition("Losses are")[0].splitlines():
        if match := re.match(r"\s*(original|→ \d+|\d+)  +(.*)", line):
            found.setdefault(match[1], []).extend(re.split(r"  +", match[2].strip()))
    return found


@pytest.mark.usefixtures("columns")
def test_every_measured_shape_has_a_row_with_its_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    facts = fit_facts(fit_case())
    show_fit(fit_case())
    found = rows(capsys.readouterr().out)
    assert list(found) == labels(facts) and list(found)[1] == "→ 1" and sum(label.startswith("→") for label in found) == 1
    for cells, each in zip(list(found.values())[1:], facts.shapes, strict=True):
        per_token = "–" if each.form == "dense" else str(each.experts_per_token)
        form = "dense" if each.form == "dense" else "MoE"
        counts = [str(each.layers), str(each.experts), per_token, str(each.width), form]
        assert cells[:7] == [*counts, precise_size(each.bytes), amount(each.active_parameters)]
        assert each.measured and each.measured.score is not None and each.measured.interval
        loss = "not finite" if each.measured.delta is None else signed_loss(each.measured.delta)
        after = [percent(each.trial.score), interval(each.trial.interval)] if each.trial and each.trial.interval else ["–", "–"]
        expected = [loss, percent(each.measured.score), interval(each.measured.interval), *after]
        assert cells[7:] == [facts.predicted_text(each), *expected]


@pytest.mark.usefixtures("columns")
@pytest.mark.parametrize("terminal", [80, 100, 200, None])
def test_nothing_is_cut_off_however_narrow_the_terminal(
    terminal: int | None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if terminal:
        monkeypatch.setattr(type(console), "is_terminal", True)
        monkeypatch.setattr(console, "_width", terminal)
    large = {"bytes": 1_400 * 2**30, "parameters": 671 * 10**9, "active_parameters": 37_000_000_000, "width": 18_432}
    shapes = [each.model_copy(update=large) for each in fit_case().shapes]
    show_fit(fit_case(shapes=shapes, dtype="checkpoint"))
    out = capsys.readouterr().out
    table = [line for line in out.partition("Losses are")[0].splitlines() if line.strip()]
    assert max(map(len, table)) <= min(terminal or 120, 120) and "…" not in "".join(table)
    assert sum("original" in line for line in table) == 2  # sizes, then results


@pytest.mark.usefixtures("columns")
def test_what_fits_is_one_table(capsys: pytest.CaptureFixture[str]) -> None:
    show_fit(fit_case(shapes=[shape(4, 6, 128, measured=measured(0.2))], chosen=0))
    out = capsys.readouterr().out
    assert out.count("original  ") == 1 and "form" not in out and "KL" not in out and "trial" not in out
    assert rows(out)["→ 1"][-4:] == ["+0.2900", "+0.2000", "–", "–"]  # the accuracy is the original's alone


def test_the_rest_is_counted_with_reasons_and_the_reason_is_the_last_word() -> None:
    lines = fit_lines(fit_facts(fit_case()))
    assert (
        f"Not measured: 2 shapes: {TOO_LARGE}." in lines
        and "Not measured: 1 shape: the answers need a layer that is gone." in lines
    )
    assert "3 more shapes meet the limits and were not measured; the best of them is predicted to add +0.4600 nats." in lines
    assert "The best that cut one thing only: width alone 2, experts alone 3, dense 7." in lines
    assert lines[-1] == f"Chosen: 4 layers, 6 experts of 152 channels, 2 per token (3.36 MiB): {fit_case().reason}."


def test_of_many_reasons_the_most_frequent_are_named() -> None:
    refused = [shape(4, 8, 200 + n, refused=f"reason {n // 2}") for n in range(19)]
    lines = rest_lines(fit_facts(fit_case(shapes=refused, chosen=None)))
    assert (
        len(lines) == 7
        and lines[0] == "Not measured: 2 shapes: reason 0."
        and lines[-1].startswith("Not measured: 7 shapes for 4 other")
    )
    last = fit_case(shapes=[shape(4, 8, 64, measured=measured(1.0), refused="it is odd.")], chosen=None)
    assert rest_lines(fit_facts(last)) == ["Shape 1 was refused after it was measured: it is odd."]


@pytest.mark.usefixtures("columns")
def test_before_anything_is_measured_the_best_predicted_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    shapes = [each.model_copy(update={"measured": None, "trial": None}) for each in fit_case().shapes]
    show_fit(fit_case(shapes=shapes, chosen=None, reason=""), top=4)
    found = rows(capsys.readouterr().out)
    assert list(found) == ["original", "1", "2", "3", "4"]
    assert [cells[7] for cells in list(found.values())[1:]] == ["+0.2100", "+0.2200", "+0.2700", "+0.2900"]


def test_likeness_has_a_column_where_it_was_measured(capsys: pytest.CaptureFixture[str]) -> None:
    show_fit(fit_case(shapes=[shape(4, 6, 128, measured=measured(0.5, 0.8, kl=0.1234))], chosen=0, metric="fidelity"))
    out = capsys.readouterr().out
    assert "KL" in out and "0.1234" in out and METRICS["fidelity"] in out


def test_brackets_in_a_reason_are_not_markup_and_other_ranks_are_quiet(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    show_fit(fit_case(reason="the [bold]best[/] of [/nobody]"))
    assert "the [bold]best[/] of [/nobody]" in capsys.readouterr().out
    monkeypatch.setenv("RANK", "1")
    show_fit(fit_case())
    assert capsys.readouterr().out == ""
