"""Law: a task is called by its data, where its name says only what they look like; and keys that are null can be left out of a
recipe, which is then read as the same one."""

from pathlib import Path
from typing import Any, get_args

import pytest
from conftest import ROOT
from pydantic import BaseModel

from toolkit.recipe.data import TaskRecipe
from toolkit.recipe.file import NULL_SAYS_SOMETHING, dump_recipe, dump_values, load_recipe, read_values, without_nulls
from toolkit.recipe.schema import Recipe

TEMPLATES = {"prompt": "{q}", "completion": "{a}"}


@pytest.mark.parametrize(
    ("values", "title"),
    [
        ({"name": "gsm8k"}, "gsm8k"),
        ({"name": "playground/logic"}, "playground/logic"),
        ({"train": "data/tickets.train.jsonl", "test": "data/tickets.test.jsonl"}, "tickets"),
        ({"train": "data/tickets/train.jsonl"}, "tickets"),
        ({"train": ["a/mails_train.csv", "b.csv"]}, "mails"),
        ({"train": "logs/*.csv"}, "logs"),
        ({"train": "/home/me/trainers.csv"}, "trainers"),
        ({"train": "train.jsonl", "test": "test.jsonl"}, "custom"),
        ({"dataset": "fancyzhx/ag_news"}, "fancyzhx/ag_news"),
        ({"dataset": "/data/sets/mails"}, "mails"),
        ({"name": "multiple_choice", "dataset": "cais/mmlu"}, "cais/mmlu"),
    ],
)
def test_a_task_is_called_by_its_data(values: dict[str, Any], title: str) -> None:
    templates = {} if values.get("name") else TEMPLATES
    assert TaskRecipe.model_validate(templates | values).title == title


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_without_nulls_is_the_same_recipe(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    recipe = load_recipe(path)
    shorter = tmp_path / path.name
    shorter.write_text(dump_values(without_nulls(read_values(dump_recipe(recipe)))))
    assert "null" not in shorter.read_text().replace("keep: null", "")
    assert load_recipe(shorter) == recipe


def test_nulls_that_say_something_stay() -> None:
    values = {
        "pruning": {"keep": None, "schedule": None},
        "finetuning": {"trainer": {"max_grad_norm": None}},
        "data": [{"a": None}],
    }
    shorter = {"pruning": {"keep": None}, "finetuning": {"trainer": {"max_grad_norm": None}}, "data": [{}]}
    assert without_nulls(values) == shorter


def test_every_key_whose_null_says_something_keeps_it() -> None:
    seen, waiting = set(), [Recipe]
    while waiting:
        section = waiting.pop()
        seen.add(section)
        for name, field in section.model_fields.items():
            types = _types(field.annotation)
            waiting += [one for one in types if isinstance(one, type) and issubclass(one, BaseModel) and one not in seen]
            if type(None) in types and field.get_default(call_default_factory=True) is not None:
                written = section.model_construct(**{name: None}).model_dump(include={name}).get(name)
                assert written is not None or name in NULL_SAYS_SOMETHING, f"{section.__name__}.{name}"


def _types(annotation: Any) -> list[Any]:
    return [annotation, *(inner for part in get_args(annotation) for inner in _types(part))]
