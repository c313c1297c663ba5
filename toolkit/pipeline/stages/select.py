"""Statistics -> plan.json: which experts stay."""

from toolkit.cuts.statistics import ExpertStatistics
from toolkit.estimate import Machine, StageEstimate
from toolkit.pipeline.context import RunContext
from toolkit.pipeline.recipe_changes import DECIDING
from toolkit.pipeline.rounds import composed_plan, early_rounds, round_names
from toolkit.pipeline.stage import Facts, Shown, Stage
from toolkit.pipeline.stage_names import SELECT
from toolkit.pipeline.stages.calibrate import Calibrate
from toolkit.recipe.roles import Role
from toolkit.runtime.distributed import on_main, say
from toolkit.runtime.errors import PollardError
from toolkit.selection import kept_unobserved, select


class Select(Stage):
    kind = SELECT
    sections = DECIDING[Role.PRUNED]
    result = "by plan"
    output = "plan.json"
    last_screen = Shown(4, "which experts stay")

    def __init__(self, context: RunContext, role: Role | None = None) -> None:
        super().__init__(context, role)
        self.needs = (Calibrate.kind, *round_names(context.recipe))

    def purpose(self) -> str:
        pruning = self.context.recipe.pruning
        return f"choose the experts to keep ({pruning.keep}, {pruning.criterion})"

    def fingerprint(self) -> str:
        return self.context.fingerprints.select

    def estimate(self, machine: Machine) -> StageEstimate:
        return StageEstimate(self.name, "reads the statistics", seconds=0.0)

    def outlook(self) -> str:
        return f"keep {self.context.recipe.pruning.keep}"

    def run(self) -> Facts:
        on_main(self._choose)
        return Facts()

    def _choose(self) -> None:
        recipe, run = self.context.recipe, self.context.directory
        statistics, pruning = ExpertStatistics.load(run.statistics), recipe.pruning
        self._check_own(statistics)
        cuts = self.context.cuts
        plan = select(
            statistics, pruning.criterion, cuts.keep, pruning.tokens, pruning.mode, recipe.seed, pruning.experts_per_token
        )
        plan.save(run.plan)
        if early_rounds(recipe):
            composed_plan(recipe, run).save(run.rounds / "plan.json")
        unobserved = kept_unobserved(statistics, plan)
        if unobserved:
            say(
                f"  [bold]{unobserved} kept experts were never chosen in calibration[/]: "
                f"the task uses fewer than {plan.keep} in some blocks."
            )
        experts = next(iter(plan.blocks.values())).experts
        active = f"{plan.experts_per_token} per token"
        say(f"  {experts} -> {plan.keep} experts ({active}) in each of {len(plan.blocks)} blocks, by {plan.criterion}")

    def _check_own(self, statistics: ExpertStatistics) -> None:
        """Raises PollardError where the statistics are not those that this run's calibration left."""
        run = self.context.directory
        theirs = run.entries().get(Calibrate.kind, {}).get("fingerprint")
        ours = statistics.about.fingerprint
        if ours != theirs:
            raise PollardError(
                f"The statistics in {run.statistics} are not this run's: their fingerprint is {ours}, its calibration's is "
                f"{theirs}. Calibrate again (--fresh), or use them by hand: toolkit.select(toolkit.ExpertStatistics.load(…), …).",
                code="select.other-statistics",
            )
