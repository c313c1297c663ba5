"""`pruning.refit`: true, false, or its keys; with it the refitted model is a model of the run."""

from pathlib import Path

import pytest
from conftest import raises

from toolkit.recipe.file import dump_recipe, dump_values, load_recipe
from toolkit.recipe.refit import RefitRecipe
from toolkit.recipe.schema import Recipe

SMALLEST = "name: small\nmodel: some/model\ntask: gsm8k\n"
SERVERS = {role: f"http://{role}/v1" for role in ("original", "pruned", "recovered")}


def load(folder: Path, *overrides: str) -> Recipe:
    path = folder / "r.yaml"
    path.write_text(SMALLEST)
    return load_recipe(path, overrides)


@pytest.mark.parametrize(
    ("text", "meaning"),
    [("true", True), ("false", False), ("{examples: 7}", RefitRecipe(examples=7)), ("{examples: null}", RefitRecipe())],
)
def test_it_is_on_off_or_a_number_of_examples(tmp_path: Path, text: str, meaning: object) -> None:
    recipe = load(tmp_path, f"pruning.refit={text}")
    assert recipe.pruning.refit == meaning
    (tmp_path / "again.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "again.yaml") == recipe


@pytest.mark.parametrize("text", ["0", "1", "1024", "yes", "no", "null", "{}", "[1]", "0.5"])
def test_whatever_else_says_what_it_may_be(tmp_path: Path, text: str) -> None:
    with raises("recipe.invalid", f"pruning.refit={text}", "`pruning.refit`", "true, false", "{examples: 1024}"):
        load(tmp_path, f"pruning.refit={text}")


@pytest.mark.parametrize(
    ("text", "named"),
    [("exampels: 3", "Did you mean `examples`?"), ("examples: 0", "pruning.refit.examples"), ("examples: true", "True")],
)
def test_a_mistake_in_its_keys_is_one_mistake_at_its_place(tmp_path: Path, text: str, named: str) -> None:
    with raises("recipe.invalid", "pruning.refit.", named) as caught:
        load(tmp_path, f"pruning.refit={{{text}}}")
    assert len(str(caught.value).splitlines()) == 1


def test_a_recipe_without_it_is_written_as_before_there_was_one(tmp_path: Path) -> None:
    assert "refit" not in dump_recipe(load(tmp_path))
    assert dump_recipe(load(tmp_path, "pruning.refit=false")) == dump_recipe(load(tmp_path))


def test_the_refitted_model_is_evaluated_unless_models_are_listed(tmp_path: Path) -> None:
    assert load(tmp_path).evaluation.models == ["original", "pruned", "recovered"]
    assert load(tmp_path, "pruning.refit=true").evaluation.models == ["original", "pruned", "refitted", "recovered"]
    assert load(tmp_path, "pruning.refit=true", "evaluation.models=[pruned]").evaluation.models == ["pruned"]


def test_without_a_refit_there_is_no_refitted_model(tmp_path: Path) -> None:
    with raises("recipe.invalid", "`evaluation.models`", "pruning.refit: true", "['refitted']"):
        load(tmp_path, "evaluation.models=[refitted]")


def test_a_server_is_wanted_for_it_too(tmp_path: Path) -> None:
    values = {"name": "x", "model": "a/b", "task": "gsm8k", "evaluation": {"backend": "server", "servers": SERVERS}}
    Recipe.model_validate(values)
    (tmp_path / "r.yaml").write_text(dump_values(values))
    with raises("recipe.invalid", "no server is named for refitted"):
        load_recipe(tmp_path / "r.yaml", ["pruning.refit=true"])
    load_recipe(tmp_path / "r.yaml", ["pruning.refit=true", "evaluation.servers.refitted=http://refitted/v1"])
