"""From statistics to a plan."""

from typing import Any, cast

from toolkit.errors import PollardError, did_you_mean
from toolkit.expert_statistics import ExpertStatistics, Tokens
from toolkit.plan import BlockPlan, Plan
from toolkit.selection.criteria import CRITERIA, SCORES, Mode, reconstruction


def experts_to_keep(keep: int | float, experts: int, experts_per_token: int) -> int:
    """The number of experts `keep` means: itself, or the nearest number to that fraction of `experts`.

    Raises PollardError when it is more than there are or fewer than a token activates.
    """
    if isinstance(keep, float) and not 0 < keep < 1:
        raise PollardError(f"pruning.keep is {keep}: give an integer in 1…{experts}, or a fraction in (0, 1).")
    number = max(1, round(keep * experts)) if isinstance(keep, float) else keep
    if not 1 <= number <= experts:
        raise PollardError(
            f"pruning.keep is {keep}, but the model has {experts} experts per block: give 1…{experts}, or a fraction in (0, 1)."
        )
    if number < experts_per_token:
        raise PollardError(
            f"pruning.keep {keep} means {number} experts, but this model activates {experts_per_token} per token. "
            f"Activating fewer per token is not built yet: keep at least {experts_per_token}."
        )
    return number


def select(
    statistics: ExpertStatistics,
    criterion: str = "weighted_ean",
    keep: int | float = 0.5,
    tokens: Tokens = "all",
    mode: Mode = "layerwise",
    seed: int = 0,
) -> Plan:
    """Keeps, in every block, the `keep` experts the criterion scores highest, or the set that `reconstruction` found.

    Ties: the lower index stays. An expert no token reached ranks below every other, whatever its score (except under
    `random`, which does not look). `mode` belongs to `reconstruction`, whose plan has no scores. Raises PollardError for an
    unknown criterion, an impossible `keep`, and for what the statistics do not hold.
    """
    if criterion not in CRITERIA:
        raise PollardError(
            f"Unknown criterion {criterion!r}{did_you_mean(criterion, list(CRITERIA))} Criteria: {', '.join(CRITERIA)}."
        )
    about = next(iter(statistics.about["blocks"].values()))
    number = experts_to_keep(keep, about["experts"], about["experts_per_token"])
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
    return Plan(
        model=statistics.about["model"], criterion=criterion, mode=mode if criterion == "reconstruction" else None,
        tokens=tokens, seed=seed, keep=number, experts_per_token=about["experts_per_token"], blocks=blocks,
        calibration=calibration,
    )  # fmt: skip


def _best_scores(statistics: ExpertStatistics, block: str, criterion: str, number: int, tokens: Tokens, seed: int) -> BlockPlan:
    scores = SCORES[criterion](statistics, block, tokens, seed)
    count = statistics.get(block, "count", tokens)
    observed = (count > 0).tolist() if criterion != "random" else [True] * len(count)
    order = sorted(range(len(scores)), key=lambda e: (not observed[e], -scores[e].item(), e))
    return BlockPlan(experts=len(scores), kept=sorted(order[:number]), scores=scores.tolist())


def kept_unobserved(statistics: ExpertStatistics, plan: Plan) -> int:
    """How many kept experts no token of the chosen kind reached: a budget larger than what the task uses."""
    tokens = cast(Tokens, plan.tokens)
    return sum(int((statistics.get(name, "count", tokens)[b.kept] == 0).sum()) for name, b in plan.blocks.items())
