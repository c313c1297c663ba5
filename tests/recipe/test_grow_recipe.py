"""`pruning.grow` and `finetuning.method: new`: what they go with, and what they do not."""

from pathlib import Path

import pytest
from conftest import raises

from toolkit.pipeline.sweep_grid import load_grid
from toolkit.recipe.file import dump_recipe, load_recipe
from toolkit.recipe.pruning import PruningRecipe
from toolkit.recipe.schema import Recipe

GROW = {"onto": "runs/a/recovered", "keep": 6}


def recipe(pruning: dict, **changes: object) -> Recipe:
    return Recipe.model_validate({"name": "b", "model": "m", "task": "gsm8k", "pruning": pruning} | changes)


def test_keep_follows_from_it_and_a_dump_is_read_back_alike(tmp_path: Path) -> None:
    one = recipe({"grow": GROW}, finetuning={"method": "new"})
    assert one.pruning.keep == 6
    (tmp_path / "recipe.yaml").write_text(dump_recipe(one))
    assert load_recipe(tmp_path / "recipe.yaml") == one


def test_without_it_no_dump_has_the_key() -> None:
    assert "grow" not in recipe({"keep": 4}).pruning.model_dump()


@pytest.mark.parametrize(
    ("others", "named"),
    [
        ({"schedule": [6, 4]}, "schedule"),
        ({"width": 0.5}, "width"),
        ({"layers": 0.5}, "layers"),
        ({"fit": {"bytes": "1G"}}, "fit"),
        ({"refit": True}, "refit"),
        ({"form": "dense"}, "dense"),
        ({"criterion": "reconstruction"}, "reconstruction"),
        ({"keep": 5}, "keep 5"),
    ],
)
def test_what_it_does_not_go_with_is_refused_with_the_reason(others: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        PruningRecipe.model_validate({"grow": GROW} | others)


@pytest.mark.parametrize("grow", [{"onto": "a"}, {"onto": "a", "keep": None}, {"onto": "a", "keep": 0}, {"keep": 6}, "a"])
def test_it_needs_a_checkpoint_and_a_number(grow: object) -> None:
    with pytest.raises(ValueError, match="grow"):
        PruningRecipe.model_validate({"grow": grow})


def test_the_method_needs_something_new_and_no_control() -> None:
    with pytest.raises(ValueError, match=r"pruning\.grow"):
        recipe({"keep": 4}, finetuning={"method": "new"})
    with pytest.raises(ValueError, match="control"):
        recipe({"grow": GROW}, finetuning={"method": "new"}, control=True)


def test_a_sweep_of_it_is_refused(checkout: Path) -> None:
    with raises("sweep.grow", "pruning.grow"):
        load_grid("recipes/playground.yaml", ["pruning.grow.onto=a", "pruning.grow.keep=4", "pruning.criterion=reap,ean"])
