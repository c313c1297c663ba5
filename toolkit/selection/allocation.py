"""Which blocks should keep more experts than others, at the same number in all? A search on the loss, which knows no model.

1. Tables: the loss with one block alone at each number of experts (or of active ones), everything else whole.
2. A first allocation from the tables: every block at its smallest number, then again and again the block that wins most per
   expert gets more, until as many stay as uniformly.
3. Swaps: an expert (or an active one) from one block to another, the most promising by the tables first; a swap stays where the
   joint loss falls. It ends where none of the next `TRIES` helps.

The start is whichever has the lower joint loss, the first allocation or the uniform one: so the result is never above uniform on
the slice that it was chosen on. That is also why another slice has to say how much of the gain is real.
(The question of MoE-I², arXiv 2411.01016, and EvoESAP, arXiv 2603.06003.) L: number of blocks.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from typing import NamedTuple

STEPS = 16
"""At most about so many numbers of experts are measured per block: with more experts, several move at once."""
TRIES = 16
"""Swaps in a row that do not help, after which the search ends."""
MOST_SWAPS = 64
"""Measured in all."""
ROUNDING = 1e-6
"""Of a loss: less is no difference, so that the number of ranks, which adds in another order, does not decide."""
NOT_FINITE = 1e6
"""Stands for a loss that is not finite, in nats."""


class Allocation(NamedTuple):
    """By block: how many experts stay, and how many of these are active per token."""

    experts: tuple[int, ...]
    active: tuple[int, ...]


Loss = Callable[[Allocation], float]


@dataclass(frozen=True)
class AllocationBounds:
    """What is allocated, and between which numbers. All blocks have as many `experts` in the original, of which
    `original_active` are active per token; uniformly `keep` and `active` of them would be. `groups`: of experts, as routers
    rank them, of which a token takes `groups_per_token`; None where they rank none."""

    blocks: int
    experts: int
    keep: int
    active: int
    original_active: int
    groups: int | None = None
    groups_per_token: int = 1

    @property
    def uniform(self) -> Allocation:
        return Allocation((self.keep,) * self.blocks, (self.active,) * self.blocks)

    @property
    def step(self) -> int:
        """So many experts move at once: the same number in every group."""
        groups = self.groups or 1
        return groups * max(1, math.ceil((self.experts - self._fewest) / groups / STEPS))

    @property
    def numbers(self) -> list[int]:
        """Of experts that a block may keep: those that whole steps lead to from the uniform one; that one alone where none may
        give any, or none can take any."""
        if self.keep in (self._fewest, self.experts):
            return [self.keep]
        below = (self.keep - self._fewest) // self.step
        return list(range(self.keep - below * self.step, self.experts + 1, self.step))

    @property
    def active_numbers(self) -> list[int]:
        """Of active experts: one number where the original activates no more than the uniform plan, for none may have more."""
        return list(range(1, self.original_active + 1)) if self.active < self.original_active else [self.active]

    @property
    def most_measurements(self) -> int:
        """1 where the uniform allocation is the only one."""
        return (
            1
            if len(self.numbers) == len(self.active_numbers) == 1
            else 2 + self.blocks * (len(self.numbers) + len(self.active_numbers)) + MOST_SWAPS
        )

    @property
    def _fewest(self) -> int:
        """Experts that a block needs to be routed as the uniform plan says."""
        if self.groups is None:
            return self.active
        return self.groups * max(2, math.ceil(self.active / self.groups_per_token))


@dataclass(frozen=True)
class FoundAllocation:
    """The search's result, beside the uniform allocation of the same size."""

    allocation: Allocation
    loss: float
    uniform_loss: float
    measurements: int


def find_allocation(loss: Loss, bounds: AllocationBounds) -> FoundAllocation:
    """The same on every call, where `loss` is. Nothing is measured twice."""
    search = _Search(loss, bounds)
    uniform = bounds.uniform
    if bounds.most_measurements == 1:
        return FoundAllocation(uniform, search.measured(uniform), search.measured(uniform), 1)
    first = search.first()
    best = search.swapped(first if search.is_better(first, uniform) else uniform)
    return FoundAllocation(best, search.measured(best), search.measured(uniform), len(search.known))


@dataclass
class _Search:
    loss: Loss
    bounds: AllocationBounds
    known: dict[Allocation, float] = field(default_factory=dict)
    tables: list[list[Mapping[int, float]]] = field(default_factory=list)
    """Of experts and of active ones, by block: the loss at each number."""

    def measured(self, allocation: Allocation) -> float:
        if allocation not in self.known:
            loss = self.loss(allocation)
            self.known[allocation] = loss if math.isfinite(loss) else NOT_FINITE
        return self.known[allocation]

    def is_better(self, one: Allocation, other: Allocation) -> bool:
        loss = self.measured(other)
        return self.measured(one) < loss - ROUNDING * abs(loss)

    def first(self) -> Allocation:
        """The allocation that the tables, which it fills, speak for."""
        bounds = self.bounds
        whole = Allocation((bounds.experts,) * bounds.blocks, bounds.uniform.active)
        for part, numbers in enumerate((bounds.numbers, bounds.active_numbers)):
            several = numbers if len(numbers) > 1 else []
            self.tables.append([
                {number: self.measured(_with(whole, part, {block: number})) for number in several} or dict.fromkeys(numbers, 0.0)
                for block in range(bounds.blocks)
            ])  # fmt: skip
        experts = spread(self.tables[0], bounds.keep * bounds.blocks)
        fitting = [
            {number: loss for number, loss in table.items() if number <= kept}
            for table, kept in zip(self.tables[1], experts, strict=True)
        ]
        return Allocation(experts, spread(fitting, bounds.active * bounds.blocks))

    def swapped(self, best: Allocation) -> Allocation:
        """What swaps lead to from `best`."""
        failed = 0
        for _ in range(MOST_SWAPS):
            new = next((swap for swap in self._swaps(best) if swap not in self.known), None)
            if new is None or failed == TRIES:
                break
            if self.is_better(new, best):
                best, failed = new, 0
            else:
                failed += 1
        return best

    def _swaps(self, allocation: Allocation) -> list[Allocation]:
        """Every allocation that is one swap away, the one with the lowest sum of the tables first."""
        found = []
        for part, step in enumerate((self.bounds.step, 1)):
            for giver, taker in permutations(range(self.bounds.blocks), 2):
                now, tables = allocation[part], self.tables[part]
                less, more = now[giver] - step, now[taker] + step
                new = _with(allocation, part, {giver: less, taker: more})
                if less in tables[giver] and more in tables[taker] and all(map(int.__le__, new.active, new.experts)):
                    change = tables[giver][less] - tables[giver][now[giver]] + tables[taker][more] - tables[taker][now[taker]]
                    found.append((change, new))
        return [new for _, new in sorted(found, key=lambda swap: swap[0])]


def _with(allocation: Allocation, part: int, changes: Mapping[int, int]) -> Allocation:
    """With other numbers of experts (part 0) or active ones (1) in some blocks."""
    numbers = list(allocation[part])
    for block, number in changes.items():
        numbers[block] = number
    return allocation._replace(**{Allocation._fields[part]: tuple(numbers)})


def spread(tables: Sequence[Mapping[int, float]], total: int) -> tuple[int, ...]:
    """A number for each block that adds up to `total`: from the smallest of its table upwards, each time the jump that lowers the
    loss most per expert. Jumps of several steps count, for a table may fall late. Of equals the shortest jump, then the block
    with the smallest number, then the first: so equal tables that fall ever more slowly are given equal numbers."""
    numbers = [min(table) for table in tables]
    while (left := total - sum(numbers)) > 0:
        jumps = list(_jumps(tables, numbers, left))
        if not jumps:
            raise ValueError(f"no numbers of these tables add up to {total}")
        _, _, _, block, number = min(jumps)
        numbers[block] = number
    return tuple(numbers)


def _jumps(
    tables: Sequence[Mapping[int, float]], numbers: Sequence[int], left: int
) -> Iterator[tuple[float, int, int, int, int]]:
    """Change of the loss per expert, length, number now; block, number then."""
    for block, (table, now) in enumerate(zip(tables, numbers, strict=True)):
        for number, loss in table.items():
            if 0 < number - now <= left:
                yield (loss - table[now]) / (number - now), number - now, now, block, number
