"""Plans of any shape for tiny models: experts, channels and layers drawn by a seed, in each block others."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from toolkit.cuts import Cut, ExpertsCut, LayersCut, Plan, WidthCut
from toolkit.cuts.block_plan import BlockPlan
from toolkit.moe import MoEBlock, channel_groups, find_blocks


def drawn_plan(
    model: PreTrainedModel, keep: int | None = None, width: int | None = None, layers: Sequence[int] | None = None, seed: int = 0
) -> Plan:
    """`keep` experts per block (of each expert group equally many), `width` channels per expert, these `layers`; None: no cut of
    that kind."""
    draw = torch.Generator().manual_seed(seed)

    def chosen(number: int, of: int) -> list[int]:
        return torch.randperm(of, generator=draw)[:number].sort().values.tolist()

    def experts_of(block: MoEBlock) -> list[int]:
        groups = block.groups or 1
        size = block.expert_count // groups
        return [group * size + expert for group in range(groups) for expert in chosen((keep or 0) // groups, size)]

    cuts: list[Cut] = [LayersCut.of(model, layers, "by hand")] if layers is not None else []
    blocks = find_blocks(model)
    if keep is not None:
        choice = {b.name: BlockPlan(experts=b.expert_count, kept=experts_of(b)) for b in blocks if _stays(b.name, cuts)}
        cuts.append(ExpertsCut.of(choice, criterion="by hand", keep=keep))
    if width is not None:
        channels = {}
        for group in channel_groups(model, width):
            rows = [chosen(group.new_width, group.width) for _ in range(1 if group.experts is None else keep or group.experts)]
            if _stays(group.name, cuts):
                channels[group.name] = torch.tensor(rows[0] if group.experts is None else rows)
        cuts.append(WidthCut(criterion="by hand", keep=width, channels=channels))
    active = blocks[0].experts_per_token
    return Plan(model="tiny", experts_per_token=min(active, keep or active), cuts=cuts)


def _stays(name: str, cuts: Sequence[Cut]) -> bool:
    return all(cut.rename(name, name) is not None for cut in cuts if isinstance(cut, LayersCut))
