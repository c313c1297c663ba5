"""Statistics -> plan.json: which experts stay, which of their channels, and which layers."""

from dataclasses import dataclass

from toolkit.cuts import LayersCut, Plan, WidthCut, sizes_after_cuts
from toolkit.cuts.statistics import ExpertStatistics
from toolkit.estimate import Machine, StageEstimate
from toolkit.pipeline.context import RunContext
from toolkit.pipeline.plan_choice import choose_plan
from toolkit.pipeline.recipe_changes import DECIDING
from toolkit.pipeline.rounds import composed_plan, early_rounds, round_names
from toolkit.pipeline.stage import Facts, Shown, Stage
from toolkit.pipeline.stage_names import LAYERS, SELECT
from toolkit.pipeline.stages.calibrate import Calibrate
from toolkit.recipe.roles import Role
from toolkit.recipe.step import COUNTED
from toolkit.runtime.distributed import on_main, say
from toolkit.runtime.errors import PollardError
from toolkit.selection import kept_unobserved


@dataclass(frozen=True)
class SelectFacts(Facts):
    """`sizes`: of the original, and after each cut, as ShapeSize has them."""

    sizes: dict[str, dict[str, int | None]]


class Select(Stage):
    kind = SELECT
    sections = DECIDING[Role.PRUNED]
    result = "by plan"
    output = "plan.json"
    last_screen = Shown(5, "what stays")

    def __init__(self, context: RunContext, role: Role | None = None) -> None:
        super().__init__(context, role)
        self.needs = (LAYERS, Calibrate.kind, *round_names(context.recipe))

    def purpose(self) -> str:
        pruning, cuts = self.context.recipe.pruning, self.context.cuts
        if first := self.context.first_run:
            return f"choose the experts to add to the {first.plan.keep} of {first.onto} ({cuts.keep} in all, {pruning.criterion})"
        parts = [f"the experts to keep ({pruning.keep}, {pruning.criterion})"] if pruning.keep is not None else []
        parts += [f"the channels of every expert ({cuts.width}, {pruning.width_criterion})"] if cuts.width else []
        return f"choose {' and '.join(parts)}" if parts else "put the layers that stay into a plan"

    def fingerprint(self) -> str:
        return self.context.fingerprints.select

    def estimate(self, machine: Machine) -> StageEstimate:
        return StageEstimate(self.name, "reads the statistics", seconds=0.0)

    def outlook(self) -> str:
        counts = {key: getattr(self.context.recipe.pruning, key) for key in COUNTED}
        parts = [f"{key} {value}" for key, value in counts.items() if value is not None]
        return ", ".join(parts)

    def run(self) -> Facts:
        return on_main(self._choose)

    def _choose(self) -> Facts:
        recipe, run = self.context.recipe, self.context.directory
        statistics = ExpertStatistics.load(run.statistics)
        self._check_own(statistics)
        plan = choose_plan(self.context, statistics, recipe.seed)
        plan.save(run.plan)
        whole = composed_plan(recipe, run) if early_rounds(recipe) else plan
        if whole is not plan:
            whole.save(run.rounds / "plan.json")
        unobserved = kept_unobserved(statistics, plan)
        if unobserved:
            say(
                f"  [bold]{unobserved} kept experts were never chosen in calibration[/]: "
                f"the task uses fewer than {plan.keep} in some blocks."
            )
        for line in self._lines(plan):
            say(f"  {line}")
        if [cut.kind for cut in whole.cuts] == ["experts"]:
            return Facts()
        sizes = sizes_after_cuts(self.context.config, whole)
        return SelectFacts({kind: size._asdict() for kind, size in sizes.items()})

    def _lines(self, plan: Plan) -> list[str]:
        """What stays, a line for each kind of cut."""
        experts, active = next(iter(plan.blocks.values())).experts, f"{plan.experts_per_token} per token"
        if plan.onto:
            held = plan.experts.before_growth.keep
            added = f"{held} -> {plan.keep} of {experts} experts ({active}) in each of {len(plan.blocks)} blocks"
            return [f"{added}: {plan.keep - held} join those of {plan.onto}, by {plan.criterion}"]
        lines = [f"{experts} -> {plan.keep} experts ({active}) in each of {len(plan.blocks)} blocks, by {plan.criterion}"]
        if plan.keep == experts:
            lines = [f"all {experts} experts stay ({active}) in each of {len(plan.blocks)} blocks"]
        if width := plan.cut(WidthCut):
            lines.append(f"{width.keep} channels of every expert stay, each its own, by {width.criterion}")
        if layers := plan.cut(LayersCut):
            lines.append(f"{layers.layers} -> {len(layers.kept)} layers, by {layers.criterion}")
        return lines

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
