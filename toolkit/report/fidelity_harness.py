"""What a run measured beside its scores: likeness to the original, other tasks, speed.

fidelity   per role: KL and acceptance against the original              evaluation/<role>.fidelity.json
speed      what `pollard benchmark` measured, null without           speed.json
harness    per task and metric of lm-evaluation-harness, every model's   evaluation/<role>.harness.json
"""

import json
from pathlib import Path
from typing import Any

from toolkit.pipeline.run_directory import RunDirectory
from toolkit.recipe.evaluation import ROLES
from toolkit.runtime.errors import PollardError
from toolkit.runtime.formatting import MISSING, loss, percent

SPEED = "speed.json"  # in a run directory


def beside(run: RunDirectory, recipe: dict[str, Any], stages: dict[str, Any]) -> dict[str, Any]:
    """The keys of report.json; a file counts where its stage is finished and the recipe asks for it."""
    asked = recipe.get("evaluation", {})
    return {
        "fidelity": _by_role(run, "fidelity", stages) if asked.get("fidelity") else {},
        "speed": _speed(run, stages),
        "harness": _metrics(_by_role(run, "harness", stages)) if asked.get("harness") else [],
    }


def models_made(stages: dict[str, Any]) -> dict[str, str]:
    """The fingerprints of what has made the run's models: with others, figures in speed.json are of other models."""
    return {name: stages[name]["fingerprint"] for name in ("prune", "recover", "control") if name in stages}


def _speed(run: RunDirectory, stages: dict[str, Any]) -> dict[str, Any] | None:
    path = run.path / SPEED
    found = _read(path) if path.exists() else None
    return found if found and found["of"] == models_made(stages) else None


def _metrics(by_role: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per task and metric: {"task", "metric", "n", "models": {role: {"value", "error"}}}."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for role, tasks in by_role.items():
        for task, about in tasks.items():
            for metric, found in about["metrics"].items():
                row = rows.setdefault((task, metric), {"task": task, "metric": metric, "n": about["n"], "models": {}})
                row["models"][role] = found
    return list(rows.values())


def _by_role(run: RunDirectory, kind: str, stages: dict[str, Any]) -> dict[str, Any]:
    paths = {role: run.evaluation / f"{role}.{kind}.json" for role in ROLES if f"{kind}/{role}" in stages}
    return {role: _read(path) for role, path in paths.items() if path.exists()}


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PollardError(f"{path} is damaged ({error}). Remove it: `pollard run` makes again what it needs.") from None


def told(report: dict[str, Any]) -> list[str]:
    """The same for the terminal, in sentences."""
    said = []
    if report["fidelity"]:
        found = next(iter(report["fidelity"].values()))
        each = [f"{role} KL {kl(found)}, acceptance {acceptance(found)}" for role, found in report["fidelity"].items()]
        said.append(f"Against the original, over {found['tokens']:,} tokens of gold answers: {'; '.join(each)}.")
    for row in report["harness"]:
        models = ", ".join(f"{role} {measured(found)}" for role, found in row["models"].items())
        said.append(f"{row['task']}, {row['metric']}: {models}.")
    return said


def measured(found: dict[str, Any] | None) -> str:
    """ "0.5120 ± 0.0130"."""
    if found is None:
        return MISSING
    return f"{found['value']:.4f}" + (f" ± {found['error']:.4f}" if found["error"] is not None else "")


def kl(found: dict[str, Any]) -> str:
    """Nats per token, with the standard error: "0.1234 ± 0.0056"."""
    error = found["kl_error"]
    return loss(found["kl"]) + (f" ± {loss(error)}" if error is not None else "")


def acceptance(found: dict[str, Any]) -> str:
    """ "91.2 ± 0.4 %"."""
    value, error = found["acceptance"], found["acceptance_error"]
    if value is None or error is None:
        return MISSING if value is None else percent(value)
    return f"{100 * value:.1f} ± {100 * error:.1f} %"
