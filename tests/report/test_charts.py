"""Law: geometry follows the numbers, on one scale, and nothing leaves the picture."""

import re

import pytest
from test_sweep_table import COMPRESSED, ROWS, SHAPES, N

from toolkit.recipe.roles import Role
from toolkit.report import tabulate
from toolkit.report.charts import Agreement, agreement, forest, keep_curve, log_ticks, loss_curve, nice_ticks
from toolkit.report.facts import CriteriaAgreement, RolePair, TrainingFacts
from toolkit.runtime.intervals import wilson

Point = tuple[float, float]


def pair(low: float, difference: float, high: float) -> RolePair:
    counts = dict.fromkeys(("both", "only_first", "only_second", "neither", "n"), 1)
    return RolePair(
        first=Role.PRUNED, second=Role.ORIGINAL, difference=difference, interval=(low, high), p=1, significant=False, **counts
    )


def trained(*loss: tuple[int, float | None], dev: tuple[tuple[int, float | None], ...] = ()) -> TrainingFacts:
    unknown = dict.fromkeys(("steps", "examples", "left_out", "repeating", "beyond_context", "selected_step"))
    return TrainingFacts(**unknown, loss=list(loss), dev_loss=list(dev))


def points(text: str) -> list[Point]:
    """Of a polyline or polygon, in percent; checks that none lies outside the picture."""
    found = [(float(x), float(y)) for x, y in (point.split(",") for point in text.split())]
    assert all(0 <= at <= 100 for point in found for at in point)
    return found


def bars(found: Agreement, criterion: str) -> dict[int, float]:
    """The heights of a strip's bars by block; checks that each stands in its own block, on the ground."""
    strip = re.findall(r"M([\d.]+) 1v-([\d.]+)h([\d.]+)V1z", found.strips[criterion])
    assert "".join(f"M{x} 1v-{height}h{width}V1z" for x, height, width in strip) == found.strips[criterion]
    assert all(int(float(x)) <= float(x) and float(x) + float(width) <= int(float(x)) + 1 for x, _, width in strip)
    return {int(float(x)): float(height) for x, height, _ in strip}


def test_a_difference_lies_inside_its_whiskers_and_the_scale_holds_every_interval_and_zero() -> None:
    found = forest([pair(-0.4, -0.2, 0.0), pair(0.2, 0.3, 0.4)])
    assert found is not None
    assert all(0 < low < middle < high < 100 for low, middle, high in found.rows)
    (low, middle, zero), (next_low, _, high) = found.rows
    assert zero == found.zero == 50.0 and low == pytest.approx(100 - high)
    assert [middle - low, next_low - zero] == pytest.approx([zero - middle] * 2, abs=0.02)


def test_nothing_compared_is_no_scale() -> None:
    assert forest([]) is None


def test_the_bar_of_a_larger_share_is_longer_and_the_least_is_named() -> None:
    shares = {"layers.3.mlp": 1.0, "layers.4.mlp": 0.25, "layers.5.mlp": 0.0, "layers.6.mlp": 0.5}
    found = agreement(CriteriaAgreement(by_chance=0.5, agreement={"reap": shares}, mean={}))
    assert found is not None and found.blocks == ["3", "4", "5", "6"]
    assert bars(found, "reap") == {0: 1.0, 1: 0.25, 3: 0.5}  # no bar for no share
    assert found.least["reap"] == (0.0, "5")
    assert agreement(None) is None


def test_the_curve_falls_with_the_loss_and_ends_at_the_last_logged_step() -> None:
    curve = loss_curve({Role.RECOVERED: trained((10, 2.0), (20, 1.0), dev=((20, 1.5),)), Role.CONTROL: None})
    assert curve is not None and not curve.logarithmic
    [line] = curve.lines
    (x, y), (last, bottom) = points(line.train[0])
    assert (2 * x, last) == (100, 100) and y < bottom  # down the page
    [(dev_x, dev_y, title)] = line.dev
    assert dev_x == 100 and dev_y == pytest.approx((y + bottom) / 2)  # 1.5 is half-way from 2 to 1
    assert title == "recovered, step 20: dev loss 1.5000"
    assert curve.losses[0].at == bottom and curve.losses[0].label == "1"


def test_both_trainings_are_drawn_on_one_scale() -> None:
    curve = loss_curve({Role.RECOVERED: trained((10, 2.0)), Role.CONTROL: trained((20, 1.0))})
    assert curve is not None and [line.role for line in curve.lines] == [Role.RECOVERED, Role.CONTROL]
    [(x, y)], [(last, bottom)] = (points(line.train[0]) for line in curve.lines)
    assert 2 * x == last and y < bottom


def test_losses_that_fall_a_hundredfold_are_drawn_on_a_logarithmic_scale() -> None:
    curve = loss_curve({Role.RECOVERED: trained((1, 1.0), (2, 0.1), (3, 0.01))})
    assert curve is not None and curve.logarithmic
    first, second, third = (y for _, y in points(curve.lines[0].train[0]))
    assert second - first == third - second > 0  # the same factor is the same distance
    assert [tick.label for tick in curve.losses] == ["0.01", "0.1", "1"]


def test_logarithmic_ticks_enclose_the_data() -> None:
    assert log_ticks(0.003, 2.0) == [0.001, 0.01, 0.1, 1.0, 10.0]


def test_a_loss_that_is_not_finite_breaks_the_line() -> None:
    curve = loss_curve({Role.RECOVERED: trained((1, 3.0), (2, None), (3, 2.0))})
    assert curve is not None and [len(points(stretch)) for stretch in curve.lines[0].train] == [1, 1]


@pytest.mark.parametrize("training", [None, trained(), trained((1, None))])
def test_without_a_finite_loss_there_is_no_curve(training: TrainingFacts | None) -> None:
    assert loss_curve({Role.RECOVERED: training}) is None


@pytest.mark.parametrize(("low", "high"), [(0.35, 1.45), (0.0, 300.0), (2.0, 2.0), (1e-7, 3e-7), (0.9999, 1.0001)])
def test_ticks_are_few_ascending_and_enclose_the_data(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert 2 <= len(ticks) <= 7
    assert ticks == sorted(set(ticks))
    assert ticks[0] <= low + 1e-9 and ticks[-1] >= high - 1e-9


def test_every_line_of_a_sweep_ends_at_the_original_and_lies_as_low_as_its_scores() -> None:
    curve = keep_curve(tabulate(ROWS))
    assert curve is not None
    lines = {line.label: points(line.points) for line in curve.lines}
    assert list(lines) == ["random", "reap", "frequency"]
    assert [tick.label for tick in curve.keeps] == ["4", "6", "8"]
    original = (100.0, 5.0)  # 95 of 100 right
    assert all(line[-1] == original and [x for x, _ in line] == [tick.at for tick in curve.keeps] for line in lines.values())
    for line in curve.lines:
        means = {x: [100 - 100 * row.task.correct / N for row in ROWS if (row.label, row.keep) == (line.label, keep)]
                 for x, keep in ((0.0, 4), (50.0, 6))}  # fmt: skip
        assert lines[line.label][:2] == [(x, pytest.approx(sum(scores) / len(scores))) for x, scores in means.items()]


def test_the_seeds_of_random_have_a_band_that_holds_their_mean_and_every_dot() -> None:
    curve = keep_curve(tabulate(ROWS))
    assert curve is not None
    random, reap, _ = curve.lines
    assert not reap.band
    band = points(random.band)
    for x, y in [*points(random.points), *((x, y) for x, y, _ in random.dots)]:
        edges = [edge for at, edge in band if at == x]
        assert len(edges) == 2 and min(edges) <= y <= max(edges)
    assert reap.dots[0] == (50.0, 6.0, "reap, keep 6: 94.0 %, 95 % interval 87.5–97.2 %")


def test_the_originals_interval_is_drawn_where_its_ends_are() -> None:
    curve = keep_curve(tabulate(ROWS))
    assert curve is not None
    low, high = wilson(95, N)
    assert curve.original == (pytest.approx(100 * (1 - high), abs=0.01), pytest.approx(100 * (high - low), abs=0.01))


def test_without_a_sweep_there_is_no_curve() -> None:
    assert keep_curve(None) is None


def test_a_sweep_of_shapes_is_drawn_over_the_share_of_the_parameters() -> None:
    curve = keep_curve(tabulate(SHAPES))
    assert curve is not None and curve.axis == "parameters, of the original's"
    lines = {line.label: points(line.points) for line in curve.lines}
    assert lines["energy"] == [(0.0, 40.0), (pytest.approx(100 * 290 / 700, abs=0.01), 7.0), (100.0, 5.0)]
    assert all(0 <= tick.at <= 100 for tick in curve.keeps) and curve.keeps[-1] == (100.0, "100 %")
    assert lines["reap + random"][0][1] == 35.0  # the mean of two seeds
    titles = [title for line in curve.lines for *_, title in line.dots]
    assert titles[-1].startswith("reap + random, 4 experts, 1,024 channels, seed 1: 40.0 %")


def test_a_sweep_with_compressed_cells_is_drawn_over_the_share_of_the_bytes() -> None:
    curve = keep_curve(tabulate(COMPRESSED))
    assert curve is not None and curve.axis == "bytes, of the original's"
    lines = {line.label: points(line.points) for line in curve.lines}
    assert lines["low_rank:0.1"] == [(0.0, 97.0), (100.0, 5.0)] and lines["low_rank:0.5"] == [(50.0, 5.0), (100.0, 5.0)]
