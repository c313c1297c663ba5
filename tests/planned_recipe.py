"""Recipes of a model of which there is nothing but its configuration."""

import json
from pathlib import Path
from typing import Any

from toolkit.recipe.schema import Recipe

SMALL = {"hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}


def config_folder(folder: Path) -> str:
    """A folder with nothing but a config.json."""
    (folder / "mixtral").mkdir()
    config = {"model_type": "mixtral", "dtype": "bfloat16", "vocab_size": 64, **SMALL}
    (folder / "mixtral" / "config.json").write_text(json.dumps(config))
    return str(folder / "mixtral")


def recipe_of(model: str | dict[str, str], **sections: Any) -> Recipe:
    return Recipe.model_validate({"name": "try", "model": model, "task": "gsm8k", **sections})
