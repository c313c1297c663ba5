"""Limits instead of a shape: what a recipe may say of them, and what it is told when it says something else."""

from pathlib import Path

import pytest
from conftest import raises
from small_run import small_values

from toolkit.recipe.file import dump_recipe, dump_values, load_recipe
from toolkit.recipe.fit import CUTS
from toolkit.recipe.schema import Recipe


def recipe_with(tmp_path: Path, pruning: dict, **changes: object) -> Recipe:
    path = tmp_path / "r.yaml"
    path.write_text(dump_values(small_values(pruning=pruning, **changes)))
    return load_recipe(path)


def test_amounts_are_read_as_people_write_them_and_the_dump_is_the_same_recipe(tmp_path: Path) -> None:
    recipe = recipe_with(tmp_path, {"fit": {"bytes": "12G", "parameters": "7B", "active": "3B"}})
    fit = recipe.pruning.fit
    assert fit and (fit.bytes, fit.parameters, fit.active, fit.cuts) == (12 * 2**30, 7 * 10**9, 3 * 10**9, list(CUTS))
    assert recipe.pruning.keep is recipe.pruning.width is recipe.pruning.layers is None
    (tmp_path / "dumped.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "dumped.yaml") == recipe


def test_without_a_fit_a_recipe_reads_and_dumps_as_ever(tmp_path: Path) -> None:
    recipe = recipe_with(tmp_path, {"keep": 4})
    assert recipe.pruning.fit is None and "fit" not in dump_recipe(recipe)


def test_shapes_that_are_refit_are_measured_so_and_the_run_is_refit_too(tmp_path: Path) -> None:
    recipe = recipe_with(tmp_path, {"fit": {"bytes": "1M", "refit": {"examples": 8}}}, evaluation={})
    assert recipe.pruning.refit and "refitted" in recipe.evaluation.models
    assert recipe_with(tmp_path, {"fit": {"bytes": "1M", "refit": True}, "refit": {"examples": 9}}).pruning.refit.examples == 9  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("pruning", "named"),
    [
        ({"fit": {"bytes": "12X"}}, "12X is no number of bytes"),
        ({"fit": {"byte": "12G"}}, "Did you mean `bytes`?"),
        ({"fit": {"active": "3G"}}, "3G is no number of parameters"),
        ({"fit": {}}, "fit needs a limit: bytes, parameters, active, gpu"),
        ({"fit": {"bytes": "1G"}, "keep": 4}, "leave keep out"),
        ({"fit": {"bytes": "1G"}, "schedule": [6, 4]}, "leave"),
        ({"fit": {"bytes": "1G"}, "form": "dense"}, "leave form out"),
        ({"fit": {"bytes": "1G"}, "layers": [0, 1]}, "leave layers out"),
        ({"fit": {"parameters": "1B", "active": "2B"}}, "active 2,000,000,000 is more than parameters 1,000,000,000"),
        ({"fit": {"bytes": "1G", "context": 100}}, "say gpu"),
        ({"fit": {"bytes": "1G", "cuts": []}}, "cuts"),
        ({"fit": {"bytes": "1G", "cuts": ["widht"]}}, "widht"),
        ({"fit": {"bytes": "1G", "cuts": ["width", "width"]}}, "twice"),
        ({"fit": {"bytes": "1G", "cuts": ["dense"]}}, "name one of them"),
        ({"fit": {"bytes": "1G", "refit": True}, "refit": False}, "refit is false"),
        ({"fit": {"bytes": "1G", "cuts": ["experts", "dense"]}, "skipping": "median"}, "skipping leaves out experts"),
        ({"fit": {"bytes": "1G"}, "criterion": "reconstruction"}, "reconstruction"),
        ({"fit": {"bytes": "1G"}, "layer_criterion": "angular"}, "angular"),
    ],
)
def test_what_contradicts_itself_is_refused(tmp_path: Path, pruning: dict, named: str) -> None:
    with raises("recipe.invalid", "pruning", named):
        recipe_with(tmp_path, pruning)


def test_a_dense_result_needs_a_method_that_trains_dense_models(tmp_path: Path) -> None:
    fit = {"bytes": "1M", "cuts": ["experts", "dense"]}
    with raises("recipe.invalid", "method"):
        recipe_with(tmp_path, {"fit": fit}, finetuning={"method": "router"})
