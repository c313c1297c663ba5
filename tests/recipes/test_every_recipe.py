"""Every recipe goes one step through all its stages, on a tiny random model of its family; its header says what it needs."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT
from tiny_original import published, save_tiny, write_rows
from transformers import AutoModelForCausalLM

from toolkit.cli.verbs.lists import recipe_title
from toolkit.cuts.plan import Plan
from toolkit.moe import load_config, meta_model, sizes
from toolkit.pipeline.runner import plan_stages, run
from toolkit.recipe.file import load_recipe
from toolkit.runtime import distributed

sys.path.insert(0, str(ROOT / "benchmarks"))
import recipe_needs

RECIPES = [path for path in sorted((ROOT / "recipes").glob("*.yaml")) if path.stem != "reference"]
REAL = [path for path in RECIPES if load_recipe(path).model.path in recipe_needs.CONFIGS]
SHRUNK = [
    "calibration.examples=4", "calibration.batch_size=2", "finetuning.examples=4", "finetuning.trainer.max_steps=1",
    "finetuning.trainer.per_device_train_batch_size=2", "finetuning.trainer.gradient_accumulation_steps=1",
    "finetuning.trainer.eval_strategy=no", "evaluation.examples=2", "evaluation.batch_size=2", "evaluation.max_new_tokens=2",
]  # fmt: skip

# In billions, as the models' cards and papers give them
PUBLISHED = {"mixtral-8x7b": 46.7, "qwen3-30b-a3b": 30.5, "olmoe-1b-7b": 6.9, "gpt-oss-20b": 20.9, "deepseek-v2-lite": 15.7}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where all of them run, in this one process: imports take longer than the runs."""
    distributed.start()
    folder = tmp_path_factory.mktemp("recipes")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder
    distributed.stop()


def tiny(path: Path, folder: Path) -> list[str]:
    """Overrides: the model, the data, and small numbers; all else is the recipe's."""
    recipe = load_recipe(path)
    config = recipe_needs.CONFIGS[recipe.model.path]
    if not (folder / config).exists():
        save_tiny(published(config), folder / config)
    tasks = {recipe.task.name} | {source.task.name for source in recipe.calibration.data or [] if source.task}
    for task in tasks:
        write_rows(task, folder / f"{task}.train.jsonl", 20)
        write_rows(task, folder / f"{task}.test.jsonl", 3)
    files = [f"task.{split}={recipe.task.name}.{split}.jsonl" for split in ("train", "test")]
    mixed = [
        {"task": {"name": s.task.name, "train": f"{s.task.name}.train.jsonl"}} for s in recipe.calibration.data or [] if s.task
    ]
    return [f"model={config}", *files, *([f"calibration.data={json.dumps(mixed)}"] if mixed else []), *SHRUNK]


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_a_recipe_for_a_real_model_goes_through_all_its_stages(path: Path, folder: Path) -> None:
    recipe = load_recipe(path, tiny(path, folder))
    stages = [stage.name for stage in plan_stages(recipe)]
    manifest = run(recipe).read_manifest()
    assert list(manifest["stages"]) == stages
    assert all(stage["status"] == "done" for stage in manifest["stages"].values())
    plan, asked = Plan.load(folder / "runs" / recipe.name / "plan.json"), load_recipe(path).pruning
    assert {len(kept) for kept in plan.experts.kept.values()} == {asked.keep or next(iter(plan.blocks.values())).experts}
    assert [cut.kind for cut in plan.cuts[1:]] == [key for key in ("width", "layers") if getattr(asked, key) is not None]
    if "recovered" in recipe.evaluation.models:
        assert manifest["stages"]["recover"]["steps"] == 1
        _, found = AutoModelForCausalLM.from_pretrained(folder / "runs" / recipe.name / "recovered", output_loading_info=True)
        assert not found["missing_keys"] and not found["unexpected_keys"]


# Without the models of 128 experts, which take as long as all others: what changes their figures changes others', too, and
# the command then writes all of them anew.
def test_what_a_header_says_a_recipe_needs_is_what_the_estimator_says() -> None:
    known: dict = {}
    for path in recipe_needs.with_needs():
        if recipe_needs.CONFIGS.get(load_recipe(path).model.path) == "qwen3-30b-a3b":
            continue
        text = path.read_text()
        told = f"{path.name}: run python benchmarks/recipe_needs.py"
        assert recipe_needs.renewed(text, recipe_needs.needs(path, known)) == text, told


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_header_says_what_how_and_for_editors_by_which_schema(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert lines[0] == "# yaml-language-server: $schema=recipe.schema.json"
    assert recipe_title(path) == lines[1].removeprefix("# ").rstrip(":") and len(recipe_title(path)) < 125
    assert f"recipes/{path.name}" in "\n".join(line for line in lines if line.startswith("#     "))
    assert load_recipe(path).name == path.stem


@pytest.mark.parametrize("name", sorted({*recipe_needs.CONFIGS.values()}))
def test_a_configuration_has_as_many_parameters_as_is_published(name: str) -> None:
    total = sizes(meta_model(load_config(str(published(name))))).parameters
    assert round(total / 1e9, 1) == PUBLISHED[name]


def test_a_real_recipe_says_what_it_needs_and_that_nobody_ran_it() -> None:
    for path in REAL:
        assert path in recipe_needs.with_needs()
        assert re.search(r"^# Expect: not run by us", path.read_text(), re.MULTILINE), path.name
