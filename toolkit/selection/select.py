"""From statistics to a plan."""

from typing import cast

from toolkit.cuts.block_plan import BlockPlan
from toolkit.cuts.plan import Plan
from toolkit.cuts.statistics import ExpertStatistics, SearchMode, Tokens
from toolkit.cuts.width import WidthCut
from toolkit.cuts.width_counts import channels_to_keep
from toolkit.runtime.errors import PollardError, did_you_mean
from toolkit.selection.criteria import CRITERIA, Choice, Criterion
from toolkit.selection.own_criterion import OwnCriterion, OwnScore
from toolkit.selection.width import WidthChoice, choose_channels, model_width


def experts_to_keep(keep: int | float, experts: int, groups: int = 1) -> int:
    """The number of experts that `keep` means: itself, or the number nearest to that fraction of `experts`.

    With expert groups, a fraction means equally many in each. Raises PollardError when it is more than `experts`.
    """
    if isinstance(keep, float) and not 0 < keep < 1:
        raise PollardError(
            f"pruning.keep is {keep}: give an integer in 1…{experts}, or a fraction in (0, 1).", code="selection.keep"
        )
    number = groups * max(1, round(keep * experts / groups)) if isinstance(keep, float) else keep
    if not 1 <= number <= experts:
        raise PollardError(
            f"pruning.keep is {keep}, but the model has {experts} experts per block: give 1…{experts}, or a fraction in (0, 1).",
            code="selection.keep",
        )
    return number


def experts_to_activate(experts_per_token: int | None, keep: int, most: int) -> int:
    """How many experts the pruned model activates per token: as given, else as many as now (`most`), where enough are kept.

    Raises PollardError when that is none, or more than are kept or than the model activates now.
    """
    number = min(most, keep) if experts_per_token is None else experts_per_token
    if not 1 <= number <= min(most, keep):
        raise PollardError(
            f"pruning.experts_per_token is {number}: the model activates {most} experts per token and keeps {keep}, "
            f"so give 1…{min(most, keep)}.",
            code="selection.experts-per-token",
        )
    return number


def select(
    statistics: ExpertStatistics,
    criterion: str | OwnScore = "weighted_ean",
    keep: int | float | None = 0.5,
    tokens: Tokens = "all",
    mode: SearchMode = "layerwise",
    seed: int = 0,
    experts_per_token: int | None = None,
    width: int | float | None = None,
    width_criterion: str = "energy",
    width_multiple: int | None = None,
) -> Plan:
    """Keeps `keep` experts (None: all) in every block: those that the criterion scores highest (of each expert group equally
    many), or the set that the search of `reconstruction` found best; and of these `width` channels each (None: all), by
    `width_criterion` over the same tokens. `criterion` is a name (`pollard criteria` lists them), or a function of an
    `ObservedBlock` that returns a finite number per expert, [E]; the plan names it module:function.

    Ties: the lower index stays. An expert that no token reached ranks below every other, whatever its score (except under
    `random`, which ignores the statistics). `mode` belongs to `reconstruction`, whose plan has no scores.
    `experts_per_token`: how many the pruned model activates; unless given as many as in calibration, where enough are kept.
    `width` and `width_multiple`: as in `channels_to_keep`. Raises PollardError for an unknown criterion, an impossible number,
    for what the statistics do not hold, and for a function that raises or returns anything else.
    """
    rule, about = _criterion(criterion), statistics.about
    first = next(iter(about.blocks.values()))
    number = first.experts if keep is None else experts_to_keep(keep, first.experts, first.groups)
    channels = None if width is None else channels_to_keep(width, model_width(statistics), width_multiple)
    if number % first.groups:
        raise PollardError(
            f"pruning.keep is {number}, but the model has {first.groups} groups of experts: give a multiple of it.",
            code="selection.groups",
        )
    rule.check_tokens(tokens)
    choice = Choice(number, tokens, mode, seed)
    blocks = {}
    for block in statistics.blocks:
        chosen = rule.choose(statistics, block, choice)
        blocks[block] = BlockPlan(experts=about.blocks[block].experts, kept=chosen.kept, scores=chosen.scores)
    calibration: dict[str, str | int] = {}
    for key in ("task", "examples", "fingerprint"):
        if (value := getattr(about, key)) is not None:
            calibration[key] = value
    calibration["tokens"] = about.tokens
    active = experts_to_activate(experts_per_token, number, first.experts_per_token)
    plan = Plan.of_experts(
        model=about.model, criterion=rule.name, mode=mode if rule.searched else None, tokens=tokens, seed=seed, keep=number,
        experts_per_token=active, blocks=blocks, calibration=calibration,
    )  # fmt: skip
    if channels is not None:
        of_width = WidthChoice(channels, width_criterion, tokens, seed)
        kept_channels = choose_channels(statistics, of_width, plan.experts.kept)
        plan.cuts.append(WidthCut(criterion=width_criterion, keep=channels, channels=kept_channels))
    return plan


def _criterion(criterion: str | OwnScore) -> Criterion:
    if callable(criterion):
        return OwnCriterion(criterion)
    if not isinstance(criterion, str) or criterion not in CRITERIA:
        hint = did_you_mean(str(criterion), list(CRITERIA))
        raise PollardError(
            f"Unknown criterion {criterion!r}{hint} Criteria: {', '.join(CRITERIA)}, or a function of a block.",
            code="selection.criterion",
        )
    return CRITERIA[criterion]


def kept_unobserved(statistics: ExpertStatistics, plan: Plan) -> int:
    """How many chosen experts no token of the plan's kind reached: above 0, the budget is larger than what the task uses."""
    tokens = cast(Tokens, plan.tokens)
    return sum(int((statistics.get(name, "count", tokens)[b.chosen] == 0).sum()) for name, b in plan.blocks.items())
