"""Where model and data come from, as the hub names them: what a model card must say of others' work."""

import json
import re
from pathlib import Path
from typing import Any

from toolkit.pipeline.run_directory import RunDirectory
from toolkit.recipe.file import read_values
from toolkit.tasks import PRESETS

CARRIED_OVER = ("license", "license_name", "license_link", "language")  # from the original's card: pruning changes none of them


def provenance_of_run(run: RunDirectory, recipe: dict[str, Any]) -> dict[str, Any]:
    """`base_model` and `datasets` are hub ids (local ones are nobody else's to look up); `card` is what the original's card
    says, from the copy that pruning leaves; `family` is the architecture."""
    path = str(recipe.get("model", {}).get("path", ""))
    sources = [recipe.get("task"), *(source.get("task") for source in recipe.get("finetuning", {}).get("data") or [])]
    datasets = [_dataset(task) for task in sources if task]
    card = next((found for at in (run.pruned, Path(path)) if (found := _metadata(at / "README.md"))), {})
    return {
        "base_model": path if _is_hub_id(path) else None,
        "datasets": list(dict.fromkeys(name for name in datasets if name)),
        "family": _family(run.pruned / "config.json"),
        "card": {key: card[key] for key in CARRIED_OVER if card.get(key)},
    }


def _is_hub_id(path: str) -> bool:
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", path)) and not Path(path).exists()


def _dataset(task: dict[str, Any]) -> str | None:
    if task.get("train") and not task.get("dataset"):
        return None  # a local file
    preset = PRESETS.get(task.get("name", "custom"))
    name = task.get("dataset") or (preset.dataset if preset else None)
    return name if name and _is_hub_id(name) else None


def _metadata(path: Path) -> dict[str, Any]:
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
