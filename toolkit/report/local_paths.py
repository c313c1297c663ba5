"""Where something lies on the machine that made a model is nobody's business: a card goes out with names, and not with paths."""

from pathlib import PurePath
from typing import Any

from toolkit.report.facts import RunFacts

GENERIC = ("model", "original", "checkpoint", "pruned", "refitted", "recovered", "control")
"""Names of folders that say nothing without the folder that they are in."""


def name_of_path(path: str) -> str:
    """The last part of a path, or the last two: "/data/mixtral" -> "mixtral", "/data/playground/model" -> "playground/model"."""
    parts = [part for part in PurePath(path).parts if part not in ("/", "~", "..")]
    return "/".join(parts[-2:] if parts and parts[-1] in GENERIC else parts[-1:]) or path


def model_name(report: RunFacts) -> str | None:
    """What the original is called: its hub id, or the name of its folder."""
    return report.origin.base_model or (name_of_path(report.model) if report.model else None)


def without_local_paths(value: Any, report: RunFacts) -> Any:
    """A text, or values with texts, with names instead of the paths that the recipe has, of the original's, and of the run's
    folder. Values before they are written: YAML breaks long lines."""
    if isinstance(value, dict):
        return {key: without_local_paths(item, report) for key, item in value.items()}
    if isinstance(value, list):
        return [without_local_paths(item, report) for item in value]
    if not isinstance(value, str):
        return value
    names = {path: name_of_path(path) for path in report.origin.local_paths}
    if report.model and PurePath(report.model).is_absolute():
        names[report.model] = name_of_path(report.model)
    folder = PurePath(report.recipe_path).parent
    if folder.is_absolute():
        names[str(folder)] = report.name
    for path in sorted(names, key=len, reverse=True):  # what lies in a folder before the folder
        value = value.replace(path, names[path])
    return value
