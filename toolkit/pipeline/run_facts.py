"""From a run directory to `RunFacts`: its manifest, recipe, plan, statistics, scores and logs, read into what reports render.

A file counts when the manifest says that its stage is finished and the recipe asks for it; what is stale is named and not shown;
what is missing is None, and nothing is guessed.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, RootModel

from toolkit.cuts.plan import Plan
from toolkit.cuts.statistics import ExpertStatistics
from toolkit.pipeline.classes_of_run import classes_of_run
from toolkit.pipeline.cut_facts_of_run import cut_facts, fit_facts_of_run
from toolkit.pipeline.manifest import SWEEP
from toolkit.pipeline.provenance import provenance_of_run
from toolkit.pipeline.result_files import read_answers, read_file
from toolkit.pipeline.run_directory import RunDirectory
from toolkit.pipeline.run_status import BEST_FIRST, stale_parts
from toolkit.pipeline.stage_names import CALIBRATE, EVALUATE, MADE_BY, MERGE, REPORT, SELECT, stage_name
from toolkit.pipeline.training_facts import question_facts, student_facts, training_facts
from toolkit.recipe.file import load_recipe, read_values
from toolkit.recipe.roles import Role
from toolkit.recipe.schema import Recipe
from toolkit.report.answer_costs import with_costs
from toolkit.report.blocks import block_facts, criteria_agreement, pruning_facts
from toolkit.report.export_facts import ExportFacts
from toolkit.report.facts import CalibrationFacts, DenseFacts, ModelResult, RunFacts, StaleFiles
from toolkit.report.first_task import FirstTaskFacts
from toolkit.report.making import MakingFacts
from toolkit.report.measurements import Fidelity, HarnessRow, HarnessScore, SpeedTable, SweepTable
from toolkit.report.narrative import with_sentences
from toolkit.report.noninferiority import NonInferiority
from toolkit.report.off_task_facts import OffTaskLoss
from toolkit.report.paired_questions import changed_answers, compare_all
from toolkit.report.refit_facts import RefitFacts, RefitLayerFacts
from toolkit.runtime.files import JsonObject

Read = TypeVar("Read", bound=BaseModel)
Entries = Mapping[str, JsonObject]  # the manifest's, by stage
SPEED_FILE = "speed.json"  # in a run directory
SIZES = ("parameters", "active_parameters", "checkpoint_bytes")
"""Fields that are compared with the original's. Not the speed: a ratio of two passes measured once each is mostly noise."""
ALWAYS_EVALUATED = (Role.ORIGINAL, Role.PRUNED, Role.RECOVERED)
CALIBRATION_KEYS = ("examples", "left_out", "beyond_context")
REFIT_KEYS = ("examples", "tokens", "held_out")


class HarnessTask(BaseModel):
    """What lm-evaluation-harness measured on one task, by metric."""

    n: int | None
    metrics: dict[str, HarnessScore]
    output_type: str | None = None


class HarnessFile(RootModel[dict[str, HarnessTask]]):
    """evaluation/<role>.harness.json, by task."""


class Alternatives(BaseModel):
    """alternatives.json: what each criterion would have kept (criterion -> block -> experts), for the plan of one selection. Of
    width, the share of the plan's channels; of layers, their numbers."""

    fingerprint: str | None = None
    criteria: dict[str, dict[str, list[int]]] = {}
    width: dict[str, dict[str, float]] = {}
    layers: dict[str, list[int]] = {}


class Results(NamedTuple):
    """Every model that the recipe asks for (None: not evaluated), and why the file of any other is left out."""

    models: dict[Role, ModelResult | None]
    left_out: list[str]


def _dense(stages: Mapping[str, Mapping[str, Any]]) -> DenseFacts | None:
    return DenseFacts(**stages[MERGE]) if MERGE in stages else None


def read_run_facts(path: str | Path) -> RunFacts:
    """The facts of the run in `path`. Raises PollardError for a file that is there but damaged."""
    path = Path(path)
    run = RunDirectory(path.name, path.parent)
    manifest = run.read_manifest()
    stages = {name: entry for name, entry in run.done().items() if name != REPORT}
    values = read_file(run.recipe, read_values)
    recipe = load_recipe(run.recipe) if values else None
    plan = Plan.load(run.plan) if SELECT in stages and run.plan.exists() else None
    statistics = _statistics(run) if CALIBRATE in stages else None
    schedule = _schedule(recipe)
    whole = Plan.load(run.rounds / "plan.json") if plan and schedule else plan
    asked = _alternatives(run, stages, plan)
    models, left_out = _results(run, recipe, stages, manifest.get("failed", {}))
    evaluated = {role: result for role, result in models.items() if result}
    answers = {role: read_answers(run.evaluation / f"{role}.predictions.jsonl") for role in evaluated}
    last_model = next((role for role in BEST_FIRST if role in evaluated), None)
    refit, recovery, control = MADE_BY[Role.REFITTED], MADE_BY[Role.RECOVERED], MADE_BY[Role.CONTROL]
    pairs = compare_all(evaluated, answers)
    decisive = next((pair for pair in pairs if (pair.first, pair.second) == (last_model, Role.ORIGINAL)), None)
    margin = recipe.evaluation.margin if recipe else None
    latest = list(stages.values())[-1] if stages else {}
    facts = RunFacts(
        format=1,
        name=recipe.name if recipe else path.name,
        model=manifest.get("model"),
        task=recipe.task.title if recipe else manifest.get("task"),
        origin=provenance_of_run(run, recipe),
        making=MakingFacts.of(stages),
        seed=recipe.seed if recipe else None,
        fit=fit_facts_of_run(run, stages),
        pruning=pruning_facts(whole, schedule, _dense(stages)) if whole else None,
        cuts=cut_facts(run, stages, (plan, whole), statistics, (asked.width, asked.layers)) if plan and whole else None,
        calibration=_calibration(stages[CALIBRATE], statistics) if CALIBRATE in stages else None,
        refit=_refit(run, stages[refit]) if refit in stages else None,
        first_task=_by_role(run, "first_task", stages, FirstTaskFacts).get(Role.RECOVERED),
        models=with_costs(models),
        ratios=_ratios(evaluated),
        pairs=pairs,
        classes=classes_of_run(recipe, answers),
        noninferiority=NonInferiority.of(decisive, margin) if decisive and margin is not None else None,
        changed=changed_answers(last_model, answers.get(Role.ORIGINAL, []), answers[last_model]) if last_model else None,
        blocks=block_facts(statistics, plan),
        criteria=criteria_agreement(asked.criteria, plan) if plan and asked.criteria else None,
        training=training_facts(_log(run.training_log), stages[recovery], question_facts(stages), student_facts(stages))
        if recovery in stages
        else None,
        control_training=training_facts(_log(run.control_log), stages[control], question_facts(stages))
        if control in stages
        else None,
        sweep=read_file(run.sweep / "table.json", SweepTable.model_validate_json) if SWEEP in stages else None,
        fidelity=_by_role(run, "fidelity", stages, Fidelity) if recipe and recipe.evaluation.fidelity else {},
        off_task=_by_role(run, "off_task", stages, OffTaskLoss) if recipe and recipe.evaluation.measured_off_task else {},
        speed=_speed(run, stages),
        exports=_exports(run, stages),
        harness=_harness(run, stages) if recipe and recipe.evaluation.harness else [],
        stale=[StaleFiles(parts=stale.parts, why=stale.why) for stale in stale_parts(run)],
        stages=stages,
        versions=latest.get("versions"),
        git_commit=latest.get("git_commit"),
        recipe=values or None,
        recipe_path=str(run.recipe),
    )
    return with_sentences(facts, recipe, _bad_lines(stages), left_out)


def _statistics(run: RunDirectory) -> ExpertStatistics | None:
    return ExpertStatistics.load(run.statistics) if (run.statistics / "statistics.json").exists() else None


def _schedule(recipe: Recipe | None) -> list[int | str] | None:
    steps = recipe.pruning.schedule if recipe else None
    return [step.label for step in steps] if steps else None


def _calibration(entry: Mapping[str, Any], statistics: ExpertStatistics | None) -> CalibrationFacts:
    blocks = statistics.about.blocks.values() if statistics else ()
    tokens = next((block.tokens for block in blocks), None)  # every block sees the same tokens
    return CalibrationFacts(**{key: entry.get(key) for key in CALIBRATION_KEYS}, tokens=tokens)


def _refit(run: RunDirectory, entry: JsonObject) -> RefitFacts:
    """From the stage's entry, and what refit.json says of the layers."""
    layers = read_file(run.refit, lambda text: [RefitLayerFacts.model_validate(b) for b in json.loads(text)["blocks"]])
    return RefitFacts(**{key: entry.get(key) for key in REFIT_KEYS}, layers=layers or [])


def _bad_lines(stages: Entries) -> dict[str, int]:
    """Lines of the data that could not be used, by what they were read for; only what is not 0."""
    purposes = {CALIBRATE: "calibration", MADE_BY[Role.RECOVERED]: "training"}
    purposes |= {stage_name(EVALUATE, role): "evaluation" for role in Role}
    return {purposes[stage]: count for stage, entry in stages.items() if stage in purposes and (count := entry.get("bad_lines"))}


def _results(run: RunDirectory, recipe: Recipe | None, stages: Entries, failed: Mapping[str, Any]) -> Results:
    extras = {
        Role.SKIPPING: bool(recipe and recipe.pruning.skipping is not None),
        Role.CONTROL: bool(recipe and recipe.control),
    }
    asked = {*(recipe.evaluation.models if recipe else ALWAYS_EVALUATED), *(role for role, on in extras.items() if on)}
    models, left_out = {}, []
    for role in Role:
        path, stage = run.evaluation / f"{role}.json", stage_name(EVALUATE, role)
        result = read_file(path, ModelResult.model_validate_json)
        if (failure := failed.get(stage)) and stage not in stages:
            left_out.append(f"{path.name} is left out, its evaluation failed. {failure['message']}")
        elif result and run.why_stale(stage) and stage in run.entries():
            continue  # named as stale
        elif result and stage not in stages:
            left_out.append(f"{path.name} is left out: its evaluation was started again and has not finished.")
        elif result and role not in asked:
            left_out.append(f"{path.name} is left out: the recipe does not ask for it, so it may belong to an earlier recipe.")
        else:
            models[role] = result
    # Without an extra nothing is missing
    absent = {role for role, on in extras.items() if not on} | (
        {Role.REFITTED} if not (recipe and recipe.pruning.refit) else set()
    )
    return Results({role: models.get(role) for role in Role if role not in absent}, left_out)


def _ratios(models: Mapping[Role, ModelResult]) -> dict[Role, dict[str, float]]:
    """Sizes of the other models as fractions of the original's, where both are known."""
    original = models.get(Role.ORIGINAL)
    return {
        role: {
            size: getattr(result, size) / getattr(original, size)
            for size in SIZES
            if original and getattr(result, size) and getattr(original, size)
        }
        for role, result in models.items()
        if role != Role.ORIGINAL
    }


def _alternatives(run: RunDirectory, stages: Entries, plan: Plan | None) -> Alternatives:
    """Empty where no criterion was asked, or for another plan."""
    found = read_file(run.alternatives, Alternatives.model_validate_json) if plan else None
    return found if found and found.fingerprint == stages[SELECT]["fingerprint"] else Alternatives()


def _log(path: Path) -> list[JsonObject]:
    """A trainer's: one object per line; none where there is no file."""
    return read_file(path, lambda text: [json.loads(line) for line in text.splitlines() if line.strip()]) or []


def _by_role(run: RunDirectory, kind: str, stages: Entries, model: type[Read]) -> dict[Role, Read]:
    """evaluation/<role>.<kind>.json of every role whose stage is done."""
    paths = {role: run.evaluation / f"{role}.{kind}.json" for role in Role if stage_name(kind, role) in stages}
    files = {role: read_file(path, model.model_validate_json) for role, path in paths.items()}
    return {role: facts for role, facts in files.items() if facts is not None}


def _harness(run: RunDirectory, stages: Entries) -> list[HarnessRow]:
    """One row per task and metric, over all models."""
    rows: dict[tuple[str, str], HarnessRow] = {}
    for role, tasks in _by_role(run, "harness", stages, HarnessFile).items():
        for task, measured in tasks.root.items():
            for metric, score in measured.metrics.items():
                row = HarnessRow(task=task, metric=metric, n=measured.n, output_type=measured.output_type, models={})
                row = rows.setdefault((task, metric), row)
                row.models[role] = score
    return list(rows.values())


def _speed(run: RunDirectory, stages: Entries) -> SpeedTable | None:
    """None where nothing was measured, or models that the run has made anew since."""
    table = read_file(run.path / SPEED_FILE, SpeedTable.model_validate_json)
    return table if table and table.of == model_fingerprints(stages) else None


def _exports(run: RunDirectory, stages: Entries) -> list[ExportFacts]:
    """Those of models that the run still has as they were exported."""
    read = [read_file(path, ExportFacts.model_validate_json) for path in sorted(run.path.glob("exports/*/export.json"))]
    made = {stages[stage].get("id") for stage in MADE_BY.values() if stage in stages}
    return [facts for facts in read if facts and facts.made_from in made]


def model_fingerprints(stages: Entries) -> dict[str, str]:
    """Of the stages that have made the run's models: with others, figures in speed.json are of other models."""
    return {name: stages[name]["fingerprint"] for name in MADE_BY.values() if name in stages}
