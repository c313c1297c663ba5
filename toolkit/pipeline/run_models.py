"""Which models a run has, and where: for the verbs that take a run (pollard chat runs/math), or a checkpoint."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich.markup import escape

from toolkit.pipeline.run_directory import RunDirectory
from toolkit.pipeline.run_status import BEST_FIRST, stale_message, why_model_stale
from toolkit.pipeline.stage_names import MADE_BY
from toolkit.recipe.evaluation import ROLES
from toolkit.recipe.file import load_recipe
from toolkit.recipe.roles import Role
from toolkit.recipe.schema import Recipe
from toolkit.runtime.distributed import say
from toolkit.runtime.errors import PollardError, did_you_mean


class NamedModel(NamedTuple):
    """As `load_model` opens it; `name` is a role of a run, or the path itself."""

    name: str
    path: str
    revision: str | None = None
    dtype: str = "auto"


class FoundRun(NamedTuple):
    directory: RunDirectory
    recipe: Recipe
    models: dict[str, NamedModel]  # by role, those that are there and current; the original always
    stale: dict[str, NamedModel]  # those that are there and not what the recipe asks for


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
        raise PollardError(
            f"No run at {where}{did_you_mean(Path(where).name, runs)}{there}".rstrip(".") + ".", code="run.not-found"
        )
    directory = RunDirectory(path.name, path.parent)
    recipe = load_recipe(directory.recipe)
    models = {"original": NamedModel("original", recipe.model.path, recipe.model.revision, recipe.model.dtype)}
    stale: dict[str, NamedModel] = {}
    for role in ROLES[1:]:
        if (directory.path / role / "config.json").exists():
            listed = stale if why_model_stale(directory, role) else models
            listed[role] = NamedModel(role, str(directory.path / role), None, recipe.model.dtype)
    return FoundRun(directory, recipe, models, stale)


def models_at(where: str) -> list[NamedModel]:
    """The models of a run, the original first, without those that are stale (which is said); or the checkpoint (a folder, or a
    hub id) itself."""
    if is_run(where):
        run = find_run(where)
        for role in run.stale:
            _say_stale(run.directory, role, "left out")
        return list(run.models.values())
    path = Path(where)
    if path.name in MADE_BY and (path.parent / "manifest.json").exists():
        _say_stale(RunDirectory(path.parent.name, path.parent.parent), path.name, "used as it is")
    return [NamedModel(where, where)]


def chosen_models(run: FoundRun, roles: Sequence[str] = ()) -> list[NamedModel]:
    """Those asked for, of which stale ones are said to be so; unless any are, the original and the best current one of what was
    made of it. Raises PollardError for one that is not there."""
    there = run.models | run.stale
    if not roles:
        best = next((role for role in BEST_FIRST if role in run.models), None)
        for role in run.stale:
            _say_stale(run.directory, role, "left out")
        if best is None and run.stale:
            role = next(iter(run.stale))
            raise PollardError(
                stale_message(run.directory, run.stale[role].path, MADE_BY[Role(role)]) + f"--models {role} asks it.",
                code="run.stale-model",
            )
        if best is None:
            raise PollardError(
                f"{run.directory.path} has no pruned model yet: `pollard run {run.directory.recipe}` makes it.",
                code="run.no-model",
            )
        roles = ("original", best)
    for role in dict.fromkeys(roles):
        if role not in ROLES:
            raise PollardError(
                f"`{role}` is no model of a run{did_you_mean(role, ROLES)} There are: {', '.join(there)}.",
                code="run.unknown-role",
            )
        if role not in there:
            raise PollardError(f"{run.directory.path} has no {role} model. There are: {', '.join(there)}.", code="run.no-model")
        if role in run.stale:
            _say_stale(run.directory, role, "used as it is")
    return [there[role] for role in dict.fromkeys(roles)]


def original_and(where: str, by: str | None) -> tuple[NamedModel, NamedModel]:
    """Of a run or a checkpoint: the original, and the model `by` (a role or a path; unless given, the last current one that the
    run has made for its task). Raises PollardError for a role that it does not have."""
    if not is_run(where):
        original = models_at(where)[0]
        if by in ROLES:
            raise PollardError(f"{where} is no run, so it has no {by} model: name the folder of one.", code="run.not-a-run")
        return original, NamedModel(by, by) if by else original
    run = find_run(where)
    original = run.models["original"]
    if by in ROLES:
        return original, chosen_models(run, (by,))[0]
    if by:
        return original, NamedModel(by, by)
    for role in run.stale:
        _say_stale(run.directory, role, "left out")
    return original, next((run.models[role] for role in BEST_FIRST if role in run.models), original)


def _say_stale(run: RunDirectory, role: str, then: str) -> None:
    if why := why_model_stale(run, role):
        say(f"[yellow]stale:[/] {escape(f'{run.path / role} ({why})')}: {then}")
