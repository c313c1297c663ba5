"""`finetuning.router_gradient: all` is refused, with the reason, where it cannot be or would be in vain."""

from pathlib import Path

import pytest
from conftest import PLAYGROUND, raises, tiny_model
from pydantic import ValidationError

from toolkit.recipe.schema import Recipe
from toolkit.recovery.methods import METHODS


def recipe(method: str, model: Path = PLAYGROUND / "model", **pruning: object) -> Recipe:
    finetuning = {"method": method, "router_gradient": "all"}
    values = {"name": "t", "model": str(model), "task": "gsm8k", "finetuning": finetuning, "pruning": pruning}
    return Recipe.model_validate(values)


@pytest.mark.parametrize("method", METHODS)
def test_it_is_for_methods_that_train_whole_routers(method: str) -> None:
    if method in ("full", "experts", "router"):
        METHODS[method].check(recipe(method))
    else:
        grown = {"grow": {"onto": "runs/a/recovered", "keep": 6}} if method == "new" else {}
        with raises("recovery.no-routers", f"method {method}", "finetuning.router_gradient"):
            METHODS[method].check(recipe(method, **grown))


def test_a_dense_model_has_no_routers() -> None:
    with pytest.raises(ValidationError, match=r"finetuning\.router_gradient"):
        recipe("full", form="dense")


def test_a_family_whose_router_cannot_be_asked_for_all_experts_is_told_before_anything_starts(tmp_path: Path) -> None:
    tiny_model("phimoe", num_local_experts=8).config.save_pretrained(tmp_path)
    with raises("model.no-router-gradient", "PhimoeTopKRouter", "always chooses 2 experts"):
        METHODS["full"].check(recipe("full", tmp_path))


def test_without_the_key_a_recipe_reads_as_before() -> None:
    plain = Recipe.model_validate({"name": "t", "model": "m", "task": "gsm8k"})
    dumped = plain.finetuning.model_dump()
    assert not {"router_gradient", "keep_zeros"} & dumped.keys() and "experts" not in dumped["lora"]
