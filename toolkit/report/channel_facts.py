"""Which channels of the experts stay, and how much of what was observed they hold.

Shape legend: K kept experts of a block, W width (channels of an expert), N channels that stay of each.
"""

from collections.abc import Mapping

import torch

from toolkit.cuts.plan import Plan
from toolkit.cuts.statistics import ExpertStatistics
from toolkit.cuts.width import WidthCut
from toolkit.report.blocks import short, tokens_of
from toolkit.report.cut_facts import ChannelFacts, CriteriaAgreement


def channel_facts(plan: Plan, statistics: ExpertStatistics | None, width: int) -> dict[str, ChannelFacts]:
    """Per MoE block of a plan that narrows experts of `width` channels; without `statistics` nothing is known of their energy."""
    cut, blocks = plan.cut(WidthCut), {}
    for name, block in plan.blocks.items() if cut else ():
        assert cut is not None
        kept_KN = cut.channels[name]
        times_W = torch.bincount(kept_KN.flatten(), minlength=width)
        energy = _energy(plan, statistics, name, block.kept, kept_KN) if statistics else None
        blocks[name] = ChannelFacts(kept_by=torch.bincount(times_W, minlength=len(kept_KN) + 1).tolist(), energy=energy)
    return blocks


def _energy(
    plan: Plan, statistics: ExpertStatistics, name: str, kept: list[int], kept_KN: torch.Tensor
) -> list[int | float | None]:
    norm_KW = statistics.of_weights(name, "down_norm")[kept]
    energy_KW = norm_KW.square() * statistics.get(name, "channel_energy", tokens_of(plan))[kept]
    pairs = zip(energy_KW.gather(1, kept_KN).sum(1).tolist(), energy_KW.sum(1).tolist(), strict=True)
    return [short(held / whole) if whole else None for held, whole in pairs]


def mlp_facts(plan: Plan, statistics: ExpertStatistics | None) -> dict[str, tuple[int, int]]:
    """The MLPs that are narrowed with the experts: channels after and before, where these are known."""
    cut, about = plan.cut(WidthCut), statistics.about.channels if statistics else {}
    return {
        name: (len(kept), about[name].width)
        for name, kept in (cut.channels if cut else {}).items()
        if kept.ndim == 1 and name in about
    }


def channel_agreement(shares: Mapping[str, Mapping[str, float]], keep: int, width: int) -> CriteriaAgreement:
    """From the share of the plan's channels that each criterion keeps as well, by block."""
    agreement = {criterion: {name: short(share) for name, share in of.items()} for criterion, of in shares.items()}
    mean = {criterion: short(sum(of.values()) / len(of)) for criterion, of in agreement.items() if of}
    return CriteriaAgreement(by_chance=short(keep / width), agreement=agreement, mean=mean)
