"""Per MoE block: how the task uses its experts, which stay, and which every criterion would have kept.

Shape legend: E experts of a block.
"""

from typing import Any

import torch

from toolkit.cuts.plan import Plan
from toolkit.cuts.statistics import PARTS, ExpertStatistics, Tokens


def blocks_of(statistics: ExpertStatistics | None, plan: Plan | None) -> dict[str, dict[str, Any]]:
    """Per block what was watched and what was chosen; either may be missing."""
    watched = statistics.about.blocks if statistics else {}
    chosen = plan.blocks if plan else {}
    blocks = {}
    for name in watched or chosen:
        about, choice = watched.get(name), chosen.get(name)
        block: dict[str, Any] = {
            "experts": about.experts if about else chosen[name].experts,
            "kept": choice.kept if choice else None,
            "share": None, "kept_share": None, "kept_unobserved": None,
            "unobserved": about.unobserved if about else None,
            "entropy_bits": about.entropy_bits if about else None,
        }  # fmt: skip
        if statistics and about:
            counts = {tokens: statistics.get(name, "count", tokens) for tokens in ("all", *PARTS)}
            block["share"] = {tokens: _share(count) for tokens, count in counts.items()}
            if plan and choice:
                count = counts[_tokens(plan)]
                block["kept_share"] = _short(float(count[choice.kept].sum() / count.sum())) if count.any() else None
                block["kept_unobserved"] = int((count[choice.kept] == 0).sum())
        blocks[name] = block
    return blocks


def _tokens(plan: Plan) -> Tokens:
    return plan.tokens if plan.tokens in PARTS else "all"  # type: ignore[return-value]


def _share(count_E: torch.Tensor) -> list[float] | None:
    """Each expert's part of the routing choices, adding up to 1; None where no token of this kind was seen."""
    return [_short(share) for share in (count_E / count_E.sum()).tolist()] if count_E.any() else None


def _short(number: float) -> float:
    """Six significant digits, so that 128 experts in 48 blocks stay a readable file (and only zero becomes zero)."""
    return float(f"{number:.6g}")


def criteria_of(chosen: dict[str, dict[str, list[int]]], plan: Plan) -> dict[str, Any]:
    """Per criterion the share of the plan's experts that it would have kept as well, in every block and on the whole.

    Two choices that know nothing of each other share `by_chance`."""
    agreement = {
        criterion: {
            name: _short(len(set(kept[name]) & set(block.kept)) / plan.keep)
            for name, block in plan.blocks.items()
            if name in kept
        }
        for criterion, kept in chosen.items()
    }
    experts = next(iter(plan.blocks.values())).experts
    return {
        "by_chance": _short(plan.keep / experts),
        "agreement": agreement,
        "mean": {criterion: _short(sum(shares.values()) / len(shares)) for criterion, shares in agreement.items() if shares},
    }
