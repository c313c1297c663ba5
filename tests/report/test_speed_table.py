"""Law: a benchmark's table has a row for every model and batch size, and ratios are to the first model."""

import pytest
from conftest import ROOT

from toolkit.report.facts import RunFacts
from toolkit.report.measurements import SpeedTable
from toolkit.report.speed_table import COLUMNS, explanation, rows, show_speed


@pytest.fixture
def measured() -> SpeedTable:
    """Two models; with the second, the batch of 8 does not fit."""
    sample = RunFacts.model_validate_json((ROOT / "tests" / "samples" / "report.json").read_text(encoding="utf-8"))
    assert sample.speed is not None
    return sample.speed


def cells(measured: SpeedTable) -> dict[tuple[str, str], dict[str, list[str]]]:
    """By batch size and model, and then by column: there are two columns of ratios."""
    found: dict[tuple[str, str], dict[str, list[str]]] = {}
    for row in rows(measured):
        columns = found.setdefault((row[0], row[1]), {})
        for column, cell in zip(COLUMNS, row, strict=True):
            columns.setdefault(column, []).append(cell)
    return found


def test_every_model_has_a_row_for_every_batch_size(measured: SpeedTable) -> None:
    assert list(cells(measured)) == [("1", "original"), ("1", "recovered"), ("8", "original"), ("8", "recovered")]


def test_speeds_have_their_spread_and_the_first_model_has_no_ratios(measured: SpeedTable) -> None:
    first, second = cells(measured)["1", "original"], cells(measured)["1", "recovered"]
    assert first["prefill"] == ["1,000 ±10 %"]  # half of what lies between 900 and 1,100
    assert first["ratio"] == ["", ""] and second["ratio"] == ["1.20 (1.10–1.30)", "1.30 (1.20–1.40)"]
    assert first["memory (ratio)"] == ["300.0 MiB"] and second["memory (ratio)"] == ["300.0 MiB (0.50)"]


def test_a_batch_that_does_not_fit_has_no_numbers(measured: SpeedTable) -> None:
    assert cells(measured)["8", "recovered"]["prefill"] == ["does not fit"]
    assert cells(measured)["8", "recovered"]["ratio"] == ["", ""]


def test_random_weights_and_reloading_are_named(measured: SpeedTable) -> None:
    assert "all models in memory" in explanation(measured) and "Random weights" in explanation(measured)
    trained = [model.model_copy(update={"random": False}) for model in measured.models]
    others = measured.model_copy(update={"together": False, "models": trained})
    assert "loaded anew for its turn" in explanation(others) and "Random weights" not in explanation(others)


def test_the_terminal_shows_sizes_speeds_and_what_they_are(measured: SpeedTable, capsys: pytest.CaptureFixture[str]) -> None:
    show_speed(measured)
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert sum(line.startswith(("original", "recovered")) for line in lines) == 2
    assert sum(line.startswith(("1 ", "8 ")) for line in lines) == 4
    assert explanation(measured) in " ".join(lines)
