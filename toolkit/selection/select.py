"""From statistics to a plan."""

from typing import Any, cast

from toolkit.cuts.experts import BlockPlan
from toolkit.cuts.plan import Plan
from toolkit.cuts.statistics import ExpertStatistics, Tokens
from toolkit.runtime.errors import PollardError, did_you_mean
from toolkit.selection.criteria import CRITERIA, SCORES, Mode, reconstruction


def experts_to_keep(keep: int | float, experts: int, groups: int = 1) -> int:
    """The number of experts `keep` means: itself, or the nearest number to that fraction of `experts`.

    With expert groups, a fraction means as many in each. Raises PollardError when it is more than there are.
    """
    if isinstance(keep, float) and not 0 < keep < 1:
        raise PollardError(f"pruning.keep is {keep}: give an integer in 1…{experts}, or a fraction in (0, 1).")
    number = groups * max(1, round(keep * experts / groups)) if isinstance(keep, float) else keep
    if not 1 <= number <= experts:
        raise PollardError(
            f"pruning.keep is {keep}, but the model has {experts} experts per block: give 1…{experts}, or a fraction in (0, 1)."
        )
    return number


def experts_to_activate(experts_per_token: int | None, keep: int, most: int) -> int:
    """How many experts the pruned model activates per token: as asked, or as many as now where enough are kept.

    Raises PollardError when that is none, or more than are kept or than the model activates now (`most`).
    """
    number = min(most, keep) if experts_per_token is None else experts_per_token
    if not 1 <= number <= min(most, keep):
        raise PollardError(
            f"pruning.experts_per_token is {number}: the model activates {most} experts per token and keeps {keep}, "
            f"so give 1…{min(most, keep)}."
        )
    return number


def select(
    statistics: ExpertStatistics,
    criterion: str = "weighted_ean",
    keep: int | float = 0.5,
    tokens: Tokens = "all",
    mode: Mode = "layerwise",
    seed: int = 0,
    experts_per_token: int | None = None,
) -> Plan:
    """Keeps, in every block, the `keep` experts the criterion scores highest (of each expert group equally many), or the
    set that `reconstruction` found.

    Ties: the lower index stays. An expert no token reached ranks below every other, whatever its score (except under
    `random`, which does not look). `mode` belongs to `reconstruction`, whose plan has no scores. `experts_per_token`: how
    many the pruned model activates; as many as calibration did where enough are kept, unless given. Raises PollardError
    for an unknown criterion, an impossible number, and for what the statistics do not hold.
    """
    if criterion not in CRITERIA:
        raise PollardError(
            f"Unknown criterion {criterion!r}{did_you_mean(criterion, list(CRITERIA))} Criteria: {', '.join(CRITERIA)}."
        )
    about = next(iter(statistics.about["blocks"].values()))
    groups = about.get("groups", 1)
    number = experts_to_keep(keep, about["experts"], groups)
    if number % groups:
        raise PollardError(f"pruning.keep is {number}, but the model has {groups} groups of experts: give a multiple of it.")
    if criterion == "reconstruction" and tokens != "all":
        raise PollardError(f"reconstruction compares the block's output on all tokens: pruning.tokens must be all, not {tokens}.")
    blocks = {}
    for block in statistics.blocks:
        if criterion == "reconstruction":
            blocks[block] = BlockPlan(experts=about["experts"], kept=reconstruction(statistics, block, number, mode))
        else:
            blocks[block] = _best_scores(statistics, block, criterion, number, tokens, seed)
    calibration: dict[str, Any] = {
        key: statistics.about[key] for key in ("task", "examples", "fingerprint") if key in statistics.about
    }
    calibration["tokens"] = sum(about["tokens"].values())
    active = experts_to_activate(experts_per_token, number, about["experts_per_token"])
    return Plan.of_experts(
        model=statistics.about["model"], criterion=criterion, mode=mode if criterion == "reconstruction" else None,
        tokens=tokens, seed=seed, keep=number, experts_per_token=active, blocks=blocks, calibration=calibration,
    )  # fmt: skip


def _best_scores(statistics: ExpertStatistics, block: str, criterion: str, number: int, tokens: Tokens, seed: int) -> BlockPlan:
    scores = SCORES[criterion](statistics, block, tokens, seed)
    count = statistics.get(block, "count", tokens)
    observed = (count > 0).tolist() if criterion != "random" else [True] * len(count)
    order = sorted(range(len(scores)), key=lambda e: (not observed[e], -scores[e].item(), e))
    kept = best_of_each_group(order, number, statistics.about["blocks"][block].get("groups", 1))
    return BlockPlan(experts=len(scores), kept=kept, scores=scores.tolist())


def best_of_each_group(order: list[int], number: int, groups: int) -> list[int]:
    """The first `number` experts of `order`, equally many of each of `groups` ranges of indices, ascending."""
    size = len(order) // groups
    return sorted(expert for g in range(groups) for expert in [e for e in order if e // size == g][: number // groups])


def kept_unobserved(statistics: ExpertStatistics, plan: Plan) -> int:
    """How many kept experts no token of the chosen kind reached: a budget larger than what the task uses."""
    tokens = cast(Tokens, plan.tokens)
    return sum(int((statistics.get(name, "count", tokens)[b.kept] == 0).sum()) for name, b in plan.blocks.items())
