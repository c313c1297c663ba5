"""A run directory or a checkpoint: what `pollard generate` and `pollard benchmark` take."""

from pathlib import Path
from typing import NamedTuple

import yaml

from toolkit.errors import PollardError
from toolkit.run_directory import RunDirectory

ROLES = ("original", "pruned", "recovered", "control")


class Checkpoint(NamedTuple):
    """`name` is a role of a run, or the path itself."""

    name: str
    path: str
    revision: str | None = None


def is_run(path: str) -> bool:
    return (Path(path) / "manifest.json").is_file() and (Path(path) / "recipe.yaml").is_file()


def checkpoints_of(path: str) -> list[Checkpoint]:
    """The models that a run has, the original first; or the checkpoint (a folder, or a hub id) itself."""
    if not is_run(path):
        return [Checkpoint(path, path)]
    run = RunDirectory(Path(path).name, Path(path).parent)
    try:
        model = yaml.safe_load(run.recipe.read_text(encoding="utf-8"))["model"]
        found = [Checkpoint("original", model["path"], model.get("revision"))]
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise PollardError(f"{run.recipe} is damaged ({error}): run the recipe again, which writes it.") from None
    there = {role: run.path / role for role in ROLES[1:]}
    return found + [Checkpoint(role, str(folder)) for role, folder in there.items() if (folder / "config.json").is_file()]


def chosen(path: str, by: str | None) -> tuple[Checkpoint, Checkpoint]:
    """Of a run or checkpoint: the original, and the model `by` (a role or a path; unless given, what the run has made last
    of its task). Raises PollardError for a role that it does not have."""
    there = {checkpoint.name: checkpoint for checkpoint in checkpoints_of(path)}
    original = next(iter(there.values()))
    if by is None:
        return original, there.get("recovered") or there.get("pruned") or original
    if by in there:
        return original, there[by]
    if by in ROLES:
        raise PollardError(f"{path} has no {by} model. It has: {', '.join(there)}.")
    return original, Checkpoint(by, by)
