"""`pollard compare A B`: any two models of any two runs, where both answered the same questions."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.markup import escape
from rich.table import Table

from toolkit.pipeline.run_directory import RunDirectory
from toolkit.pipeline.run_status import stale_message
from toolkit.report.narrative import verdict
from toolkit.report.pairs import Right, compared, read_items, right_of
from toolkit.runtime.distributed import console, say
from toolkit.runtime.errors import PollardError
from toolkit.runtime.formatting import interval, percent

PREFERRED = ("recovered", "pruned", "control", "original")  # where only the run is named: what it is about


class Answered(NamedTuple):
    """A model of a run, as it was evaluated."""

    name: str
    measures: dict[str, Any]
    right: Right


def find_answered(where: str, stale: bool = False) -> Answered:
    """`where`: a run directory (its recovered model, or what comes nearest), or one of its models: runs/math/pruned. Raises
    PollardError for one that is not evaluated, and, unless `stale`, for one that is not what the run's recipe asks for by now."""
    path = Path(where)
    run, role = RunDirectory(path.name, path.parent), ""
    if not run.manifest.exists():
        run, role = RunDirectory(path.parent.name, path.parent.parent), path.name
    if not run.manifest.exists():
        raise PollardError(f"{where} is no run directory (it has no manifest.json), nor a model of one: say runs/NAME/recovered.")
    entries = run.entries()
    evaluated = [stage.partition("/")[2] for stage in entries if stage.startswith("evaluate/")]
    if not evaluated:
        raise PollardError(f"No model of {run.path} is evaluated yet: `pollard evaluate {run.recipe}` does it.")
    if role and role not in evaluated:
        raise PollardError(f"{run.path} has no finished evaluation of `{role}`. There is: {', '.join(evaluated)}.")
    role = role or next((role for role in PREFERRED if role in evaluated), evaluated[-1])
    why = run.why_stale(f"evaluate/{role}")
    if why and not stale:
        raise PollardError(stale_message(run, str(run.path / role), f"evaluate/{role}") + "--stale compares it all the same.")
    items, summary = read_items(run.evaluation / f"{role}.predictions.jsonl"), run.evaluation / f"{role}.json"
    if not items or not summary.exists():
        raise PollardError(f"The answers of {run.path / role} are gone ({run.evaluation}). Evaluate it again (--fresh).")
    return Answered(
        f"{run.path / role}{f' ({why})' if why else ''}", json.loads(summary.read_text(encoding="utf-8")), right_of(items)
    )


def compare(first: str, second: str, stale: bool = False) -> dict[str, Any]:
    """The facts of the comparison, first minus second. Raises PollardError where the questions are not the same, and for a
    stale model unless `stale`."""
    one, other = find_answered(first, stale), find_answered(second, stale)
    if one.right.keys() != other.right.keys():
        both = len(one.right.keys() & other.right.keys())
        raise PollardError(
            f"The two did not answer the same questions: {one.name} answered {len(one.right):,}, {other.name} "
            f"{len(other.right):,}, and {both:,} are the same (question and gold). Evaluate both with the same task, "
            "evaluation.split and evaluation.examples."
        )
    sides = {
        side: {"name": found.name} | {key: found.measures[key] for key in ("score", "correct", "n", "interval")}
        for side, found in (("first", one), ("second", other))
    }
    facts = {"format": 1, "task": one.measures.get("task"), "split": one.measures.get("split"), **sides}
    facts |= compared(one.right, other.right)
    return facts | {"verdict": verdict(facts, sides["first"]["name"], sides["second"]["name"])}


def show_comparison(facts: dict[str, Any]) -> None:
    """Both scores, who is right where, and what follows from it."""
    table = Table(box=box.SIMPLE, show_edge=False, pad_edge=False, collapse_padding=True)
    for column in ("model", "score", "95 % interval", "n"):
        table.add_column(column, justify="left" if column == "model" else "right", overflow="fold")
    for side in ("first", "second"):
        found = facts[side]
        table.add_row(escape(found["name"]), percent(found["score"]), interval(found), f"{found['n']:,}")
    console.print(table)
    say()
    for key, what in (
        ("both", "both right"), ("only_first", "only the first"), ("only_second", "only the second"), ("neither", "neither"),
    ):  # fmt: skip
        say(f"{what:<16}{facts[key]:>7,}")
    say()
    say(escape(facts["verdict"]))
