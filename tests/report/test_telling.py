"""Law: a row of the table tells something: speeds where shapes differ by more than noise, faults where there are any."""

import pytest

from toolkit.report.facts import ModelResult
from toolkit.report.telling import speeds_tell, table_measures


def result(speed: float | None, parameters: int = 4, **about: object) -> ModelResult:
    values = {"score": 0.5, "correct": 1, "n": 2, "interval": (0.1, 0.9), "parameters": parameters, "active_parameters": 1}
    return ModelResult.model_validate(values | {"tokens_per_second": speed} | about)


@pytest.mark.parametrize(
    ("speeds", "tells"),
    [
        ([(100, 4), (90, 2), (120, 2)], False),  # of one shape 1.33 times, between shapes 1.04
        ([(100, 4), (190, 2), (200, 2)], True),
        ([(100, 4), (90, 2)], True),  # nothing says how large the noise is
        ([(100, 4), (None, 2)], True), ([], True),
    ],
)  # fmt: skip
def test_speeds_are_shown_where_shapes_differ_by_more_than_models_of_one_shape(
    speeds: list[tuple[float | None, int]], tells: bool
) -> None:
    results = [result(speed, parameters) for speed, parameters in speeds]
    assert speeds_tell(results) == tells
    shown = [row.field for row in table_measures(results).shown]
    assert ("tokens_per_second" in shown) == (tells and any(speed for speed, _ in speeds))


def test_what_is_zero_for_all_is_folded_and_what_one_has_is_not() -> None:
    table = table_measures([result(1, truncated=0, empty=0), result(1, truncated=3, empty=0)])
    shown, zero = ([row.field for row in rows] for rows in table)
    assert ("truncated" in shown, "empty" in zero, "empty" in shown) == (True, True, False)
    assert "given_up" not in shown + zero  # nobody counted it


def test_memory_of_a_process_on_a_cpu_is_noise() -> None:
    def shown(device: str) -> bool:
        return "peak_memory_bytes" in [row.field for row in table_measures([result(1, device=device, peak_memory_bytes=9)]).shown]

    assert shown("NVIDIA H100") and not shown("cpu")
