"""Laws of the search over numbers of experts per block, on losses that are known in closed form."""

import math
from itertools import product

import pytest

from toolkit.selection.allocation import MOST_SWAPS, TRIES, Allocation, AllocationBounds, find_allocation, spread

BOUNDS = AllocationBounds(blocks=4, experts=8, keep=4, active=2, original_active=2)
WEIGHTS = (1.0, 5.0, 0.5, 2.0)


def needy(allocation: Allocation) -> float:
    """Blocks that suffer differently from every expert that is gone."""
    return sum(weight / experts for weight, experts in zip(WEIGHTS, allocation.experts, strict=True))


def coupled(allocation: Allocation) -> float:
    """Tables, one block at a time, do not show that the first two blocks stand in for each other."""
    first, second, *others = allocation.experts
    return 4 / max(first, second) + sum(1 / experts for experts in others)


class Recorded:
    """A loss that remembers what it was asked."""

    def __init__(self, loss) -> None:
        self.loss, self.asked = loss, []

    def __call__(self, allocation: Allocation) -> float:
        self.asked.append(allocation)
        return self.loss(allocation)


@pytest.mark.parametrize("loss", [needy, coupled, lambda allocation: math.nan, lambda allocation: hash(allocation) % 97])
@pytest.mark.parametrize("keep", [2, 3, 4, 7, 8])
def test_equal_total_above_the_floor_never_worse_than_uniform_and_the_same_again(loss, keep: int) -> None:
    bounds = AllocationBounds(blocks=4, experts=8, keep=keep, active=2, original_active=2)
    recorded = Recorded(loss)
    found = find_allocation(recorded, bounds)
    assert sum(found.allocation.experts) == 4 * keep and found.allocation.active == (2, 2, 2, 2)
    assert all(2 <= number <= 8 for asked in recorded.asked for number in asked.experts)
    assert found.loss <= found.uniform_loss
    assert found.measurements == len(recorded.asked) == len(set(recorded.asked)) <= bounds.most_measurements
    assert find_allocation(loss, bounds) == found


def best_of_all(loss) -> float:
    return min(loss(Allocation(each, (2,) * 4)) for each in product(range(2, 9), repeat=4) if sum(each) == 16)


@pytest.mark.parametrize("keep", [2, 8])
def test_where_no_other_allocation_is_possible_nothing_is_searched(keep: int) -> None:
    bounds = AllocationBounds(blocks=4, experts=8, keep=keep, active=2, original_active=2)
    found = find_allocation(needy, bounds)
    assert found.allocation == bounds.uniform and found.measurements == bounds.most_measurements == 1
    freer = AllocationBounds(blocks=4, experts=8, keep=keep, active=1, original_active=2)
    assert find_allocation(needy, freer).measurements > 1


def test_an_additive_loss_of_falling_gains_is_solved() -> None:
    found = find_allocation(needy, BOUNDS)
    assert found.allocation.experts == (3, 7, 2, 4) and found.loss == best_of_all(needy) < found.uniform_loss


def test_swaps_find_what_tables_do_not_show() -> None:
    recorded = Recorded(coupled)
    found = find_allocation(recorded, BOUNDS)
    first = next(asked for asked in recorded.asked if sum(asked.experts) == 16 and asked != BOUNDS.uniform)
    assert coupled(first) > coupled(BOUNDS.uniform) > found.loss == best_of_all(coupled)


@pytest.mark.parametrize("keep", [2, 3, 4, 6, 8])
def test_equal_tables_give_the_uniform_allocation_back(keep: int) -> None:
    bounds = AllocationBounds(blocks=4, experts=8, keep=keep, active=2, original_active=2)
    found = find_allocation(lambda allocation: sum(1 / experts for experts in allocation.experts), bounds)
    assert found.allocation == bounds.uniform
    assert find_allocation(lambda allocation: 1.0, bounds).allocation == bounds.uniform  # nothing to choose by


def test_a_table_that_falls_late_is_seen_across_a_plateau() -> None:
    late = {2: 9.0, 3: 9.0, 4: 9.0, 5: 0.0}
    slow = {2: 1.0, 3: 0.9, 4: 0.8, 5: 0.7}
    assert spread([slow, late], 7) == (2, 5)
    with pytest.raises(ValueError, match="no numbers"):
        spread([slow, late], 11)


def test_active_experts_move_only_where_the_original_has_more() -> None:
    def loss(allocation: Allocation) -> float:
        return sum(weight / active for weight, active in zip(WEIGHTS, allocation.active, strict=True))

    assert find_allocation(loss, BOUNDS).allocation.active == (2, 2, 2, 2)
    bounds = AllocationBounds(blocks=4, experts=8, keep=4, active=2, original_active=4)
    recorded = Recorded(loss)
    found = find_allocation(recorded, bounds)
    assert found.allocation.active == (2, 3, 1, 2) and sum(found.allocation.active) == 8
    for asked in recorded.asked:
        pairs = zip(asked.active, asked.experts, strict=True)
        assert all(1 <= active <= min(4, experts) for active, experts in pairs)


def test_groups_move_whole_steps_and_many_experts_several_at_once() -> None:
    grouped = AllocationBounds(blocks=3, experts=32, keep=16, active=2, original_active=2, groups=4, groups_per_token=2)
    recorded = Recorded(lambda allocation: sum(n / e for n, e in enumerate(allocation.experts)))
    find_allocation(recorded, grouped)
    assert grouped.numbers == [8, 12, 16, 20, 24, 28, 32]  # two in each group at least
    assert {number % 4 for asked in recorded.asked for number in asked.experts} == {0}
    large = AllocationBounds(blocks=48, experts=128, keep=64, active=8, original_active=8)
    assert large.step == 8 and large.numbers[0] == 8 and large.numbers[-1] == 128 and 64 in large.numbers


def test_the_search_ends() -> None:
    """Where every swap helps a little, and where none does."""
    bounds = AllocationBounds(blocks=8, experts=64, keep=32, active=2, original_active=2)
    falling = Recorded(lambda allocation: -len(falling.asked))
    find_allocation(falling, bounds)
    tables = bounds.blocks * (len(bounds.numbers) - 1) + 1
    assert len(falling.asked) <= tables + 2 + MOST_SWAPS
    rising = Recorded(lambda allocation: len(rising.asked))
    assert find_allocation(rising, bounds).allocation == bounds.uniform
    assert len(rising.asked) <= tables + 2 + TRIES
