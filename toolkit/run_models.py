"""Which models a run has, and where: for the verbs that take a run (pollard chat runs/math), or a checkpoint."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from toolkit.errors import PollardError, did_you_mean
from toolkit.recipe import Recipe
from toolkit.recipe_evaluation import ROLES
from toolkit.recipe_file import load_recipe
from toolkit.run_directory import RunDirectory


class NamedModel(NamedTuple):
    """As `load_model` opens it; `name` is a role of a run, or the path itself."""

    name: str
    path: str
    revision: str | None = None
    dtype: str = "auto"


class FoundRun(NamedTuple):
    directory: RunDirectory
    recipe: Recipe
    models: dict[str, NamedModel]  # by role, those that are there; the original always


def _place_of(where: str) -> Path | None:
    return next((path for path in (Path(where), Path("runs") / where) if (path / "recipe.yaml").exists()), None)


def is_run(where: str) -> bool:
    """Whether it is a run directory, or the name of one in runs/."""
    return _place_of(where) is not None


def find_run(where: str) -> FoundRun:
    """`where`: a run directory, or the name of one in runs/. Raises PollardError where there is none."""
    path = _place_of(where)
    if path is None:
        runs = sorted(found.parent.name for found in Path("runs").glob("*/recipe.yaml"))
        there = f" Runs here: {', '.join(runs)}" if runs else " There is no run in ./runs yet: `pollard run RECIPE` makes one."
        raise PollardError(f"No run at {where}{did_you_mean(Path(where).name, runs)}{there}".rstrip(".") + ".")
    directory = RunDirectory(path.name, path.parent)
    recipe = load_recipe(directory.recipe)
    models = {"original": NamedModel("original", recipe.model.path, recipe.model.revision, recipe.model.dtype)}
    for role in ROLES[1:]:
        if (directory.path / role / "config.json").exists():
            models[role] = NamedModel(role, str(directory.path / role), None, recipe.model.dtype)
    return FoundRun(directory, recipe, models)


def models_at(where: str) -> list[NamedModel]:
    """The models of a run, the original first; or the checkpoint (a folder, or a hub id) itself."""
    return list(find_run(where).models.values()) if is_run(where) else [NamedModel(where, where)]


def chosen_models(run: FoundRun, roles: Sequence[str] = ()) -> list[NamedModel]:
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


def original_and(where: str, by: str | None) -> tuple[NamedModel, NamedModel]:
    """Of a run or a checkpoint: the original, and the model `by` (a role or a path; unless given, what the run has made last
    for its task). Raises PollardError for a role that it does not have."""
    there = {model.name: model for model in models_at(where)}
    original = next(iter(there.values()))
    if by is None:
        return original, there.get("recovered") or there.get("pruned") or original
    if by in there:
        return original, there[by]
    if by in ROLES:
        raise PollardError(f"{where} has no {by} model. There are: {', '.join(there)}.")
    return original, NamedModel(by, by)
