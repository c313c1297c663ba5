"""Which measures tell something: what is noise, or zero for everybody, only hides what is not."""

from collections.abc import Iterable, Sequence
from itertools import groupby
from statistics import geometric_mean
from typing import NamedTuple

from toolkit.report.facts import ModelResult
from toolkit.report.measures import MEASURES, Measure

Shape = tuple[str, ...]
FAULTS = ("truncated", "truncated_share", "empty", "given_up")
"""Fields of ModelResult that are zero where all is well."""


def _shape(result: ModelResult) -> Shape:
    """What two models have in common that take the same time for a token."""
    return tuple(map(str, (result.parameters, result.active_parameters, result.experts_skipped)))


def speeds_tell(results: Iterable[ModelResult]) -> bool:
    """Whether models of different shapes differ in tokens/s by more than models of the same shape do, which differ by noise
    alone. True where there is no such pair to know the noise from."""
    timed = sorted((result for result in results if result.tokens_per_second), key=_shape)
    groups = [[float(one.tokens_per_second or 0) for one in group] for _, group in groupby(timed, _shape)]
    noise = [max(group) / min(group) for group in groups if len(group) > 1]
    if not noise:
        return True
    means = [geometric_mean(group) for group in groups]
    return max(means) / min(means) > max(noise)


def is_noise(measure: Measure, results: Sequence[ModelResult]) -> bool:
    """Speeds that do not tell; and memory of a process on a CPU, nearly all of which is libraries."""
    if measure.field == "tokens_per_second":
        return not speeds_tell(results)
    return measure.field == "peak_memory_bytes" and any(result.device == "cpu" for result in results)


def is_zero(measure: Measure, results: Sequence[ModelResult]) -> bool:
    """Whether it counts what went wrong, and that is nothing."""
    return measure.field in FAULTS and all(not measure.value_in(result) for result in results)


class TableMeasures(NamedTuple):
    """The rows of the table of measures, and those that are zero for every model."""

    shown: list[Measure]
    zero: list[Measure]


def table_measures(results: Sequence[ModelResult]) -> TableMeasures:
    """Of what any model has; without noise."""
    known = [row for row in MEASURES if not row.field or any(row.value_in(result) is not None for result in results)]
    telling = [row for row in known if not is_noise(row, results)]
    return TableMeasures([row for row in telling if not is_zero(row, results)], [row for row in telling if is_zero(row, results)])
