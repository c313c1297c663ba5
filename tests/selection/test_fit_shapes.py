"""Laws of the shapes within limits, on sizes that a formula gives."""

from itertools import product

import pytest
from conftest import raises

from toolkit.cuts.fit_result import FitShape
from toolkit.cuts.size_table import FitSize
from toolkit.selection.fit import AxisValues, Limit, axis_values, check_possible, shapes_left_out, shapes_within
from toolkit.selection.fit.shapes import MOST_VALUES, contains

VALUES = AxisValues([1, 2, 3, 4], [2, 4, 6, 8], [8, 16, 24, 32], [1, 2])


def size_of(shape: FitShape) -> FitSize:
    parameters = 50 + shape.layers * (20 + shape.experts * (3 * shape.width + 1))
    active = parameters - shape.layers * (shape.experts - shape.experts_per_token) * 3 * shape.width
    return FitSize(parameters, active, 2 * parameters)


def limit(key: str, most: int) -> Limit:
    return Limit(key, most, lambda shape, size: getattr(size, key))


def everything() -> list[FitShape]:
    return [FitShape(*counts) for counts in product(*(VALUES.layers, VALUES.experts, VALUES.width, VALUES.experts_per_token))]


@pytest.mark.parametrize("share", [0.9, 0.6, 0.4, 0.25])
@pytest.mark.parametrize("key", ["bytes", "parameters", "active_parameters"])
def test_they_are_all_within_the_limit_and_every_other_one_is_contained_or_too_large(key: str, share: float) -> None:
    limits = [limit(key, int(share * getattr(size_of(VALUES.original), key)))]
    found = shapes_within(VALUES, size_of, limits)
    shapes = {candidate.shape for candidate in found}
    assert shapes and all(limits[0].met_by(each.shape, each.size) and each.size == size_of(each.shape) for each in found)
    for shape in everything():
        if limits[0].met_by(shape, size_of(shape)):
            assert any(contains(other, shape) for other in shapes)
    plain = [each.shape for each in found if not each.single_cut]
    assert not [(a, b) for a in plain for b in shapes if a != b and contains(b, a)]


def test_the_largest_of_every_single_cut_is_among_them() -> None:
    limits = [limit("bytes", size_of(VALUES.original).bytes // 2)]
    singles = {each.single_cut: each.shape for each in shapes_within(VALUES, size_of, limits) if each.single_cut}
    original = VALUES.original
    for cut in ("layers", "experts", "width"):
        alone = [s for s in everything() if limits[0].met_by(s, size_of(s))]
        alone = [s for s in alone if all(getattr(s, key) == getattr(original, key) for key in original._fields if key != cut)]
        assert singles[cut] == max(alone)


@pytest.mark.parametrize("share", [0.9, 0.5, 0.25])
def test_every_combination_is_looked_at_or_left_out_with_a_true_reason(share: float) -> None:
    most = limit("bytes", int(share * size_of(VALUES.original).bytes))
    within = shapes_within(VALUES, size_of, [most])
    left_out = shapes_left_out(VALUES, size_of, [most], within)
    shapes = [each.shape for each in (*within, *left_out)]
    assert len(shapes) == len({*shapes})
    combinations = set(product(VALUES.layers, VALUES.experts, VALUES.experts_per_token))
    assert {(shape.layers, shape.experts, shape.experts_per_token) for shape in shapes} == combinations
    for each in left_out:
        assert each.refused and each.size == size_of(each.shape)
        if most.met_by(each.shape, each.size):
            assert any(contains(other.shape, each.shape) for other in within)
        else:
            assert each.refused == f"more than {most.most} of bytes"
            assert each.single_cut or each.shape.width == VALUES.width[0]


def test_a_cut_that_cannot_meet_the_limit_alone_is_left_out_by_its_name() -> None:
    most = limit("bytes", size_of(FitShape(4, 2, 32, 2)).bytes - 1)  # two experts of all layers and channels are too much
    within = shapes_within(VALUES, size_of, [most])
    marked = {each.single_cut: each.shape for each in shapes_left_out(VALUES, size_of, [most], within) if each.single_cut}
    assert marked["experts"] == FitShape(4, 2, 32, 2) and not {*marked} & {each.single_cut for each in within}
    only_width = AxisValues([4], [8], VALUES.width, [2])  # what may not be cut is no cut that failed
    assert not [each for each in shapes_left_out(only_width, size_of, [most], []) if each.single_cut not in (None, "width")]


def test_fewer_active_experts_go_with_fewer_experts() -> None:
    few = AxisValues([4], [1, 2, 8], [32], [2])
    found = shapes_within(few, size_of, [limit("bytes", size_of(FitShape(4, 1, 32, 1)).bytes)])
    assert [each.shape for each in found] == [FitShape(4, 1, 32, 1)]


def test_limits_that_all_shapes_or_none_meet_are_refused_with_the_smallest_shape() -> None:
    with raises("fit.nothing-to-cut", "bytes"):
        check_possible(VALUES, size_of, [limit("bytes", size_of(VALUES.original).bytes)])
    with raises("fit.limit-too-small", size_of(VALUES.smallest()).bytes, "1 layer × 2 experts × 8 channels"):
        check_possible(VALUES, size_of, [limit("bytes", 10)])


def test_long_axes_have_evenly_spaced_values_that_end_with_the_original() -> None:
    assert axis_values(4) == [1, 2, 3, 4] and axis_values(8, 2) == [2, 4, 6, 8]
    assert axis_values(7, 2, least=4) == [4, 6, 7]  # the original's own number is always one
    long = axis_values(256, 8)
    assert len(long) == MOST_VALUES and long[0] == 8 and long[-1] == 256 and all(value % 8 == 0 for value in long)
