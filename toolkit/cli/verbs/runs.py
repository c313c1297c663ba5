"""`pollard runs`: lists runs with their state and size; with --clean, shows and removes what can be made again."""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from toolkit.cli.verbs.verb import Verb
from toolkit.runtime.distributed import console, say
from toolkit.runtime.errors import PollardError, did_you_mean

if TYPE_CHECKING:
    from toolkit.pipeline.run_directory import RunDirectory

RUNS_FOLDER = "runs"
PROTECTED_STATES = ("running", "damaged")  # states in which nothing is removed
PIPE_WIDTH = 200  # columns: in a file or a pipe, each run is one line


def add_runs_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs", nargs="*", default=[RUNS_FOLDER], metavar="RUN",
        help="run directories, their names in runs/, or folders with runs in them (default: runs)",
    )  # fmt: skip
    parser.add_argument(
        "--clean",
        action="store_true",
        help="show what of them can be made again, and with --yes remove it; never a trained model",
    )
    parser.add_argument("--yes", action="store_true", help="remove what --clean shows")
    parser.add_argument(
        "--parts", type=lambda text: text.split(","), metavar="PART,…",
        help="of --clean: only these, e.g. teacher,checkpoints; recovered, control and adapter only where they are named here",
    )  # fmt: skip


def run_runs(arguments: argparse.Namespace) -> Any:
    if (arguments.yes or arguments.parts) and not arguments.clean:
        raise PollardError("--yes and --parts belong to --clean: `pollard runs --clean`.", code="cli.options-of-clean")
    found, others = _directories(arguments.runs)
    if arguments.clean:
        return _clean(found, arguments.parts, arguments.yes)
    runs = [_row_of(directory) for directory in found]
    if arguments.json:
        return runs
    _show(runs)
    if others:
        say(f"[dim]no runs, left as they are: {', '.join(map(str, others))}[/]")
    return runs


def _directories(names: Sequence[str]) -> tuple[list["RunDirectory"], list[Path]]:
    """The named runs, and what else lies in the folders. Raises PollardError for a run that is not there."""
    from toolkit.pipeline.run_directory import RunDirectory

    found: dict[Path, RunDirectory] = {}
    others = []
    for where in names:
        paths = [path for path in (Path(where), Path(RUNS_FOLDER) / where) if path.is_dir()]
        run_here = next((path for path in paths if (path / "manifest.json").exists()), None)
        if run_here:
            found[run_here] = RunDirectory(run_here.name, run_here.parent)
        elif paths:
            for path in sorted(paths[0].iterdir()):
                if (path / "manifest.json").exists():
                    found[path] = RunDirectory(path.name, path.parent)
                else:
                    others.append(path)
        elif where != RUNS_FOLDER:
            existing = sorted(path.parent.name for path in Path(RUNS_FOLDER).glob("*/manifest.json"))
            raise PollardError(f"No run at {where}{did_you_mean(Path(where).name, existing)}", code="cli.no-such-run")
    return list(found.values()), others


class RunRow(NamedTuple):
    """One run of the list. `stale` has a line for each reason; dashes stand for what cannot be read."""

    run: str
    path: Path
    model: str
    task: str
    keep: str
    role: str | None  # the model that the score is of
    score: float | None
    bytes: int
    age_seconds: float
    state: str
    stale: list[str]


def _row_of(directory: "RunDirectory") -> RunRow:
    from toolkit.pipeline.run_status import best_score, stale_parts, state_of
    from toolkit.runtime.run_files import bytes_of, files_below

    model, task, keep = _facts(directory)
    state, score, stale = state_of(directory), None, []
    if state != "damaged":
        score, stale = best_score(directory), list(map(str, stale_parts(directory)))
    role, right = score or (None, None)
    size, age = bytes_of(files_below(directory.path)), max(0.0, time.time() - directory.manifest.stat().st_mtime)
    return RunRow(directory.path.name, directory.path, model, task, keep, role, right, size, age, state, stale)


def _show(runs: Sequence[RunRow]) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from toolkit.runtime.formatting import percent, size

    if not runs:
        say("No runs here yet: `pollard run RECIPE` makes one in runs/.")
        return
    table = Table(box=box.SIMPLE, show_edge=False, pad_edge=False, collapse_padding=True)
    for column in ("run", "model", "task", "keep", "score", "size", "age", "state"):
        table.add_column(column, justify="right" if column in ("keep", "score", "size", "age") else "left", overflow="fold")
    for row in runs:
        score = "–" if row.score is None else f"{percent(row.score)} {row.role}"
        state = f"{row.state}{', parts stale' if row.stale else ''}"
        facts = map(escape, (row.run, row.model, row.task, row.keep))
        table.add_row(*facts, score, size(row.bytes), _age(row.age_seconds), state)
    (console if console.is_terminal else Console(width=PIPE_WIDTH, highlight=False)).print(table)
    for row in runs:
        for parts in row.stale:
            console.print(f"{row.run}: stale: {parts}", markup=False)


def _facts(directory: "RunDirectory") -> tuple[str, str, str]:
    """Model, task and how much stays; dashes where they cannot be read."""
    from toolkit.recipe.file import read_values

    try:
        values = read_values(directory.recipe.read_text(encoding="utf-8"))
        manifest = json.loads(directory.manifest.read_text(encoding="utf-8"))
        return str(manifest.get("model", "–")), str(manifest.get("task", "–")), _kept(values["pruning"])
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return "–", "–", "–"


def _kept(pruning: Mapping[str, object]) -> str:
    """Of a recipe's section: "4", "all, width 0.5"."""
    others = [f"{key} {pruning[key]}" for key in ("width", "layers") if pruning.get(key) is not None]
    keep = pruning["keep"]
    return ", ".join(["all" if keep is None else str(keep), *others])


def _age(seconds: float) -> str:
    """Time since the run wrote its manifest: "3 h", "12 d"."""
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _clean(found: Sequence["RunDirectory"], parts: list[str] | None, yes: bool) -> Any:
    """Returns what can be removed, or was."""
    from toolkit.pipeline.cleaning import AGAIN, COSTLY, removable, remove
    from toolkit.pipeline.run_status import state_of
    from toolkit.runtime.formatting import size

    states = {directory.path: state_of(directory) for directory in found}
    for path, state in states.items():
        if state.startswith(PROTECTED_STATES):
            console.print(f"{path}: {state}, left as it is", markup=False)
    found = [directory for directory in found if not states[directory.path].startswith(PROTECTED_STATES)]
    items = [item for directory in found for item in removable(directory, parts)]
    if not items:
        say("Nothing to remove: what is there cannot be made again, or is not Pollard's.")
        return {"parts": [], "bytes": 0, "removed": False}
    width = max(len(str(item.run.path / item.part)) for item in items)
    for item in items:
        remade_by = (AGAIN | COSTLY)[item.part]
        console.print(f"{str(item.run.path / item.part).ljust(width)}  {size(item.bytes):>10}  {remade_by}", markup=False)
    facts = [{"path": item.run.path / item.part, "bytes": item.bytes, "again": (AGAIN | COSTLY)[item.part]} for item in items]
    number = sum(item.bytes for item in items)
    total = size(number)
    if not yes:
        say(f"{total} in all. Nothing is removed yet: --yes removes it.")
        return {"parts": facts, "bytes": number, "removed": False}
    left = []
    for directory in found:
        directory.lock()
        try:
            left += [path for item in removable(directory, parts) for path in remove(item)]
        finally:
            directory.unlock()
    say(f"{total} removed.")
    if left:
        console.print(f"not Pollard's, left: {', '.join(map(str, left))}", markup=False)
    return {"parts": facts, "bytes": number, "removed": True, "left": left}


RUNS = Verb(
    "runs",
    "list runs: how they stand, score, size; --clean shows what can be made again, --yes removes it",
    "pollard runs --clean",
    run_runs,
    add_runs_arguments,
)
