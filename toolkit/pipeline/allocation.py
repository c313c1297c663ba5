"""What would other numbers of experts in each block give, at the same size? Searched on the dev loss of a loaded model, masked,
and compared with the uniform plan on the same questions. Nothing is written: no stock reader loads such a model."""

import time
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from toolkit.cuts import BlockPlan, Cut, ExpertsCut, ExpertStatistics, LayersCut, Plan, WidthCut, masked
from toolkit.cuts.fit_result import AllocationRecord, Answered
from toolkit.cuts.statistics import SearchMode, Tokens
from toolkit.evaluation import completion_loss
from toolkit.evaluation.probe import Probe, ProbeResult, measure_probe
from toolkit.moe import find_blocks
from toolkit.moe.layer_counts import why_not_per_layer
from toolkit.pipeline.loss_file import LossFile
from toolkit.recipe.schema import Recipe
from toolkit.runtime.distributed import say
from toolkit.runtime.errors import PollardError
from toolkit.runtime.formatting import loss as nats
from toolkit.runtime.intervals import pair_of
from toolkit.selection import CRITERIA, WidthChoice, choose_channels
from toolkit.selection.allocation import Allocation, AllocationBounds, FoundAllocation, find_allocation
from toolkit.selection.criteria import Choice


class AllocatedPlan(NamedTuple):
    """The plan that the search has found (the uniform one where none is better), and how."""

    plan: Plan
    found: FoundAllocation


def check_criterion(criterion: str, mode: str | None) -> None:
    """Raises PollardError for a criterion that does not choose every number of experts."""
    if CRITERIA[criterion].searched and mode == "progressive":
        raise PollardError(
            "The progressive reconstruction search knows sets of one size only, and an allocation needs sets of every size: say "
            "pruning.mode=layerwise, or choose another criterion.",
            code="allocation.progressive",
        )


def check_allocatable(plan: Plan) -> None:
    """Raises PollardError as `check_criterion` does, and for blocks that differ."""
    check_criterion(plan.criterion, plan.mode)
    if len(set(plan.experts.experts.values())) > 1:
        raise PollardError(
            f"The blocks have {sorted(set(plan.experts.experts.values()))} experts: other numbers in each are measured only "
            "where all begin with the same.",
            code="allocation.blocks-differ",
        )


def chooser(plan: Plan) -> list[object]:
    """What of `plan` decides, as JSON, which experts, channels and layers stay at given numbers of experts per block."""
    experts, width, layers = plan.experts, plan.cut(WidthCut), plan.cut(LayersCut)
    of_width = width and [width.keep, width.criterion]
    return [experts.criterion, experts.mode, experts.tokens, plan.seed, of_width, layers and layers.kept]


def allocate(
    model: PreTrainedModel,
    plan: Plan,
    statistics: ExpertStatistics,
    batches: Sequence[dict[str, torch.Tensor]],
    cache: LossFile | None = None,
) -> AllocatedPlan:
    """Searches, on every rank, for the numbers of experts per block with which `model`, masked, has a low loss on `batches` (of
    the dev slice), with as many in all as the uniform `plan` keeps. Which experts stay of a block is what the plan's criterion
    chooses at each number. Raises PollardError as `check_allocatable` does."""
    check_allocatable(plan)
    plans, bounds = _AllocatedPlans(plan, statistics), _bounds(model, plan)

    def loss(allocation: Allocation) -> float:
        key = "/".join(",".join(map(str, numbers)) for numbers in allocation)
        if cache and key in cache.losses:
            return cache.get(key)
        with masked(model, plans.of(allocation)):
            found = completion_loss(model, batches).mean
        if cache:
            cache.add(key, found)
        return found

    if bounds.most_measurements == 1:
        say("  no other numbers of experts per block are possible: each needs as many as are active per token")
    else:
        say(f"  other numbers of experts per block: the dev loss of at most {bounds.most_measurements:,} allocations")
    found = find_allocation(loss, bounds)
    say(f"  {found.measurements:,} measured: {described(found)}, loss {nats(found.uniform_loss)} -> {nats(found.loss)}")
    return AllocatedPlan(plans.of(found.allocation), found)


def described(found: FoundAllocation) -> str:
    """ "5, 3, 4, 4 experts"."""
    experts, active = found.allocation
    of_active = f", {', '.join(map(str, active))} active" if len(set(active)) > 1 else ""
    return f"{', '.join(map(str, experts))} experts{of_active}"


def measure_allocation(
    model: PreTrainedModel,
    plan: Plan,
    statistics: ExpertStatistics,
    probe: Probe,
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
    cache: LossFile | None = None,
) -> AllocationRecord:
    """The same, with the answers of both to the questions of `probe`, the dev slice, compared one by one."""
    started = time.monotonic()
    allocated = allocate(model, plan, statistics, probe.batches, cache)
    results = []
    for each in (plan, allocated.plan):
        with masked(model, each):
            results.append(measure_probe(model, tokenizer, recipe, probe))
    uniform, measured = map(answered, results)
    compared = pair_of(measured.right, uniform.right) if measured.right else None
    cut = allocated.plan.experts
    return AllocationRecord(
        keep=plan.keep, experts={name: len(kept) for name, kept in cut.kept.items()},
        experts_per_token={name: cut.active(name, allocated.plan) for name in cut.kept}, uniform=uniform, measured=measured,
        difference=compared and compared.difference, interval=compared and compared.interval, p=compared and compared.p,
        measurements=allocated.found.measurements, seconds=round(time.monotonic() - started, 1),
        not_written=why_not_per_layer(model.config),
    )  # fmt: skip


def allocation_facts(plan: Plan) -> dict[str, list[int]]:
    """How many experts the blocks of `plan` keep and activate, in their order."""
    cut = plan.experts
    return {
        "experts": [len(kept) for kept in cut.kept.values()],
        "active": [cut.active(name, plan) for name in cut.kept],
    }


def answered(result: ProbeResult) -> Answered:
    interval = (result.interval[0], result.interval[1]) if result.interval else None
    return Answered(loss=result.loss, score=result.score, n=result.n or 0, interval=interval, right=result.right or "")


def _bounds(model: PreTrainedModel, plan: Plan) -> AllocationBounds:
    first, kept = find_blocks(model)[0], plan.experts.kept
    return AllocationBounds(
        blocks=len(kept), experts=first.expert_count, keep=plan.keep, active=plan.experts_per_token,
        original_active=first.experts_per_token, groups=first.groups, groups_per_token=first.groups_per_token,
    )  # fmt: skip


class _AllocatedPlans:
    """Plans like a uniform one, with other numbers of experts per block."""

    def __init__(self, plan: Plan, statistics: ExpertStatistics) -> None:
        self.uniform, self.statistics = plan, statistics
        self.chosen: dict[tuple[str, int], list[int]] = {}

    def of(self, allocation: Allocation) -> Plan:
        """Channels are chosen anew, for other experts stay."""
        plan, cut = self.uniform, self.uniform.experts
        numbers = dict(zip(cut.kept, allocation.experts, strict=True))
        if set(allocation.experts) == {plan.keep} and set(allocation.active) == {plan.experts_per_token}:
            return plan
        blocks = {
            name: BlockPlan(experts=cut.experts[name], kept=self._kept(name, number), scores=cut.scores.get(name))
            for name, number in numbers.items()
        }
        active = dict(zip(cut.kept, allocation.active, strict=True)) if set(allocation.active) != {plan.experts_per_token} else {}
        experts = ExpertsCut.of(
            blocks, criterion=cut.criterion, mode=cut.mode, tokens=cut.tokens, keep=cut.keep, allocation="measured",
            experts_per_token=active,
        )  # fmt: skip
        return plan.model_copy(update={"cuts": [self._like(each, experts) for each in plan.cuts]})

    def _like(self, cut: Cut, experts: ExpertsCut) -> Cut:
        if isinstance(cut, ExpertsCut):
            return experts
        if isinstance(cut, WidthCut):
            choice = WidthChoice(cut.keep, cut.criterion, cast(Tokens, self.uniform.tokens), self.uniform.seed)
            none: dict[str, list[int]] = {name: [] for name in self.statistics.about.blocks}  # whose layers may go
            channels = choose_channels(self.statistics, choice, none | experts.kept)
            stay = {name: channels[name] for name in cut.channels}
            return cut.model_copy(update={"channels": stay, "checksum": None})
        return cut

    def _kept(self, block: str, number: int) -> list[int]:
        """The best `number` experts of `block`."""
        plan = self.uniform
        if (block, number) not in self.chosen:
            mode = cast(SearchMode, plan.mode or "layerwise")
            choice = Choice(number, cast(Tokens, plan.tokens), mode, plan.seed)
            self.chosen[block, number] = CRITERIA[plan.criterion].choose(self.statistics, block, choice).kept
        return self.chosen[block, number]
