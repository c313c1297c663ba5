"""Which experts of the original join those that another checkpoint has already: in every block the best of the others.

held [0, 2, 5, 7], scores of the second task  →  best others 1, 4  →  kept [0, 2, 5, 7, 1, 4]
"""

from collections.abc import Sequence

from toolkit.cuts.block_plan import BlockPlan, Origin
from toolkit.cuts.experts import ExpertsCut
from toolkit.cuts.plan import Plan
from toolkit.cuts.statistics import ExpertStatistics
from toolkit.runtime.errors import PollardError
from toolkit.selection.criteria import CRITERIA, Choice, ScoreCriterion, best_of_each_group
from toolkit.selection.select import select


def grown_plan(
    statistics: ExpertStatistics, criterion: str, choice: Choice, first: Plan, onto: str, experts_per_token: int
) -> Plan:
    """The plan that grows the checkpoint in the folder `onto`, which the plan `first` has left, to `choice.keep` experts in every
    block. Raises PollardError as `select` does, and for a criterion that scores no single experts."""
    rule, about = CRITERIA.get(criterion), statistics.about
    if rule is not None and not isinstance(rule, ScoreCriterion):
        raise PollardError(
            f"{criterion} searches whole sets, without regard to the experts that are there already: take a criterion that "
            "scores experts.",
            code="grow.criterion",
        )
    plan = select(statistics, criterion, choice.keep, choice.tokens, seed=choice.seed, experts_per_token=experts_per_token)
    blocks = {}
    for name, block in plan.blocks.items():
        order = rule.order(statistics, name, choice) if rule else []
        blocks[name] = grown_block(block, first.experts.kept[name], order, choice.keep, about.blocks[name].groups)
    return plan.model_copy(
        update={"cuts": [ExpertsCut.of(blocks, criterion=criterion, tokens=plan.tokens, keep=choice.keep, onto=onto)]}
    )


def grown_block(block: BlockPlan, held: Sequence[int], order: Sequence[int], keep: int, groups: int) -> BlockPlan:
    """`held` and the first others of `order` (all experts, the best first), up to `keep`; of each router group equally many, in
    which the new ones stand behind those that are there."""
    others = [expert for expert in order if expert not in held]
    new = best_of_each_group([*others, *held], keep - len(held), groups)
    size = block.experts // groups
    found: list[tuple[int, Origin]] = []
    for group in range(groups):
        found += [(expert, "onto") for expert in held if expert // size == group]
        found += [(expert, "model") for expert in new if expert // size == group]
    kept, origin = [expert for expert, _ in found], [where for _, where in found]
    return BlockPlan(experts=block.experts, kept=kept, scores=block.scores, origin=origin)
