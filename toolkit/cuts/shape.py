"""Stock shapes of a model: how many layers, experts per block, channels per expert, and active experts per token.

A shape says how large a model is, whichever of its layers, experts and channels stay.
"""

import copy
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from toolkit.cuts.apply import apply_plan
from toolkit.cuts.block_plan import BlockPlan
from toolkit.cuts.cut import Cut
from toolkit.cuts.dense_twins import dense_twin
from toolkit.cuts.experts import ExpertsCut
from toolkit.cuts.layers import LayersCut
from toolkit.cuts.plan import Plan
from toolkit.cuts.width import WidthCut
from toolkit.moe.blocks import find_blocks
from toolkit.moe.channels import block_width, channel_groups, expert_width
from toolkit.moe.layers import layers_of
from toolkit.moe.load import meta_model
from toolkit.moe.model_size import sizes
from toolkit.runtime.errors import PollardError


class ModelShape(NamedTuple):
    """What stays; None: as in the original."""

    experts: int | None = None  # per block
    width: int | None = None  # channels per expert
    layers: tuple[int, ...] | None = None  # the original's numbers of those that stay
    experts_per_token: int | None = None  # None: as many as now, where enough are kept


def shaped_meta_model(config: Any, shape: ModelShape) -> PreTrainedModel:
    """The model of that shape, without weights, made by the code that cuts, so that sizes agree. Raises PollardError where it
    cannot be cut so."""
    model = meta_model(copy.deepcopy(config))
    return apply_plan(model, plan_of_shape(model, shape))


def without_last(number: int, depth: int) -> tuple[int, ...]:
    """That many of `depth` layers: all but the last ones before the final one."""
    return (*range(number - 1), depth - 1)


def shape_of(plan: Plan) -> ModelShape:
    """What `plan` leaves of each kind."""
    experts, width, layers = plan.cut(ExpertsCut), plan.cut(WidthCut), plan.cut(LayersCut)
    return ModelShape(
        experts=experts.keep if experts else None,
        width=width.keep if width else None,
        layers=tuple(layers.kept) if layers else None,
        experts_per_token=plan.experts_per_token,
    )


class ShapeSize(NamedTuple):
    """How large a model is, and what it consists of."""

    layers: int
    experts: int  # per block
    experts_per_token: int
    width: int | None  # channels per expert; None: blocks differ
    parameters: int
    active_parameters: int


def shape_size(model: PreTrainedModel) -> ShapeSize:
    """Of a model, which may be without weights."""
    blocks = find_blocks(model)
    width = expert_width(model) if len({block_width(block) for block in blocks}) == 1 else None
    depth, block = len(layers_of(model, blocks)[1]), blocks[0]
    return ShapeSize(depth, block.expert_count, block.experts_per_token, width, *sizes(model))


def sizes_after_cuts(config: Any, plan: Plan) -> dict[str, ShapeSize]:
    """The size of the original, and after each of the plan's cuts, one after the other: by kind, in the order in which people
    count (layers, experts, width), and last as a dense model, where it is written so. What cuts nothing is left out. Raises
    PollardError where the plan is another model's."""
    left, whole = shape_of(plan), shape_size(meta_model(copy.deepcopy(config)))
    depth = len(left.layers) if left.layers else whole.layers
    shapes: dict[str, ModelShape] = {}
    if depth != whole.layers:
        shapes["layers"] = ModelShape(layers=left.layers)
    if (left.experts or whole.experts, left.experts_per_token) != (whole.experts, whole.experts_per_token):
        shapes["experts"] = left._replace(width=None)
    if left.width not in (None, whole.width):
        shapes["width"] = left
    sizes_left = {kind: shape_size(shaped_meta_model(config, shape)) for kind, shape in shapes.items()}
    if plan.form == "dense":
        twin, last = dense_twin(shaped_meta_model(config, left)), [whole, *sizes_left.values()][-1]
        sizes_left["dense"] = ShapeSize(last.layers, 1, 1, twin.width, *sizes(twin.model))
    return {"original": whole} | sizes_left


def plan_of_shape(model: PreTrainedModel, shape: ModelShape) -> Plan:
    """A plan that leaves this shape of `model`: the first experts of each group, the first channels."""
    layers = None if shape.layers is None else LayersCut.of(model, shape.layers, "")
    blocks = [block for block in find_blocks(model) if layers is None or layers.rename(block.name, block.name)]
    if not blocks:
        raise PollardError(
            f"None of layers {', '.join(map(str, shape.layers or ()))} has experts: keep at least one that has.",
            code="layers.no-moe-block",
        )
    groups, experts = blocks[0].groups or 1, blocks[0].expert_count
    keep = experts if shape.experts is None else shape.experts
    kept = [expert for expert in range(experts) if expert % (experts // groups) < keep // groups]
    choice = {block.name: BlockPlan(experts=experts, kept=kept) for block in blocks}
    cuts: list[Cut] = [ExpertsCut.of(choice, criterion="", keep=keep)]
    if shape.width is not None:
        channels = {
            group.name: torch.arange(group.new_width).expand(*([] if group.experts is None else [keep]), group.new_width)
            for group in channel_groups(model, shape.width)
            if layers is None or layers.rename(group.name, group.name)
        }
        cuts.append(WidthCut(criterion="", keep=shape.width, channels=channels))
    cuts += [layers] if layers else []
    active = shape.experts_per_token or min(keep, blocks[0].experts_per_token)
    return Plan(model="", experts_per_token=active, cuts=cuts)
