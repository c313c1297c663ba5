"""Everything the run directory holds -> report.html, report.json and the table in the terminal.

alternatives.json, what each criterion would have kept, is written with it: from the statistics alone, so it costs no model.

    {"format": 1, "fingerprint": …, "keep": 4, "criteria": {"reap": {"model.layers.0.mlp": [0, 2, 5, 7]}, …},
     "width": {"fisher": {"model.layers.0.mlp": 0.71, …}, …},     where experts are narrowed: the share of the plan's channels
     "layers": {"top": [0, 1, 2, 11], …}}                         where layers are dropped: those that stay
"""

import json
from collections.abc import Sequence
from contextlib import suppress
from typing import Self, cast

import torch

from toolkit.cuts.plan import Plan
from toolkit.cuts.statistics import ExpertStatistics, SearchMode, Tokens
from toolkit.cuts.width import WidthCut
from toolkit.pipeline.context import RunContext
from toolkit.pipeline.layer_alternatives import layer_alternatives
from toolkit.pipeline.run_directory import RunDirectory
from toolkit.pipeline.stage import Facts, Shown, Stage
from toolkit.pipeline.stage_names import REPORT, SELECT
from toolkit.pipeline.write_report import write_report
from toolkit.recipe.roles import Role
from toolkit.report import RunFacts, show
from toolkit.runtime.distributed import on_main, say
from toolkit.runtime.errors import PollardError
from toolkit.runtime.files import fingerprint_of, write_text
from toolkit.selection import CRITERIA, WIDTH_CRITERIA, Choice, WidthChoice, choose_channels, grown_plan, select


class Report(Stage):
    kind = REPORT
    always_shows = True
    last_screen = Shown(6, "the report: one page, for a browser", "report.html")

    def __init__(self, context: RunContext, role: Role | None = None) -> None:
        super().__init__(context, role)
        self.before: Sequence[Stage] = ()

    @classmethod
    def planned(cls, context: RunContext, role: Role | None, before: Sequence[Stage]) -> Sequence[Self]:
        stage = cls(context, role)
        stage.before = tuple(before)
        return [stage]

    def purpose(self) -> str:
        return "put it together"

    def fingerprint(self) -> str:
        return fingerprint_of([stage.fingerprint() for stage in self.before])

    def outlook(self) -> str:
        return "one page"

    def run(self) -> Facts:
        run = self.context.directory

        def write() -> RunFacts:
            write_alternatives(run, self.context)
            return write_report(run.path)

        facts = on_main(write)
        show(facts)
        say(f"Report: {run.path / 'report.html'}")
        if self.context.recipe.finetuning.trainer.get("report_to", "none") not in ("none", []) and REPORT not in run.done():
            on_main(lambda: self._send_scores(facts))
        return Facts()

    def _send_scores(self, facts: RunFacts) -> None:
        """To the trackers; not again where the report is only shown again."""
        from toolkit.recovery.settings import settings_to_read  # takes seconds; most runs have no tracker
        from toolkit.recovery.trackers import send_scores  # likewise

        folder = self.context.directory.path
        send_scores(settings_to_read(self.context.recipe, folder), score_numbers(facts), folder)


def score_numbers(facts: RunFacts) -> dict[str, float]:
    """What a tracker gets: of every model its score with the ends of the interval, n and size; of every pair the difference.
    Shares are fractions, as in report.json."""
    numbers: dict[str, float | None] = {}
    for role, result in facts.models.items():
        if result is not None:
            low, high = result.interval
            numbers |= {f"{role}/score": result.score, f"{role}/score_low": low, f"{role}/score_high": high}
            numbers |= {f"{role}/flexible_score": result.flexible_score, f"{role}/n": result.n}
            numbers |= {f"{role}/parameters": result.parameters}
    for pair in facts.pairs:
        low, high = pair.interval
        name = f"{pair.first}-{pair.second}"
        numbers |= {f"{name}/difference": pair.difference, f"{name}/difference_low": low, f"{name}/difference_high": high}
    return {key: float(number) for key, number in numbers.items() if number is not None}


def alternatives(statistics: ExpertStatistics, plan: Plan) -> dict[str, dict[str, list[int]]]:
    """Per criterion and block the experts it keeps: the same number, tokens and seed as the plan. A criterion that the statistics
    cannot serve is absent."""
    found: dict[str, dict[str, list[int]]] = {}
    if len(plan.cuts) > 1 and plan.keep == next(iter(plan.blocks.values())).experts:
        return found  # all stay, whichever criterion
    for criterion, rule in CRITERIA.items():
        tokens = cast(Tokens, "all" if rule.all_tokens_only else plan.tokens)
        mode = cast(SearchMode, plan.mode or "layerwise")
        with suppress(PollardError):  # not observed in this family, or no search was run: select() would say so
            if onto := plan.onto:
                first = plan.model_copy(update={"cuts": [plan.experts.before_growth]})
                choice = Choice(plan.keep, tokens, mode, plan.seed)
                chosen = grown_plan(statistics, criterion, choice, first, onto, plan.experts_per_token)
            else:
                chosen = select(statistics, criterion, plan.keep, tokens, mode, plan.seed, plan.experts_per_token)
            found[criterion] = {name: block.chosen for name, block in chosen.blocks.items()}
    return found


def width_alternatives(statistics: ExpertStatistics, plan: Plan, cut: WidthCut) -> dict[str, dict[str, float]]:
    """Per criterion and block the share of the plan's channels that it keeps as well. A criterion that the statistics cannot
    serve is absent."""
    found, kept = {}, {name: block.kept for name, block in plan.blocks.items()}
    tokens = cast(Tokens, plan.tokens)
    for criterion in WIDTH_CRITERIA:
        with suppress(PollardError):
            chosen = choose_channels(statistics, WidthChoice(cut.keep, criterion, tokens, plan.seed), kept)
            found[criterion] = {name: _share_in_common(chosen[name], cut.channels[name]) for name in kept}
    return found


def _share_in_common(one_KN: torch.Tensor, other_KN: torch.Tensor) -> float:
    """Of ascending channels of K experts, N of each."""
    both = torch.cat([one_KN, other_KN], dim=1).sort(dim=1).values
    return float((both[:, 1:] == both[:, :-1]).sum() / other_KN.numel())


def write_alternatives(run: RunDirectory, context: RunContext | None = None) -> None:
    """Writes alternatives.json where the run has chosen, and its statistics are still there. Without `context` nothing is said of
    layers, for which the model's configuration is asked what can go."""
    chosen = run.entries().get(SELECT)
    if not (chosen and run.plan.exists() and (run.statistics / "statistics.json").exists()):
        return
    plan, statistics = Plan.load(run.plan), ExpertStatistics.load(run.statistics)
    facts = {"format": 1, "fingerprint": chosen["fingerprint"], "keep": plan.keep}
    facts["criteria"] = alternatives(statistics, plan)
    if (width := plan.cut(WidthCut)) and statistics.about.channels:
        facts["width"] = width_alternatives(statistics, plan, width)
    if context and context.cuts.layers is not None:
        facts["layers"] = layer_alternatives(context)
    write_text(run.alternatives, json.dumps(facts) + "\n")
