"""Law: geometry follows the numbers."""

from pathlib import Path

import pytest
from made_up_run import make_run

from toolkit.report import collect
from toolkit.report.charts import heat_map, loss_curve, nice_ticks


def test_every_expert_has_a_cell_and_the_largest_share_is_the_darkest(tmp_path: Path) -> None:
    heat = heat_map(collect(make_run(tmp_path).path))
    assert heat is not None
    assert [(label, len(cells)) for label, cells in heat.rows] == [("0", 4), ("1", 4)]  # named by what tells blocks apart
    darkest = max((cell for _, cells in heat.rows for cell in cells), key=lambda cell: cell.strength)
    assert (darkest.title, darkest.strength) == ("block 1, expert 2: 60.00 %", 1.0)
    assert heat.legend[-1] == (1.0, "60.0 %")


def test_a_legend_swatch_stands_for_the_share_that_is_drawn_like_it(tmp_path: Path) -> None:
    heat = heat_map(collect(make_run(tmp_path).path))
    assert heat is not None
    swatch = heat.legend[2]
    assert swatch == (0.5, "15.0 %")  # a quarter of the largest share: darkness is its square root


def test_many_experts_in_many_blocks_still_have_few_labels_and_rows_one_can_read() -> None:
    block = {"experts": 128, "kept": None, "share": {"all": [1 / 128] * 128}}
    heat = heat_map({"pruning": None, "blocks": {f"layers.{i}.mlp": block for i in range(48)}})
    assert heat is not None
    assert len(heat.ticks) == 16
    assert heat.row_height >= 10 and heat.widths[0] >= 128 * 8


def test_without_statistics_there_is_no_map(tmp_path: Path) -> None:
    assert heat_map(collect(tmp_path)) is None


def test_the_curve_runs_from_the_first_to_the_last_logged_step() -> None:
    curve = loss_curve({"loss": [[10, 2.0], [20, 1.0]], "dev_loss": [[20, 1.5]]})
    assert curve is not None
    assert curve.train == ["50.0,0.0 100.0,100.0"]
    assert curve.dev == [(100.0, 50.0, "step 20: dev loss 1.5000")]
    assert curve.losses[0].label == "2.0" or curve.losses[0].at == 100.0


def test_a_loss_that_is_not_finite_breaks_the_line() -> None:
    curve = loss_curve({"loss": [[1, 3.0], [2, None], [3, 2.0]], "dev_loss": []})
    assert curve is not None and len(curve.train) == 2


@pytest.mark.parametrize("training", [None, {"loss": [], "dev_loss": []}, {"loss": [[1, None]], "dev_loss": []}])
def test_without_a_finite_loss_there_is_no_curve(training: dict | None) -> None:
    assert loss_curve(training) is None


@pytest.mark.parametrize(("low", "high"), [(0.35, 1.45), (0.0, 300.0), (2.0, 2.0), (1e-7, 3e-7), (0.9999, 1.0001)])
def test_ticks_are_few_ascending_and_enclose_the_data(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert 2 <= len(ticks) <= 7
    assert ticks == sorted(set(ticks))
    assert ticks[0] <= low + 1e-9 and ticks[-1] >= high - 1e-9
