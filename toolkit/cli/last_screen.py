"""The last screen of a run: what was made, where it is, and what to do next."""

import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from rich.markup import escape

from toolkit.cuts.plan import Plan
from toolkit.moe import checkpoint_bytes
from toolkit.pipeline.context import RunContext
from toolkit.pipeline.run_directory import RunDirectory
from toolkit.pipeline.run_status import BEST_FIRST, stale_parts, why_model_stale
from toolkit.pipeline.stage_list import shown_on_last_screen
from toolkit.pipeline.stage_names import EVALUATE, REPORT, stage_name
from toolkit.recipe.file import load_recipe
from toolkit.recipe.roles import Role
from toolkit.runtime.distributed import is_main, say
from toolkit.runtime.errors import PollardError
from toolkit.runtime.formatting import size
from toolkit.runtime.progress import duration
from toolkit.runtime.typed_command import program_path


def last_screen(run: RunDirectory, seconds: float, again: str) -> None:
    """What there is, what of it is stale, and what to do next, on rank 0. `again`: the command that does the stages that are
    left where a run was asked for its first stages only."""
    if not is_main():
        return
    there = {}
    for slot, shown in shown_on_last_screen():
        path = run.path / (shown.path or slot.stage.output)
        if path.exists() and not run.why_stale(slot.name):
            there[path] = f"{shown.what}, {_bytes(path)}" if path.is_dir() else shown.what
    say()
    say(f"[bold]Done[/] in {duration(seconds)}")
    _columns(there)
    if stale := {run.path / part: found.why for found in stale_parts(run) for part in found.parts}:
        say("[bold yellow]Stale[/] (of other settings: not in the report, not to be compared)")
        _columns(stale)
    say("[bold]Next[/]")
    _columns(_commands(run, again))


def _commands(run: RunDirectory, again: str) -> dict[str, str]:
    """What can be done with what is current."""
    current, program, found = run.done(), program_path("pollard"), {}
    best = next((role for role in BEST_FIRST if (run.path / role).exists() and not why_model_stale(run, role)), None)
    where = shlex.quote(str(run.path))
    if REPORT not in current:
        found[again] = "the stages that are left"
    if best:
        found[f"{program} chat {where}"] = "ask the original and the smaller model side by side"
    judged = next((role for role in BEST_FIRST if stage_name(EVALUATE, role) in current), None)
    if judged and stage_name(EVALUATE, Role.ORIGINAL) in current:
        found[f"{program} compare {where}/{judged} {where}/original"] = "question by question"
    if REPORT in current and (axis := _axis_to_try(run)):
        found[f"{program} sweep {where}/{run.recipe.name} pruning.{axis.key}={','.join(map(str, axis.values))}"] = axis.question
    return found


class Axis(NamedTuple):
    """What a sweep could try next."""

    key: str
    values: Sequence[int | float]
    question: str


def _axis_to_try(run: RunDirectory) -> Axis | None:
    """Three quarters, half and a quarter: of the experts, or of what is cut where all of them stay. Only what the model can do;
    None where a sweep cannot be, or a fit has compared more."""
    recipe = load_recipe(run.recipe)
    pruning, context = recipe.pruning, RunContext(recipe)
    if pruning.schedule or pruning.fit or pruning.grow:
        return None
    experts = next(iter(Plan.load(run.plan).blocks.values())).experts
    if pruning.keep is not None:
        axis = Axis(
            "keep",
            [keep for keep in dict.fromkeys(experts * share // 8 for share in (6, 4, 2)) if keep],
            "how few experts would do?",
        )
    elif pruning.width is not None:
        axis = Axis("width", (0.75, 0.5, 0.25), "how narrow may they be?")
    else:
        axis = Axis("layers", (0.75, 0.5, 0.25), "how few layers would do?")
    possible = []
    for value in axis.values:
        with suppress(PollardError):
            context.budget_of(pruning.model_copy(update={axis.key: value}))
            possible.append(value)
    return axis._replace(values=possible) if possible else None


def _columns(rows: Mapping[Any, str]) -> None:
    width = max(len(str(left)) for left in rows) if rows else 0
    for left, right in rows.items():
        say(f"  {escape(str(left).ljust(width))}  [dim]{escape(right)}[/]")


def _bytes(folder: Path) -> str:
    return size(checkpoint_bytes(folder)) if folder.is_dir() else ""
