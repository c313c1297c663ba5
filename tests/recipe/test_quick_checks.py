"""A recipe with one mistake is told with the others that an instant tells."""

import dataclasses
import json
from pathlib import Path

import pytest
from conftest import raises

from toolkit.recipe.file import load_recipe
from toolkit.recipe.quick_checks import quick_checks, trainer_fields

RECIPE = """\
name: mine
model: nowhere
task:
  train: trian.jsonl
  test: rows.jsonl
  prompt: "{q}"
  completion: "{a}"
pruning:
  kep: 4
finetuning:
  trainer:
    lr: 1
    max_steps: 2
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text('{"q": "a", "a": "b"}\n')
    Path("mine.yaml").write_text(RECIPE)
    return Path("mine.yaml")


def test_a_typo_a_trainers_key_a_missing_model_and_a_missing_file_come_together(recipe: Path) -> None:
    with raises("recipe.invalid") as error:
        load_recipe(recipe)
    lines = str(error.value).splitlines()
    assert [line.partition(": `")[0] for line in lines] == [f"mine.yaml, line {number}" for number in (9, 2, 4, 12)]
    assert "`pruning.kep`" in lines[0] and "no folder nowhere" in lines[1] and "cannot read trian.jsonl" in lines[2]
    assert "`finetuning.trainer.lr`: it is not a field of trl's SFTConfig" in lines[3]


def test_overrides_are_looked_at_too(recipe: Path) -> None:
    with raises("recipe.invalid") as error:
        load_recipe(recipe, ["finetuning.trainer.lr=null", "finetuning.trainer.warm=1", "task.test=missing.csv"])
    assert "command line (finetuning.trainer.warm=1): `finetuning.trainer.warm`" in str(error.value)
    assert "command line (task.test=missing.csv): `task.test`: cannot read missing.csv" in str(error.value)


# The checks before a run tell these, with everything else.
def test_a_recipe_without_a_mistake_of_its_own_is_read_as_it_is(recipe: Path) -> None:
    assert load_recipe(recipe.rename("good.yaml"), ["pruning={keep: 4}"]).model.path == "nowhere"


def test_what_may_be_on_the_hub_or_is_a_pattern_is_no_mistake(recipe: Path) -> None:
    values = {"model": "owner/name", "task": {"dataset": "some/set", "train": "train", "test": ["logs/*.csv", "test[:5%]"]}}
    assert list(quick_checks(values)) == []
    assert [key for key, _ in quick_checks({"model": {"path": "./owner/name"}, "task": "gsm8k"})] == [("model", "path")]


def test_sources_of_a_mix_are_looked_at(recipe: Path) -> None:
    mix = [{"task": {"train": "a.jsonl"}}, {"text": "notes.txt"}, {"task": "gsm8k"}, 7]
    assert [key for key, _ in quick_checks({"calibration": {"data": mix}, "finetuning": {"data": mix[1:]}})] == [
        ("calibration", "data", "0", "task", "train"), ("calibration", "data", "1", "text"), ("finetuning", "data", "0", "text"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "values", [{}, {"model": 3, "task": None, "finetuning": {"trainer": [1]}}, {"calibration": {"data": "x"}}]
)
def test_what_has_another_type_is_passed_over(values: dict) -> None:
    assert list(quick_checks(json.loads(json.dumps(values)))) == []


def test_the_fields_read_off_the_source_are_those_of_the_class() -> None:
    from trl import SFTConfig

    assert set(trainer_fields()) == {field.name for field in dataclasses.fields(SFTConfig) if field.init}
