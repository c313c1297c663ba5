"""Two plans in one: the second prunes the model that the first has left.

The law: applying the composed plan to the original leaves what applying one after the other leaves.
"""

import torch

from toolkit.cuts.cut import Cut
from toolkit.cuts.experts import BlockPlan, ExpertsCut
from toolkit.cuts.plan import Plan
from toolkit.cuts.width import WidthCut


def compose(first: Plan, second: Plan) -> Plan:
    """What stays after both, in the numbers and names of the model that `first` prunes. How it was chosen is what the later plan
    with a cut of a kind says, without scores. Both plans cut experts (all may stay). Raises PollardError where one does not."""
    cuts: list[Cut | None] = [_experts(first, second), _width(first, second)]
    return second.model_copy(update={"model": first.model, "cuts": [cut for cut in cuts if cut]})


def _experts(first: Plan, second: Plan) -> ExpertsCut:
    blocks = {}
    for name, block in second.blocks.items():
        before = first.blocks[_name_before(first, name)]
        blocks[_name_before(first, name)] = BlockPlan(experts=before.experts, kept=[before.kept[index] for index in block.kept])
    last = second.experts
    return ExpertsCut.of(blocks, criterion=last.criterion, mode=last.mode, tokens=last.tokens, keep=last.keep)


def _width(first: Plan, second: Plan) -> WidthCut | None:
    before, after = first.cut(WidthCut), second.cut(WidthCut)
    if before is None and after is None:
        return None
    last = after or before
    assert last is not None
    channels = {_name_before(first, name): kept for name, kept in after.channels.items()} if after else {}
    if before:
        rows = {_name_before(first, name): block.kept for name, block in second.blocks.items()}
        left = {name: kept if kept.ndim == 1 else kept[rows[name]] for name, kept in before.channels.items() if _stays(name)}
        channels = {name: kept if after is None else torch.gather(kept, -1, channels[name]) for name, kept in left.items()}
    return WidthCut(criterion=last.criterion, keep=last.keep, channels=channels)
