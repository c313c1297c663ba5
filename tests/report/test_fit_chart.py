"""Law: every measured shape is drawn where its numbers put it, or named as one that cannot be."""

import pytest
from fit_cases import LIMIT, fit_case, measured, shape

from toolkit.report.fit_chart import prediction_chart, size_chart
from toolkit.report.fit_frontier import fit_facts
from toolkit.report.point_labels import along, labels


def test_accuracy_stands_over_the_size_and_the_limit_to_the_right_of_all_that_meet_it() -> None:
    facts = fit_facts(fit_case())
    chart = size_chart(facts)
    assert chart is not None and chart.height == "dev accuracy" and chart.limit is not None and not chart.undrawn
    assert [point.number for point in chart.points] == list(range(1, 9)) and [p.number for p in chart.points if p.chosen] == [1]
    by_size = sorted(chart.points, key=lambda point: facts.shapes[point.number - 1].bytes)
    assert [p.x for p in by_size] == sorted(p.x for p in chart.points) and by_size[-1].x < chart.limit < 100
    left, right = by_size[0], by_size[-1]
    sizes = [facts.shapes[p.number - 1].bytes for p in (left, right)]
    assert (chart.limit - left.x) / (right.x - left.x) == pytest.approx((LIMIT - sizes[0]) / (sizes[1] - sizes[0]), abs=1e-3)
    percents = {tick.label: tick.at for tick in chart.values}
    for point in chart.points:
        found = facts.shapes[point.number - 1]
        assert found.measured and found.measured.score is not None and point.reach
        height = percents["0 %"] + (percents["100 %"] - percents["0 %"]) * found.measured.score
        assert point.y == pytest.approx(height, abs=0.02) and point.reach[0] < point.y < point.reach[1]
        assert (point.trial is not None) == (found.trial is not None)
        assert point.title.startswith(f"{point.number}{', chosen' * point.chosen}: {found.text}")
    assert chart.points[0].trial is not None and chart.points[0].trial < chart.points[0].y  # better: higher up


def test_the_frontier_goes_through_the_points_that_nothing_smaller_beats() -> None:
    facts = fit_facts(fit_case())
    chart = size_chart(facts)
    assert chart is not None and facts.frontier
    corners = [tuple(map(float, corner.split(","))) for corner in chart.frontier.split()]
    assert corners == [(chart.points[i].x, chart.points[i].y) for i in facts.frontier]


def test_without_accuracies_losses_stand_there_and_what_is_not_finite_is_named() -> None:
    shapes = [
        shape(4, 8, 250, measured=measured(0.5)),
        shape(4, 8, 200, measured=measured(0.9)),
        shape(4, 8, 60, measured=measured(None)),
    ]
    facts = fit_facts(fit_case(shapes=shapes, chosen=0))
    chart = size_chart(facts)
    assert chart is not None and chart.height == "dev loss, above the original's" and chart.undrawn == [3]
    assert [point.number for point in chart.points] == [1, 2] and chart.points[0].y > chart.points[1].y
    assert chart.original is not None and chart.original[1] == 0 and chart.original[0] >= chart.points[0].y
    assert all(point.reach is None for point in chart.points)


def test_one_shape_is_drawn_and_none_is_not() -> None:
    alone = [shape(4, 8, 200, measured=measured(0.5, 0.7))]
    chart = size_chart(fit_facts(fit_case(shapes=alone, chosen=0, limits={"gpu": 2**30})))
    assert chart is not None and chart.limit is None and 0 <= chart.points[0].x <= 100 and chart.sizes
    broken = [shape(4, 8, 200, measured=measured(None))]
    assert size_chart(fit_facts(fit_case(shapes=broken, chosen=None))) is None
    assert size_chart(fit_facts(fit_case(shapes=[], chosen=None))) is None
    assert prediction_chart(fit_facts(fit_case(shapes=alone, chosen=0))) is None


@pytest.mark.parametrize(
    ("limits", "unit", "axis"),
    [
        ({"active": 400_000}, " k", "parameters active per token"), ({"parameters": 900_000}, " k", "parameters"),
        ({"bytes": LIMIT}, " MiB", "size on disk"),
    ],
)  # fmt: skip
def test_the_axis_is_what_is_limited_in_round_numbers(limits: dict[str, int], unit: str, axis: str) -> None:
    chart = size_chart(fit_facts(fit_case(limits=limits)))
    assert chart is not None and chart.size == axis and len(chart.sizes) >= 2
    assert all(tick.label.endswith(unit) and 0 <= tick.at <= 100 for tick in chart.sizes)
    assert all(float(tick.label.removesuffix(unit)) * 100 % 5 == 0 for tick in chart.sizes)


def test_a_shape_lies_on_the_diagonal_where_it_lost_what_was_predicted() -> None:
    shapes = [
        shape(4, 8, 250 - n, predicted=p, measured=measured(m)) for n, (p, m) in enumerate([(0.1, 0.1), (0.2, 0.5), (0.8, 0.3)])
    ]
    chart = prediction_chart(fit_facts(fit_case(shapes=[*shapes, shape(4, 8, 64, measured=measured(None))], chosen=0)))
    assert chart is not None and chart.undrawn == [4]
    drawn = {point.number: point for point in chart.points}
    assert len(drawn) == 3
    off = sorted(round(100 - point.y - point.x, 1) for point in drawn.values())  # above the diagonal: more was lost
    assert off[0] < 0 and off[1] == 0 and off[2] > 0
    assert [tick.at for tick in chart.ticks] == [100 - tick.at for tick in chart.heights]


def test_numbers_lie_on_no_other_point_and_no_line() -> None:
    places = {0: (50.0, 50.0), 1: (52.0, 50.0), 2: (50.0, 55.0)}
    found = labels(places)
    assert len(set(found.values())) > 1 and found[0].anchor == "end"  # to its right stands the second point
    assert labels({0: (50.0, 50.0)})[0].anchor == "start"
    assert labels({0: (50.0, 50.0)}, along([(50.0, 50.0), (100.0, 50.0)]))[0].anchor == "end"
