"""From a run directory to one dictionary of facts, report.json: the only source of the page and of the table.

A file counts when the manifest says that its stage is finished and the recipe asks for it; what is stale is named and not shown;
what is missing is None, and nothing is guessed.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from toolkit.cuts.plan import Plan
from toolkit.cuts.statistics import ExpertStatistics
from toolkit.pipeline.run_directory import RunDirectory
from toolkit.pipeline.run_status import stale_parts
from toolkit.recipe.file import read_values
from toolkit.report.blocks import blocks_of, criteria_of
from toolkit.report.cautions import warnings
from toolkit.report.changed import changed
from toolkit.report.fidelity_harness import beside
from toolkit.report.narrative import comparisons, headline, summary
from toolkit.report.pairs import pairs
from toolkit.report.provenance import provenance_of_run
from toolkit.runtime.errors import PollardError

T = TypeVar("T")
ROLES = ("original", "pruned", "recovered", "skipping", "control")
MEASURES = (
    "score", "correct", "n", "interval", "flexible_score", "flexible_correct", "split", "truncated", "empty",
    "unfinished_reasoning", "given_up", "credit", "likelihood_score", "likelihood_correct",
    "generated_tokens", "seconds", "tokens_per_second", "peak_memory_bytes", "parameters", "active_parameters",
    "checkpoint_bytes", "max_new_tokens", "batch_size", "ranks", "device", "dtype", "skip_rate",
    "context_length", "prompts_beyond_context", "prompts_without_room",
    "experts_skipped", "backend", "temperature", "samples", "mean_score",
)  # fmt: skip
# Not the speed: a ratio of two passes measured once each would be mostly noise
RATIOS = ("parameters", "active_parameters", "checkpoint_bytes")


def collect(run_path: Path) -> dict[str, Any]:
    """The facts of a run as plain JSON values. Raises PollardError for a file that is there but damaged."""
    run = RunDirectory(run_path.name, run_path.parent)
    manifest = run.read_manifest()
    stages = {name: entry for name, entry in run.done().items() if name != "report"}
    recipe = _read(run.recipe, read_values) or {}
    plan = Plan.load(run.plan) if "select" in stages and run.plan.exists() else None
    schedule = recipe.get("pruning", {}).get("schedule")
    whole_plan = Plan.load(run.rounds / "plan.json") if plan and schedule else plan  # of all rounds together
    statistics = _statistics(run) if "calibrate" in stages else None
    models, left_out = _models(run, recipe, stages, manifest.get("failed", {}))
    latest = list(stages.values())[-1] if stages else {}
    facts: dict[str, Any] = {
        "format": 1,
        "name": recipe.get("name", run_path.name),
        "model": manifest.get("model"),
        "task": manifest.get("task"),
        "origin": provenance_of_run(run, recipe),
        "seed": recipe.get("seed"),
        "pruning": _pruning(whole_plan, schedule),
        "calibration": _calibration(stages, statistics),
        "models": models,
        "ratios": _ratios(models),
        "pairs": pairs(run, models),
        "changed": changed(run, models),
        "blocks": blocks_of(statistics, plan),
        "criteria": _criteria(run, stages, plan),
        "training": _training(run.training_log, stages["recover"]) if "recover" in stages else None,
        "control_training": _training(run.control_log, stages["control"]) if "control" in stages else None,
        "sweep": _read(run.sweep / "table.json", json.loads) if "sweep" in stages else None,
        **beside(run, recipe, stages),
        "stale": [parts._asdict() for parts in stale_parts(run)],
        "stages": stages,
        "versions": latest.get("versions"),
        "git_commit": latest.get("git_commit"),
        "recipe": recipe or None,
        "recipe_path": str(run.recipe),
    }
    return facts | {
        "headline": headline(facts),
        "summary": summary(facts),
        "comparisons": comparisons(facts),
        "warnings": [*warnings(facts), *left_out],
    }


def _read(path: Path, parse: Callable[[str], T]) -> T | None:
    """The parsed content of a file; None where there is none."""
    if not path.exists():
        return None
    try:
        return parse(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PollardError(f"{path} is damaged ({error}). Remove it: `pollard run` makes again what it needs.") from None


def _read_lines(path: Path) -> list[dict[str, Any]] | None:
    return _read(path, lambda text: [json.loads(line) for line in text.splitlines() if line.strip()])


def _statistics(run: RunDirectory) -> ExpertStatistics | None:
    return ExpertStatistics.load(run.statistics) if (run.statistics / "statistics.json").exists() else None


def _pruning(plan: Plan | None, schedule: list[int] | None) -> dict[str, Any] | None:
    if plan is None:
        return None
    experts = next(iter(plan.blocks.values())).experts
    chosen = {key: getattr(plan, key) for key in ("criterion", "mode", "tokens", "seed", "keep", "experts_per_token")}
    return chosen | {"experts": experts, "blocks": len(plan.blocks), "schedule": schedule}


def _calibration(stages: dict[str, Any], statistics: ExpertStatistics | None) -> dict[str, Any] | None:
    if "calibrate" not in stages:
        return None
    blocks = statistics.about.blocks.values() if statistics else ()
    tokens = next((block.tokens for block in blocks), None)  # every block sees the same tokens
    return {key: stages["calibrate"].get(key) for key in ("examples", "left_out", "beyond_context")} | {"tokens": tokens}


def _models(
    run: RunDirectory, recipe: dict[str, Any], stages: dict[str, Any], failed: dict[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Per role its measures (None: not evaluated), and why any file was left out."""
    extras = {"skipping": recipe.get("pruning", {}).get("skipping"), "control": recipe.get("control")}
    asked = [*recipe.get("evaluation", {}).get("models", ROLES[:3]), *(role for role, on in extras.items() if on)]
    models, left_out = {}, []
    for role in ROLES:
        path = run.evaluation / f"{role}.json"
        found = _read(path, json.loads)
        if (failure := failed.get(f"evaluate/{role}")) and f"evaluate/{role}" not in stages:
            left_out.append(f"{path.name} is left out, its evaluation failed. {failure['message']}")
        elif found and run.why_stale(f"evaluate/{role}") and f"evaluate/{role}" in run.entries():
            continue  # named as stale
        elif found and f"evaluate/{role}" not in stages:
            left_out.append(f"{path.name} is left out: its evaluation was started again and has not finished.")
        elif found and role not in asked:
            left_out.append(f"{path.name} is left out: the recipe does not ask for it, so it may belong to an earlier recipe.")
        else:
            models[role] = found and {key: found.get(key) for key in MEASURES}
    # Without an extra nothing is missing
    return {role: models.get(role) for role in ROLES if role not in extras or role in asked}, left_out


def _ratios(models: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Sizes of the pruned and the recovered model as fractions of the original's."""
    original = models["original"] or {}
    return {
        role: {key: found[key] / original[key] for key in RATIOS if found[key] and original.get(key)}
        for role, found in models.items()
        if found and role != "original"
    }


def _criteria(run: RunDirectory, stages: dict[str, Any], plan: Plan | None) -> dict[str, Any] | None:
    """What each criterion would have kept; None where it was not asked, or for another plan."""
    found = _read(run.alternatives, json.loads) if plan else None
    if not (plan and found) or found.get("fingerprint") != stages["select"]["fingerprint"]:
        return None
    return criteria_of(found["criteria"], plan)


def _training(path: Path, entry: dict[str, Any]) -> dict[str, Any]:
    """What a training said when it finished, and its losses as [step, loss]; a loss that is not finite is None."""
    log = _read_lines(path) or []

    def curve(key: str) -> list[list[float | None]]:
        return [[line["step"], line[key] if math.isfinite(line[key]) else None] for line in log if key in line]

    facts = {key: entry.get(key) for key in ("steps", "examples", "left_out", "repeating", "beyond_context", "selected_step")}
    return facts | {"loss": curve("loss"), "dev_loss": curve("eval_loss")}
