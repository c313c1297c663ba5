"""What comes along is found from any folder, and what lies there itself comes first."""

from pathlib import Path

import pytest
from conftest import PLAYGROUND, ROOT

from toolkit.recipe.file import load_recipe
from toolkit.runtime.embedded import find_embedded, find_embedded_in
from toolkit.runtime.errors import PollardError


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_recipe_that_comes_along_is_found_with_the_model_and_the_data_that_it_names(empty: Path) -> None:
    recipe = load_recipe("recipes/my-data.yaml", ["name=mine"])
    assert recipe.model.path == str(PLAYGROUND / "model")
    assert recipe.task.train == str(PLAYGROUND / "sorting" / "train.jsonl")
    assert load_recipe("recipes/math.yaml", ["model=data/playground/model"]).model.path == str(PLAYGROUND / "model")


def test_what_lies_in_the_folder_itself_comes_first(empty: Path) -> None:
    (empty / "recipes").mkdir()
    (empty / "recipes" / "playground.yaml").write_text("name: mine\nmodel: data/playground/model\ntask: gsm8k\n")
    (empty / "data" / "playground" / "model").mkdir(parents=True)
    recipe = load_recipe("recipes/playground.yaml")
    assert (recipe.name, recipe.model.path) == ("mine", "data/playground/model")


@pytest.mark.parametrize("path", ["recipes/none.yaml", "data/other/model", "toolkit/train.py", "data/playgrounds"])
def test_no_other_path_is_changed(path: str, empty: Path) -> None:
    assert find_embedded(path) == Path(path)
    assert find_embedded_in({"model": path, "n": [1, None]}) == {"model": path, "n": [1, None]}


def test_a_recipe_that_is_nowhere_is_an_error(empty: Path) -> None:
    with pytest.raises(PollardError) as error:
        load_recipe("recipes/none.yaml")
    assert error.value.code == "recipe.no-file"
    assert find_embedded("recipes/math.yaml") == ROOT / "recipes" / "math.yaml"
