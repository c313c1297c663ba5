"""Per MoE block: how the task uses its experts, which stay, and which every criterion would have kept.

The one place of the report that reads how a plan stores its experts. Shape legend: E experts of a block.
"""

from collections.abc import Mapping

import torch

from toolkit.cuts.plan import Plan
from toolkit.cuts.statistics import PARTS, ExpertStatistics, Tokens
from toolkit.report.cut_facts import CriteriaAgreement
from toolkit.report.facts import BlockFacts, DenseFacts, PruningFacts


def pruning_facts(plan: Plan, schedule: list[int | str] | None, dense: DenseFacts | None = None) -> PruningFacts:
    """The plan in numbers; with a schedule, `plan` is that of all rounds together. `dense`: of a plan that is written so."""
    experts = next(iter(plan.blocks.values())).experts
    return PruningFacts(
        criterion=plan.criterion,
        mode=plan.mode,
        tokens=plan.tokens,
        seed=plan.seed,
        keep=plan.keep,
        experts_per_token=plan.experts_per_token,
        experts=experts,
        blocks=len(plan.blocks),
        schedule=schedule,
        dense=dense,
        onto=plan.onto,
        held=plan.experts.before_growth.keep if plan.onto else None,
    )


def block_facts(statistics: ExpertStatistics | None, plan: Plan | None) -> dict[str, BlockFacts]:
    """Per block what was observed and what was chosen; either may be missing."""
    observed = statistics.about.blocks if statistics else {}
    chosen = plan.blocks if plan else {}
    blocks = {}
    for name in observed or chosen:
        about, choice = observed.get(name), chosen.get(name)
        share = kept_share = kept_unobserved = None
        if statistics and about:
            counts = {tokens: statistics.get(name, "count", tokens) for tokens in ("all", *PARTS)}
            share = {tokens: _share(count) for tokens, count in counts.items()}
            if plan and choice:
                count_E = counts[tokens_of(plan)]
                kept_share = short(float(count_E[choice.kept].sum() / count_E.sum())) if count_E.any() else None
                kept_unobserved = int((count_E[choice.chosen] == 0).sum())
        blocks[name] = BlockFacts(
            experts=about.experts if about else chosen[name].experts,
            kept=choice.kept if choice else None,
            share=share,
            kept_share=kept_share,
            kept_unobserved=kept_unobserved,
            unobserved=about.unobserved if about else None,
            entropy_bits=about.entropy_bits if about else None,
        )
    return blocks


def tokens_of(plan: Plan) -> Tokens:
    """The tokens that decided."""
    return plan.tokens if plan.tokens in PARTS else "all"  # type: ignore[return-value]


def _share(count_E: torch.Tensor) -> list[int | float] | None:
    """Each expert's part of the routing choices, adding up to 1; None where there was no token of this kind."""
    return [short(share) for share in (count_E / count_E.sum()).tolist()] if count_E.any() else None


def short(number: float) -> float:
    """Six significant digits, so that 128 experts in 48 blocks stay a readable file (and only zero becomes zero)."""
    return float(f"{number:.6g}")


def criteria_agreement(chosen: Mapping[str, Mapping[str, list[int]]], plan: Plan) -> CriteriaAgreement:
    """How far each criterion's choice (criterion -> block -> chosen experts) is the plan's."""
    agreement = {
        criterion: {
            name: short(len(set(kept[name]) & set(block.chosen)) / len(block.chosen))
            for name, block in plan.blocks.items()
            if name in kept
        }
        for criterion, kept in chosen.items()
    }
    first = next(iter(plan.blocks.values()))
    open_places = first.experts - len(first.kept) + len(first.chosen)  # a first run's experts are not chosen again
    mean = {criterion: short(sum(shares.values()) / len(shares)) for criterion, shares in agreement.items() if shares}
    return CriteriaAgreement(by_chance=short(len(first.chosen) / open_places), agreement=agreement, mean=mean)
