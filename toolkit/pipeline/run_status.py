"""How a run stands: what of it is current, what is stale and why. Needs neither torch nor the stages: a list of runs is shown
in an instant."""

import json
from collections.abc import Iterable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from toolkit.pipeline.run_directory import RunDirectory
from toolkit.pipeline.stage_names import EVALUATE, MADE_BY, REPORT, SELECT, stage_name
from toolkit.recipe.roles import Role
from toolkit.runtime.errors import PollardError

BEST_FIRST = (Role.RECOVERED, Role.REFITTED, Role.PRUNED)
"""What a run has made for its task: the most useful model first."""


class StaleParts(NamedTuple):
    """Files and folders of a run that lie there and are not what its recipe asks for, all for the same reason."""

    parts: list[str]
    why: str

    def __str__(self) -> str:
        return f"{', '.join(self.parts)} ({self.why})"


def stale_parts(run: RunDirectory) -> list[StaleParts]:
    """Those of the plan, the models and the scores. The report is no such part: it is written from what is current."""
    outputs = {run.plan.name: SELECT} | {f"{role}/": stage for role, stage in MADE_BY.items()}
    outputs |= {f"evaluation/{role}.json": stage_name(EVALUATE, role) for role in Role}
    entries = run.entries()
    found: dict[str, list[str]] = {}
    for part, stage in outputs.items():
        if stage in entries and (run.path / part).exists() and (why := run.why_stale(stage)):
            found.setdefault(why, []).append(part)
    return [StaleParts(parts, why) for why, parts in found.items()]


def why_model_stale(run: RunDirectory, role: str) -> str:
    """Why a model of a run is not current; empty where it is. The original always is."""
    return run.why_stale(MADE_BY[Role(role)]) if role in MADE_BY else ""


def stale_message(run: RunDirectory, what: str, stage: str) -> str:
    """What is stale, of what, and both ways out, for an error: `what` is a path."""
    made_with = run.made_with_text(stage)
    back = f" `pollard run {run.recipe} {made_with}` goes back to what it is of." if made_with and ", " not in made_with else ""
    return (
        f"{what} is stale ({run.why_stale(stage)}), and {run.recipe} says otherwise by now. `pollard run {run.recipe}` makes it "
        f"anew.{back} "
    )


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
    return "complete" if REPORT in done else f"done as far as {_last(done, planned)}"


def _last(done: Iterable[str], planned: Sequence[str]) -> str:
    """The stage before the first that is missing."""
    known = set(done)
    before_a_gap = list(takewhile(known.__contains__, planned))
    return before_a_gap[-1] if before_a_gap else "nothing"


def best_score(run: RunDirectory) -> tuple[str, float] | None:
    """The role and the score of what the run has made; None where nothing current is evaluated."""
    done = run.done()
    for role in BEST_FIRST:
        if stage_name(EVALUATE, role) in done and (found := _read(run.evaluation / f"{role}.json")):
            return role, found["score"]
    return None


def _read(path: Path) -> dict[str, float] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if isinstance(found.get("score"), float | int) else None
    except (OSError, ValueError, AttributeError):
        return None
