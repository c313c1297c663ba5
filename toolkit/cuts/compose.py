"""Two plans in one: the second prunes the model that the first has left.

The law: applying the composed plan to the original leaves what applying one after the other leaves.
"""

from toolkit.cuts.apply import renamed
from toolkit.cuts.experts import BlockPlan
from toolkit.cuts.plan import Plan


def compose(first: Plan, second: Plan) -> Plan:
    """What stays after both, in the numbers and names of the model that `first` prunes; how it was chosen is `second`'s, without
    scores. Both must cut experts (all may stay)."""
    # By its name in the model between the two, each block's name in the first
    names = {renamed(first, name, name): name for name in first.blocks}
    blocks = {}
    for new_name, block in second.blocks.items():
        before = first.blocks[names[new_name]]
        blocks[names[new_name]] = BlockPlan(experts=before.experts, kept=[before.kept[index] for index in block.kept])
    return second.with_experts(blocks, first.model)
