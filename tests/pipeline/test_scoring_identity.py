from pathlib import Path

import pytest
from small_run import make_small, small_recipe, small_values

from toolkit.pipeline.runner import plan_stages
from toolkit.recipe.data import TaskRecipe
from toolkit.recipe.schema import Recipe


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_small(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fingerprints(**task: object) -> dict[str, str]:
    values = small_values(evaluation__models=["original", "pruned", "recovered"], evaluation__fidelity=6)
    recipe = Recipe.model_validate(values | {"task": values["task"] | task})
    return {stage.name: stage.fingerprint() for stage in plan_stages(recipe)}


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {name for name in before if before[name] != after[name]}


# Mending a scorer must cost the answers at most, never a training.
def test_another_text_of_the_users_scorer_judges_again_and_trains_nothing(folder: Path) -> None:
    (folder / "mending.py").write_text("def right(prediction, gold):\n    return prediction == gold\n")
    before = fingerprints(scorer="mending:right")
    assert fingerprints(scorer="mending:right") == before
    (folder / "mending.py").write_text("def right(prediction, gold):\n    return gold in prediction\n")
    roles = {f"evaluate/{role}" for role in ("original", "pruned", "recovered")}
    assert changed(before, fingerprints(scorer="mending:right")) == {*roles, "report"}


def test_shots_come_from_train_so_another_train_file_evaluates_anew(folder: Path) -> None:
    before = fingerprints(shots=2)
    lines = (folder / "train.jsonl").read_text().splitlines(keepends=True)
    (folder / "train.jsonl").write_text("".join(lines[:-1]))
    assert "evaluate/original" in changed(before, fingerprints(shots=2))


def test_so_do_the_nearest_and_the_reference_is_of_other_prompts(folder: Path) -> None:
    before, none = fingerprints(shots={"nearest": 2}), fingerprints()
    assert changed(before, fingerprints(shots={"nearest": 3})) == changed(before, none) == set(before)
    lines = (folder / "train.jsonl").read_text().splitlines(keepends=True)
    (folder / "train.jsonl").write_text("".join(lines[:-1]))
    assert {"evaluate/original", "fidelity/original"} <= changed(before, fingerprints(shots={"nearest": 2}))


def test_keys_that_a_recipe_does_not_say_are_in_no_fingerprint() -> None:
    assert set(small_recipe().task.model_dump()) == {
        "name", "dataset", "subset", "revision", "train", "test", "prompt", "completion", "messages", "answer", "scorer",
        "dev_examples",
    }  # fmt: skip
    assert TaskRecipe(shots=3).model_dump()["shots"] == 3
