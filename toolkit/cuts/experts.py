"""Fewer experts: what a plan asks of a model's MoE blocks, checked, masked and cut."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from transformers import PreTrainedModel

from toolkit.cuts.plan import Plan
from toolkit.moe.blocks import EXPERT_KEYS, TOP_K_KEYS, MoEBlock, find_blocks, set_config_values
from toolkit.moe.masking import check_prunable, restricted, slice_router, slice_tensors
from toolkit.runtime.errors import PollardError


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


@contextmanager
def masked(model: PreTrainedModel, plan: Plan) -> Iterator[PreTrainedModel]:
    """`model` as if pruned by `plan` inside the context, unchanged after it (weights are neither copied nor removed)."""
    blocks = find_blocks(model)
    check_plan(blocks, plan)
    with ExitStack() as stack:
        for block in blocks:
            stack.enter_context(restricted(block, plan.blocks[block.name].kept, plan.experts_per_token))
        yield model


def apply_plan(model: PreTrainedModel, plan: Plan) -> PreTrainedModel:
    """Removes the pruned experts from `model` in place and returns it. Raises PollardError as `check_plan` does."""
    blocks = find_blocks(model)
    check_plan(blocks, plan)
    for block in blocks:
        kept = plan.blocks[block.name].kept
        for module in (block.module, block.experts):  # some blocks hold the router's correction bias
            slice_tensors(module, kept, block.expert_count, {block.expert_count})
        slice_router(block.router, kept, block.expert_count, plan.experts_per_token)
    # Counts are also kept by blocks and by the model itself (for its load-balancing loss).
    old, new = blocks[0], plan
    for module in model.modules():
        for keys, was, becomes in (
            (EXPERT_KEYS, old.expert_count, new.keep),
            (("top_k", *TOP_K_KEYS), old.experts_per_token, new.experts_per_token),
        ):
            for key in keys:
                if getattr(module, key, None) == was and not isinstance(getattr(type(module), key, None), property):
                    setattr(module, key, becomes)
    configs = [model.config, model.config.get_text_config(), *(block.experts.config for block in blocks)]
    for config in {id(config): config for config in configs}.values():
        set_config_values(config, EXPERT_KEYS, plan.keep)
        set_config_values(config, TOP_K_KEYS, plan.experts_per_token)
    return model
