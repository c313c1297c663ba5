"""From what calibration has left to the plan: experts, channels and layers, in one."""

from toolkit.cuts import Plan
from toolkit.cuts.statistics import ExpertStatistics
from toolkit.pipeline.context import RunContext
from toolkit.pipeline.layer_choice import chosen_layers
from toolkit.selection import Choice, grown_plan, select


def choose_plan(context: RunContext, statistics: ExpertStatistics, seed: int) -> Plan:
    """What the recipe of `context` keeps of the model that was observed. Where that is all experts, the plan says so, too.

    `seed`: of criteria that draw. Raises PollardError for what the statistics do not hold.
    """
    pruning, cuts = context.recipe.pruning, context.cuts
    if first := context.first_run:
        choice = Choice(cuts.keep, pruning.tokens, seed=seed)
        return grown_plan(statistics, pruning.criterion, choice, first.plan, first.onto, cuts.experts_per_token)
    plan = select(
        statistics, pruning.criterion, cuts.keep, pruning.tokens, pruning.mode, seed, pruning.experts_per_token, cuts.width,
        pruning.width_criterion, width_multiple=1,
    )  # fmt: skip
    layers = chosen_layers(context)
    return plan if layers is None else plan.model_copy(update={"cuts": [*plan.cuts, layers]})
