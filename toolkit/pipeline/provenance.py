"""Where model and data come from, as the hub names them: what a model card must say of others' work."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from pydantic import JsonValue

from toolkit.recipe.data import TaskRecipe
from toolkit.recipe.file import read_values
from toolkit.recipe.schema import Recipe
from toolkit.report.card import TAGS
from toolkit.report.facts import Provenance
from toolkit.runtime.files import JsonObject
from toolkit.runtime.run_paths import RunPaths
from toolkit.tasks import PRESETS

CARRIED_OVER = (
    "license",
    "license_name",
    "license_link",
    "language",
    "base_model",
)  # from the original's card: pruning changes none of them
HUB_ID = r"[\w.-]+/[\w.-]+"
DATA_FILE = re.compile(r"^[^{}\s]*\.(jsonl?|csv|tsv|parquet|txt|md|yaml|py)(\.gz|\.zst)?$")


def provenance_of_run(run: RunPaths, recipe: Recipe | None) -> Provenance:
    """Hub ids of model and data sets from the recipe; licence, languages and base model from the copy of the original's card that
    pruning leaves, or from the original's folder; the architecture from the pruned model's configuration."""
    path = recipe.model.path if recipe else ""
    tasks = [recipe.task, *(source.task for source in recipe.finetuning.data or [])] if recipe else []
    datasets = [_dataset(task) for task in tasks if task]
    card = next((found for folder in (run.pruned, Path(path)) if (found := _metadata(folder / "README.md"))), {})
    return Provenance(
        base_model=_base_model(path),
        datasets=list(dict.fromkeys(name for name in datasets if name)),
        family=_family(run.pruned / "config.json"),
        card=json.loads(json.dumps({key: card[key] for key in CARRIED_OVER if card.get(key)}, default=str)),  # YAML knows dates
        local_paths=sorted(set(_local_paths(recipe.model_dump(exclude_none=True)))) if recipe else [],
    )


def _base_model(path: str) -> str | None:
    """The hub id that the original has: as the recipe names it, or as a folder of the hub's client or of Pollard tells."""
    if _is_hub_id(path):
        return path
    if cached := re.search(r"models--([\w.-]+?)--([\w.-]+)/snapshots/", path):
        return f"{cached[1]}/{cached[2]}"
    card = _metadata(Path(path) / "README.md")
    named = card.get("base_model") if TAGS[0] in (card.get("tags") or ()) else None
    return named if isinstance(named, str) and re.fullmatch(HUB_ID, named) else None


def _local_paths(values: JsonValue) -> Iterator[str]:
    """The texts among a recipe's values that name a file or folder of this machine, and more than its name."""
    if isinstance(values, dict):
        values = list(values.values())
    if isinstance(values, list):
        for value in values:
            yield from _local_paths(value)
    elif isinstance(values, str) and "/" in values and "\n" not in values and values not in PRESETS and _is_path(values):
        yield values


def _is_path(text: str) -> bool:
    try:
        rooted = text.startswith(("/", "./", "../", "~/")) and text.count("/") > 1 and not set("{}") & set(text)  # no "/no_think"
        return rooted or Path(text).exists() or bool(DATA_FILE.search(text))
    except OSError:  # longer than a name can be
        return False


def _is_hub_id(path: str) -> bool:
    return bool(re.fullmatch(HUB_ID, path)) and not Path(path).exists()


def _dataset(task: TaskRecipe) -> str | None:
    if task.train and not task.dataset:
        return None  # a local file
    preset = PRESETS.get(task.name)
    name = task.dataset or (preset.dataset if preset else None)
    return name if name and _is_hub_id(name) else None


def _metadata(path: Path) -> JsonObject:
    """The YAML at the head of a card; empty where there is none that can be read: other people's files are no error of ours."""
    try:
        head = re.match(r"---\s*\n(.*?)\n---", path.read_text(encoding="utf-8"), re.DOTALL)
        found = read_values(head[1]) if head else {}
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _family(path: Path) -> str | None:
    try:
        return json.loads(path.read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError):
        return None
