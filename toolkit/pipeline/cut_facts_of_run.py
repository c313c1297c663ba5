"""From a run directory to the report's facts of its cuts of width and layers, and of the search for its shape."""

from collections.abc import Mapping
from typing import Any

from toolkit.cuts import LayersCut, Plan, WidthCut
from toolkit.cuts.fit_result import FitResult
from toolkit.cuts.statistics import ExpertStatistics
from toolkit.pipeline.layer_choice import ChosenLayers
from toolkit.pipeline.run_directory import RunDirectory
from toolkit.pipeline.stage_names import FIT_CHOOSE, FIT_MEASURE, FIT_SCORES, FIT_SHAPES, LAYERS, SELECT
from toolkit.report.channel_facts import channel_agreement, channel_facts, mlp_facts
from toolkit.report.cut_facts import CutFacts, DevAnswerFacts, LayersFacts, RemovedLayerFacts, SizeFacts, WidthFacts
from toolkit.report.fit_facts import FitFacts
from toolkit.report.fit_frontier import fit_facts

Entries = Mapping[str, Mapping[str, Any]]  # the manifest's, by stage


def fit_facts_of_run(run: RunDirectory, stages: Entries) -> FitFacts | None:
    """As far as the stages of the fit have come; None where none of them is done."""
    done = [stage for stage in (FIT_SHAPES, FIT_SCORES, FIT_MEASURE, FIT_CHOOSE) if stage in stages]
    if not done or not run.fit_result.exists():
        return None
    result = FitResult.load(run.fit_result)
    result.seconds = {stage: stages[stage]["seconds"] for stage in done}
    return fit_facts(result)


def cut_facts(
    run: RunDirectory,
    stages: Entries,
    plans: tuple[Plan, Plan],
    statistics: ExpertStatistics | None,
    alternatives: tuple[Mapping[str, Mapping[str, float]], Mapping[str, list[int]]],
) -> CutFacts | None:
    """`plans`: the run's own, and that of all rounds together. `alternatives`: what other criteria of width (the share of the
    plan's channels, by block) and of layers would have kept. None where only experts are cut."""
    own, whole = plans
    if not (whole.cut(WidthCut) or whole.cut(LayersCut)):
        return None
    sizes = {kind: SizeFacts(**size) for kind, size in stages[SELECT].get("sizes", {}).items()}
    of_width, of_layers = alternatives
    return CutFacts(
        sizes=sizes, width=_width(own, whole, sizes, statistics, of_width), layers=_layers(run, stages, whole, of_layers)
    )


def _width(
    own: Plan,
    whole: Plan,
    sizes: Mapping[str, SizeFacts],
    statistics: ExpertStatistics | None,
    shares: Mapping[str, Mapping[str, float]],
) -> WidthFacts | None:
    """Channels are counted in the model that the run's own plan cuts: with a schedule, that of the last round."""
    cut, own_cut = whole.cut(WidthCut), own.cut(WidthCut)
    if cut is None:
        return None
    observed = {facts.width for facts in statistics.about.channels.values() if facts.experts is not None} if statistics else set()
    original = sizes["original"].width if "original" in sizes else None
    there = observed.pop() if observed else original
    return WidthFacts(
        criterion=cut.criterion,
        keep=cut.keep,
        width=original or there,
        blocks=channel_facts(own, statistics, there) if own_cut and there else {},
        mlps=mlp_facts(own, statistics),
        criteria=channel_agreement(shares, cut.keep, there) if shares and there else None,
    )


def _layers(run: RunDirectory, stages: Entries, whole: Plan, criteria: Mapping[str, list[int]]) -> LayersFacts | None:
    """What the choice of layers measured is told where it counts as the original does: not of a later round."""
    cut = whole.cut(LayersCut)
    if cut is None:
        return None
    chosen = ChosenLayers.load(run.layers) if LAYERS in stages and run.layers.exists() else None
    if chosen is None or (chosen.layers, chosen.kept) != (cut.layers, cut.kept):
        chosen, criteria = ChosenLayers(criterion=cut.criterion, layers=cut.layers, kept=cut.kept, path=cut.path), {}
    answers = chosen.dev_answers
    return LayersFacts(
        criterion=chosen.criterion,
        layers=cut.layers,
        kept=cut.kept,
        scores=list(chosen.scores or cut.scores or ()) or None,
        removed=[RemovedLayerFacts(layer=removed.layer, loss=removed.loss) for removed in chosen.removed],
        refused=chosen.refused,
        loss=chosen.loss,
        dev_examples=chosen.dev_examples,
        dev_answers=DevAnswerFacts(**answers.model_dump()) if answers else None,
        written_answers=stages.get(LAYERS, {}).get("written_answers"),
        criteria=dict(criteria),
    )
