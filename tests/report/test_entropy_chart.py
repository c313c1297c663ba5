"""Law: routing entropy is drawn from zero, over the steps of the longest training, and the least block lies under the mean."""

from typing import Any

from toolkit.recipe.roles import Role
from toolkit.report.entropy_chart import entropy_curve
from toolkit.report.facts import TrainingFacts

UNKNOWN: dict[str, Any] = dict.fromkeys(("steps", "examples", "left_out", "repeating", "beyond_context", "selected_step"))


def trained(*entropy: tuple[int, float, float]) -> TrainingFacts:
    return TrainingFacts(**UNKNOWN, loss=[(1, 0.5)], dev_loss=[], routing_entropy=list(entropy))


def places(points: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (point.split(",") for point in points.split())]


def test_the_least_block_lies_under_the_mean_and_nothing_leaves_the_picture() -> None:
    found = entropy_curve({Role.RECOVERED: trained((25, 2.0, 1.5), (50, 1.0, 0.0)), Role.CONTROL: trained((100, 2.8, 2.7))})
    assert found is not None and found.bits[0].label == "0" and [line.role for line in found.lines] == ["recovered", "control"]
    recovered, control = ((places(line.mean), places(line.least)) for line in found.lines)
    assert [x for x, _ in recovered[0]] == [25.0, 50.0] and recovered[1][-1] == (50.0, 100.0)  # 0 bits are at the bottom
    for mean, least in (recovered, control):
        assert all(0 <= above[1] <= below[1] <= 100 for above, below in zip(mean, least, strict=True))


def test_without_a_log_of_it_nothing_is_drawn() -> None:
    assert entropy_curve({Role.RECOVERED: trained(), Role.CONTROL: None}) is None
