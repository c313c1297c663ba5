"""How a run stands: what of it is current, what is stale and why, which trained models the next stages would replace."""

import json
from collections.abc import Iterable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from toolkit.pipeline.recipe_changes import described
from toolkit.pipeline.run_directory import RunDirectory
from toolkit.recipe.file import dump_recipe
from toolkit.recipe.schema import Recipe
from toolkit.runtime.errors import PollardError
from toolkit.runtime.progress import duration

STAGE_OF = {"pruned": "prune", "recovered": "recover", "control": "control"}
"""Which stage makes a model of a run."""
EVALUATED = ("original", "pruned", "recovered", "skipping", "control")
TRAINED = {"recover": ("recovered", "adapter"), "control": ("control", "control_adapter")}
"""The folders of a training, which cost what nobody gets back."""
BEST_FIRST = ("recovered", "pruned")


class StaleParts(NamedTuple):
    """Files and folders of a run that lie there and are not what its recipe asks for, all for the same reason."""

    parts: list[str]
    why: str

    def __str__(self) -> str:
        return f"{', '.join(self.parts)} ({self.why})"


def stale_parts(run: RunDirectory) -> list[StaleParts]:
    """Those of the plan, the models and the scores. The report is no such part: it is written from what is current."""
    outputs = {"plan.json": "select"} | {f"{role}/": stage for role, stage in STAGE_OF.items()}
    outputs |= {f"evaluation/{role}.json": f"evaluate/{role}" for role in EVALUATED}
    entries = run.entries()
    found: dict[str, list[str]] = {}
    for part, stage in outputs.items():
        if stage in entries and (run.path / part).exists() and (why := run.why_stale(stage)):
            found.setdefault(why, []).append(part)
    return [StaleParts(parts, why) for why, parts in found.items()]


def why_model_stale(run: RunDirectory, role: str) -> str:
    """Why a model of a run is not current; empty where it is. The original always is."""
    return run.why_stale(STAGE_OF[role]) if role in STAGE_OF else ""


def stale_message(run: RunDirectory, what: str, stage: str) -> str:
    """What is stale, of what, and both ways out, for an error: `what` is a path."""
    made_with = described(stage, run.entries().get(stage, {}).get("made_with", {}))
    back = f" `pollard run {run.recipe} {made_with}` goes back to what it is of." if made_with and ", " not in made_with else ""
    return (
        f"{what} is stale ({run.why_stale(stage)}), and {run.recipe} says otherwise by now. `pollard run {run.recipe}` makes it "
        f"anew.{back} "
    )


def replaced_models(run: RunDirectory, recipe: Recipe, to_do: Iterable[str]) -> list[str]:
    """A line for each trained model that the stages `to_do` of `recipe` will replace: how it was made, how long that took, how
    to keep it."""
    entries, lines = run.entries(), []
    for stage in to_do:
        names = (f"{stage}/recovered",) if stage.startswith("rounds/") else TRAINED.get(stage, ())
        there = [str(run.path / name) for name in names if (run.path / name).is_dir()]
        if not there:
            continue
        entry = entries.get(stage, {})
        settings = described(stage, run.made_with(stage, dump_recipe(recipe))) or "the same settings"
        took = f" in {duration(entry['seconds'])}" if "seconds" in entry else ""
        lines.append(
            f"{' and '.join(there)} will be replaced: trained{took} with {settings}. To keep it, stop now (Ctrl-C) and give this "
            f"run another name: {run.another_name}"
        )
    return lines


def state_of(run: RunDirectory) -> str:
    """In a few words: "complete", "stopped at recover", "running: recover", "done as far as prune", "failed: …", "damaged"."""
    try:
        manifest = run.read_manifest()
    except PollardError:
        return "damaged"
    done = run.done()
    if run.is_locked():
        return f"running: {manifest.get('at_work') or 'starting'}"
    if manifest.get("failed"):
        return f"failed: {', '.join(manifest['failed'])}"
    if manifest.get("at_work"):
        return f"stopped at {manifest['at_work']}"
    planned = manifest.get("planned", [])
    return "complete" if "report" in done else f"done as far as {_last(done, planned)}"


def _last(done: Iterable[str], planned: Sequence[str]) -> str:
    """The stage before the first that is missing."""
    known = set(done)
    before_a_gap = list(takewhile(known.__contains__, planned))
    return before_a_gap[-1] if before_a_gap else "nothing"


def best_score(run: RunDirectory) -> tuple[str, float] | None:
    """The role and the score of what the run has made; None where nothing current is evaluated."""
    done = run.done()
    for role in BEST_FIRST:
        if f"evaluate/{role}" in done and (found := _read(run.evaluation / f"{role}.json")):
            return role, found["score"]
    return None


def _read(path: Path) -> dict[str, float] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if isinstance(found.get("score"), float | int) else None
    except (OSError, ValueError, AttributeError):
        return None
