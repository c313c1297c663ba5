"""The model card, README.md: what the hub and the next user need to know, from `RunFacts` and nothing else."""

from typing import Any, NamedTuple

from huggingface_hub import EvalResult, ModelCardData

from toolkit.report.facts import RunFacts
from toolkit.report.local_paths import model_name, without_local_paths
from toolkit.report.measurements import OffTaskResult
from toolkit.report.page import environment, recipe_text
from toolkit.report.telling import table_measures

TAGS = ["pollard", "moe", "pruning"]


class OffTaskCost(NamedTuple):
    """What pruning alone costs elsewhere: both models on the same other data."""

    name: str
    original: OffTaskResult
    pruned: OffTaskResult


def card(report: RunFacts, where: str) -> str:
    """The card of the run's result; `where` is what to load it by: a folder, or a hub id. No path of this machine is in it."""
    text = environment().get_template("card.md.j2").render(
        report=report,
        metadata=_metadata(report).to_yaml(),
        result=report.result,
        where=where,
        measures=table_measures(list(report.evaluated.values())).shown,
        evaluated=report.evaluated,
        off_task=off_task_cost(report),
        recipe=recipe_text(without_local_paths(report.recipe, report)),
        made_from=model_name(report),
        originals=_originals(report),
    )  # fmt: skip
    return str(without_local_paths(text, report))


def _originals(report: RunFacts) -> list[str]:
    """What an original that lies in a folder is made from, as its own card says."""
    named = None if report.origin.base_model else report.origin.card.get("base_model")
    return [str(name) for name in named] if isinstance(named, list) else [str(named)] if named else []


def _metadata(report: RunFacts) -> ModelCardData:
    origin, result = report.origin, report.models.get(report.result)
    known: dict[str, Any] = {**origin.card}  # keywords of ModelCardData
    if origin.base_model:
        known |= {"base_model": origin.base_model, "base_model_relation": "finetune"}
    if origin.datasets:
        known["datasets"] = origin.datasets
    if result:
        dataset = next(iter(origin.datasets), None)
        known["model_name"] = report.name
        known["eval_results"] = [
            EvalResult(
                task_type="text-generation", dataset_type=dataset or str(report.task), dataset_name=str(report.task),
                dataset_split=result.split, metric_type="accuracy", metric_value=round(100 * result.score, 2),
                metric_name=f"accuracy (%), {result.n} questions",
            )
        ]  # fmt: skip
    tags = [*TAGS, *_kinds_of_pruning(report), *(["refit"] if report.refit else []), *([origin.family] if origin.family else [])]
    return ModelCardData(library_name="transformers", pipeline_tag="text-generation", tags=tags, **known)


def _kinds_of_pruning(report: RunFacts) -> list[str]:
    cut, others = report.pruning, report.cuts
    kinds = {
        "expert-pruning": not others or bool(cut and cut.keep < cut.experts),
        "width-pruning": bool(others and others.width),
        "layer-pruning": bool(others and others.layers),
    }
    return [kind for kind, is_cut in kinds.items() if is_cut]


def off_task_cost(report: RunFacts) -> OffTaskCost | None:
    """From the sweep's cell that was pruned as the run was; None where no sweep measured it."""
    sweep, cut = report.sweep, report.pruning
    if not (sweep and cut and sweep.off_task):
        return None
    original = sweep.rows[0].off_task
    width, layers = (report.cuts.width, report.cuts.layers) if report.cuts else (None, None)
    others = width and width.keep, layers and len(layers.kept)
    for row in (row for row in sweep.rows if not row.not_written):
        alike = (row.keep, row.criterion, row.tokens) == (cut.keep, cut.criterion, cut.tokens)
        alike &= (row.width, row.layers) == others and (not width or row.width_criterion == width.criterion)
        if alike and cut.mode in (None, row.mode) and row.off_task and original:
            return OffTaskCost(sweep.off_task, original, row.off_task)
    return None
