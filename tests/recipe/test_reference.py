"""recipes/reference.yaml and recipes/recipe.schema.json say what toolkit/recipe/schema.py says."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from conftest import ROOT

from toolkit.recipe.data import Section
from toolkit.recipe.file import load_recipe, read_values
from toolkit.recipe.reference import reference, schema, with_subclasses
from toolkit.recipe.schema import Recipe

RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))


@pytest.fixture(scope="module")
def validator() -> Any:
    kind = jsonschema.Draft202012Validator
    kind.check_schema(json.loads(schema()))
    return kind(json.loads(schema()))


@pytest.mark.parametrize(("file", "write"), [("reference.yaml", reference), ("recipe.schema.json", schema)])
def test_the_file_in_recipes_is_what_the_code_says(file: str, write: Any) -> None:
    advice = f"it differs: write it anew with `pollard recipes --{Path(file).stem.rpartition('.')[2]} > recipes/{file}`"
    assert (ROOT / "recipes" / file).read_text() == write(), advice


def test_the_reference_is_a_recipe_of_defaults(tmp_path: Path) -> None:
    (tmp_path / "least.yaml").write_text("name: reference\nmodel: mistralai/Mixtral-8x7B-v0.1\ntask: gsm8k\n")
    assert load_recipe(ROOT / "recipes" / "reference.yaml") == load_recipe(tmp_path / "least.yaml")


@pytest.mark.parametrize("section", with_subclasses(Section)[1:], ids=lambda kind: kind.__name__)
def test_every_key_has_a_meaning_and_stands_in_the_reference(section: type[Section]) -> None:
    text = reference()
    for key, field in section.model_fields.items():
        nested = isinstance(field.annotation, type) and issubclass(field.annotation, Section)
        assert field.description or (nested and field.annotation.__doc__), f"{section.__name__}.{key}: say what it means"
        assert f"{key}: " in text or f"{key}:\n" in text


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_valid_for_an_editor(validator: Any, path: Path) -> None:
    validator.validate(read_values(path.read_text()))


@pytest.mark.parametrize(
    "change",
    [{"pruning": {"keeep": 4}}, {"finetuning": {"method": "loraa"}}, {"model": 3}, {"calibration": {"examples": 0}}, {"sed": 1}],
)
def test_an_editor_sees_a_mistake(validator: Any, change: dict[str, Any]) -> None:
    least = {"name": "x", "model": "some/model", "task": "gsm8k"}
    validator.validate(least)
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(least | change)


def test_whatever_a_recipe_may_say_the_schema_allows(validator: Any) -> None:
    values = {
        "name": "x", "model": "some/model", "task": {"name": "gsm8k"}, "pruning": {"keep": 4, "schedule": [6, 4]},
        "calibration": {"data": ["gsm8k", {"task": "playground/sorting", "weight": 1}, {"text": "a.txt", "weight": 2}]},
        "finetuning": {"zero": "3-offload", "trainer": {"learning_rate": 1e-5}}, "evaluation": None,
    }  # fmt: skip
    validator.validate(values)
    values["calibration"]["data"][0] = {"task": "gsm8k", "weight": 1}
    Recipe.model_validate(values)
