"""Which models a run has, and where: for verbs that take a run directory (pollard chat runs/math)."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from toolkit.errors import PollardError, did_you_mean
from toolkit.recipe import Recipe
from toolkit.recipe_file import load_recipe
from toolkit.run_directory import RunDirectory

ROLES = ("original", "pruned", "recovered", "control")


class RunModel(NamedTuple):
    """A model of a run, as `load_model` opens it."""

    role: str
    path: str
    revision: str | None
    dtype: str


class FoundRun(NamedTuple):
    directory: RunDirectory
    recipe: Recipe
    models: dict[str, RunModel]  # by role, those that are there; the original always


def find_run(where: str) -> FoundRun:
    """`where`: a run directory, or the name of one in runs/. Raises PollardError where there is none."""
    tried = [Path(where), Path("runs") / where]
    path = next((path for path in tried if (path / "recipe.yaml").exists()), None)
    if path is None:
        runs = sorted(found.parent.name for found in Path("runs").glob("*/recipe.yaml"))
        there = f" Runs here: {', '.join(runs)}" if runs else " There is no run in ./runs yet: `pollard run RECIPE` makes one."
        raise PollardError(f"No run at {where}{did_you_mean(Path(where).name, runs)}{there}".rstrip(".") + ".")
    directory = RunDirectory(path.name, path.parent)
    recipe = load_recipe(directory.recipe)
    models = {"original": RunModel("original", recipe.model.path, recipe.model.revision, recipe.model.dtype)}
    for role in ROLES[1:]:
        if (directory.path / role / "config.json").exists():
            models[role] = RunModel(role, str(directory.path / role), None, recipe.model.dtype)
    return FoundRun(directory, recipe, models)


def chosen_models(run: FoundRun, roles: Sequence[str] = ()) -> list[RunModel]:
    """Those asked for; unless any are, the original and the best of what was made of it. Raises PollardError for one that is
    not there."""
    if not roles:
        best = next((role for role in ("recovered", "pruned") if role in run.models), None)
        if best is None:
            raise PollardError(f"{run.directory.path} has no pruned model yet: `pollard run {run.directory.recipe}` makes it.")
        roles = ("original", best)
    for role in roles:
        if role not in ROLES:
            raise PollardError(f"`{role}` is no model of a run{did_you_mean(role, ROLES)} There are: {', '.join(run.models)}.")
        if role not in run.models:
            raise PollardError(f"{run.directory.path} has no {role} model. There are: {', '.join(run.models)}.")
    return [run.models[role] for role in dict.fromkeys(roles)]
