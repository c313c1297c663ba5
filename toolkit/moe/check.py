"""What a model's routers cannot do is said before anything starts, in numbers."""

from collections import Counter
from collections.abc import Sequence

from toolkit.errors import PollardError
from toolkit.moe.blocks import MoEBlock
from toolkit.plan import Plan


def check_plan(blocks: Sequence[MoEBlock], plan: Plan) -> None:
    """Raises PollardError unless `plan` speaks of exactly these blocks, and can be routed in them."""
    ours, theirs = {block.name: block for block in blocks}, set(plan.blocks)
    if ours.keys() != theirs:
        missing, unknown = sorted(ours.keys() - theirs), sorted(theirs - ours.keys())
        raise PollardError(
            f"The plan is for another model: blocks it does not name {missing}, blocks the model does not have {unknown}."
        )
    for name, block in ours.items():
        if plan.blocks[name].experts != block.expert_count:
            raise PollardError(
                f"The plan says {plan.blocks[name].experts} experts in {name}; the model has {block.expert_count}."
            )
    check_prunable(blocks, plan.keep, plan.experts_per_token)
    for name, block in ours.items():
        groups = block.groups or 1
        found = Counter(expert * groups // block.expert_count for expert in plan.blocks[name].kept)
        counts = [found[group] for group in range(groups)]
        if len(set(counts)) > 1:
            raise PollardError(
                f"The plan keeps {counts} experts in the {groups} groups of {name}: its router ranks groups of equal size, "
                f"so keep {plan.keep // groups} in each."
            )


def check_prunable(blocks: Sequence[MoEBlock], keep: int, experts_per_token: int) -> None:
    """Raises PollardError unless these blocks can be routed with `keep` experts each, `experts_per_token` at a time."""
    for block in blocks:
        if experts_per_token > block.experts_per_token:
            raise PollardError(
                f"The model activates {block.experts_per_token} experts per token: "
                f"pruning.experts_per_token can lower that, not raise it to {experts_per_token}."
            )
        if block.groups is None:
            continue
        groups, each = block.groups, keep // block.groups
        needed = groups * max(2, -(-experts_per_token // block.groups_per_token))
        wish = f"{keep} experts cannot be kept: {block.name} routes within {groups} group{'s' * (groups > 1)} of experts"
        if keep % groups:
            raise PollardError(f"{wish} of equal size. Give a multiple of {groups}.")
        if each < 2:
            raise PollardError(f"{wish}, ranked by the two best of each. Keep at least {needed}.")
        if block.groups_per_token * each < experts_per_token:
            raise PollardError(
                f"{wish} and takes {experts_per_token} experts per token from the best {block.groups_per_token}, which hold "
                f"only {block.groups_per_token * each}. Keep at least {needed}, or lower pruning.experts_per_token."
            )
