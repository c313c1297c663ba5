"""Two plans in one: the second prunes the model that the first has left.

The law: applying the composed plan to the original leaves what applying one after the other leaves.
"""

from toolkit.cuts.apply import renamed
from toolkit.cuts.block_plan import BlockPlan
from toolkit.cuts.cut import Cut
from toolkit.cuts.experts import ExpertsCut
from toolkit.cuts.layers import LayersCut
from toolkit.cuts.plan import Plan
from toolkit.cuts.width import WidthCut


def compose(first: Plan, second: Plan) -> Plan:
    """What stays after both, in the numbers and names of the model that `first` prunes. How it was chosen is what the later plan
    with a cut of a kind says, without scores. Both plans cut experts (all may stay). Raises PollardError where one does not."""
    cuts: list[Cut | None] = [_experts(first, second), _width(first, second), _layers(first, second)]
    return second.model_copy(update={"model": first.model, "cuts": [cut for cut in cuts if cut]})


def _experts(first: Plan, second: Plan) -> ExpertsCut:
    before, last, blocks = first.blocks, second.experts, {}
    for name, block in second.blocks.items():
        old_name = _name_before(first, name)
        kept = [before[old_name].kept[index] for index in block.kept]
        blocks[old_name] = BlockPlan(experts=before[old_name].experts, kept=kept)
    return ExpertsCut.of(blocks, criterion=last.criterion, mode=last.mode, tokens=last.tokens, keep=last.keep)


def _width(first: Plan, second: Plan) -> WidthCut | None:
    before, after = first.cut(WidthCut), second.cut(WidthCut)
    last = after or before
    if last is None:
        return None
    channels = {_name_before(first, name): kept for name, kept in last.channels.items()} if after else {}
    if before:
        rows = {_name_before(first, name): block.kept for name, block in second.blocks.items()}
        left = {name: kept[rows[name]] if name in rows else kept for name, kept in before.channels.items()}
        left = {name: kept for name, kept in left.items() if _stays(first, second, name)}
        channels = {name: kept.gather(-1, channels[name]) if after else kept for name, kept in left.items()}
    return WidthCut(criterion=last.criterion, keep=last.keep, channels=channels)


def _layers(first: Plan, second: Plan) -> LayersCut | None:
    before, after = first.cut(LayersCut), second.cut(LayersCut)
    if before is None or after is None:
        return after or before
    kept = [before.kept[number] for number in after.kept]
    return LayersCut(criterion=after.criterion, layers=before.layers, kept=kept, path=before.path)


def _name_before(plan: Plan, name: str) -> str:
    """The name that a module had before `plan` was applied."""
    layers = plan.cut(LayersCut)
    number = layers.number_of(name) if layers else None
    if layers is None or number is None:
        return name
    return f"{layers.path}.{layers.kept[number]}{name.removeprefix(f'{layers.path}.{number}')}"


def _stays(first: Plan, second: Plan, name: str) -> bool:
    """Whether a module of the original is there after both plans."""
    new_name = renamed(first, name, name)
    return new_name is not None and renamed(second, new_name, new_name) is not None
