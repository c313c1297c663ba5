"""Laws of the study of refit: cells are recipes of their own near the size they are named by, the telling ones come first, what
is finished stays finished when the toolkit learns a key, and the tables compare what they say."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import refit_cells
import refit_study
import refit_tables
import study
from refit_cells import SHAPES, STEPS, RefitCell, Shape
from transformers import AutoConfig

from toolkit.cuts.shape import ModelShape, shaped_meta_model, without_last
from toolkit.moe.model_size import sizes
from toolkit.recipe.file import load_recipe
from toolkit.recipe.pruning import PruningRecipe

SHARES = {"half": 1 / 2, "third": 1 / 3, "quarter": 1 / 4}
SMALL = ["evaluation.examples=4", "calibration.examples=4", "finetuning.trainer.max_steps=2", "evaluation.max_new_tokens=4"]
REFIT_IS_KNOWN, DENSE_IS_KNOWN = ("refit" in PruningRecipe.model_fields, "form" in PruningRecipe.model_fields)


def every_cell(seeds: list[int]) -> list[RefitCell]:
    return [cell for group in refit_study.groups_of(seeds) for cell in group]


def understood(cell: RefitCell) -> bool:
    return (REFIT_IS_KNOWN or not cell.refit) and (DENSE_IS_KNOWN or not cell.shape.dense)


def test_every_cell_is_a_recipe_of_its_own_on_the_test_set(checkout: Path) -> None:
    cells = every_cell([0, 1, 2])
    assert len({cell.name for cell in cells}) == len(cells) == 17 * 2 * 3 * 2 * 3
    for cell in filter(understood, cells):
        recipe = load_recipe(refit_cells.RECIPE, cell.overrides())
        pruning, shape = recipe.pruning, cell.shape
        assert (pruning.keep, pruning.width, pruning.layers) == (shape.keep, shape.width, shape.layers)
        assert (recipe.seed, recipe.task.name) == (cell.seed, f"playground/{cell.subject}")
        assert recipe.finetuning.trainer["max_steps"] == STEPS[cell.percent] and recipe.finetuning.select_by == "last"
        assert (recipe.evaluation.split, recipe.evaluation.examples) == ("test", None)
        assert pruning.tokens == "all" or cell.subject == "arithmetic"


def test_every_model_is_evaluated_once() -> None:
    models = [(cell.subject, cell.seed, cell.shape, role, role == "recovered" and (cell.refit, cell.percent))
              for cell in every_cell([0, 1, 2]) for role in cell.roles if role != "original"]  # fmt: skip
    assert len(set(models)) == len(models) == 17 * 2 * 3 * (2 + 2 * 3)
    assert [(cell.subject, cell.seed) for cell in every_cell([0, 1]) if "original" in cell.roles] == [
        ("arithmetic", 0), ("sorting", 0)
    ]  # fmt: skip


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if not shape.dense], ids=lambda shape: shape.slug)
def test_a_shape_has_about_the_bytes_it_is_named_by(shape: Shape) -> None:
    config = AutoConfig.from_pretrained(ROOT / "data/playground/model")

    def share(keep: int | None, width: int | None, layers: int | None) -> float:
        kept = without_last(layers, config.num_hidden_layers) if layers else None
        size = ModelShape(keep, width, kept, experts_per_token=1 if keep == 1 else None)
        return sizes(shaped_meta_model(config, size)).parameters / sizes(shaped_meta_model(config, ModelShape())).parameters

    wanted = SHARES[shape.size]
    off = abs(share(shape.keep, shape.width, shape.layers) - wanted)
    assert off < 0.055
    # As near as its finest step allows
    step = refit_cells.WIDTH_MULTIPLE if shape.width else 1
    for less_or_more in (-step, step):
        if shape.width:
            other = share(shape.keep, shape.width + less_or_more, shape.layers)
        elif shape.keep:
            other = share(shape.keep + less_or_more, None, shape.layers) if shape.keep + less_or_more else 0.0
        else:
            other = share(None, None, (shape.layers or 0) + less_or_more) if (shape.layers or 0) + less_or_more else 0.0
        assert off <= abs(other - wanted)


def test_groups_share_no_directory_and_the_telling_ones_come_first() -> None:
    groups = refit_study.groups_of([4, 5])
    runs = [{cell.run("study") for cell in group} for group in groups]
    assert all(len(own) == 1 for own in runs) and len(set().union(*runs)) == len(runs)
    first = [group[0] for group in groups]
    order = [(cell.seed, cell.shape.size == "third", cell.subject) for cell in first]
    assert order == sorted(order)
    assert all([cell.percent for cell in group] == [10, 30, 100] * 2 for group in groups)


def test_a_key_that_the_toolkit_learns_leaves_finished_cells_alone(checkout: Path) -> None:
    cell = RefitCell("sorting", 0, SHAPES[1], False, 10)
    recipe = load_recipe(cell.recipe, cell.overrides())
    said = json.dumps(recipe.model_dump(mode="json", exclude_unset=True))
    assert "width_criterion" not in said and "control" not in said and '"width": 112' in said
    asked = {cell.asked([*cell.overrides(), *more]) for more in ([], ["calibration.examples=16"], ["seed=1"])}
    assert len(asked) == 3


def test_a_cell_whose_recipe_is_refused_is_told_and_not_launched(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[str] = []

    def launch(ranks: int, what: list[str], arguments: list[str], log: Path) -> bool:
        launched.append(log.stem)
        return True

    monkeypatch.setattr(study, "launch", launch)
    monkeypatch.setattr(RefitCell, "measured", lambda cell, run: {"seconds": {}, "models": {}})
    cell = RefitCell("sorting", 0, SHAPES[0], False, 10)
    failure = cell.do("study", ["pruning.tokenz=all"])
    assert failure and failure.startswith(f"{cell.name}: ") and "tokenz" in failure and not launched
    assert cell.result("study") is None
    assert cell.do("study", []) is None and cell.do("study", []) is None and launched == [cell.name]
    cell.do("study", ["calibration.examples=16"])
    assert launched == [cell.name] * 2


def answers(right: str, **rest: Any) -> Any:
    share = right.count("1") / len(right)
    sizes = {"parameters": 50, "active_parameters": 25, "bytes": 200} | rest
    return {"score": share, "n": len(right), "interval": [0.2, 0.9], "right": right, **sizes}


def made_up(cell: RefitCell, study_name: str) -> Any:
    """Arithmetic with half of the experts, with two seeds; and at a quarter experts and a combination before training."""
    recovered = {(False, 10): "1000", (False, 30): "1100", (False, 100): "1110", (True, 30): "1111"}
    seconds = {"refit": 3.0, "recover": float(STEPS[cell.percent])}
    if cell.subject != "arithmetic" or cell.seed > 1:
        return None
    if cell.shape == SHAPES[0] and (right := recovered.get((cell.refit, cell.percent))):
        models = {role: answers(right) for role in cell.roles}
        models |= {role: answers("0000") for role in ("pruned",) if role in models}
        models |= {"original": answers("1111", parameters=100, active_parameters=100, bytes=400)} if "original" in models else {}
        return {"seconds": seconds, "models": models}
    if cell.shape == SHAPES[0] and cell.refit and cell.percent == 10:
        before = "1100" if cell.seed == 0 else "1000"
        return {"seconds": seconds, "models": {"refitted": answers(before), "recovered": answers("1111")}}
    if cell.shape.slug in ("quarter-experts", "quarter-experts-width") and not cell.refit and cell.percent == 10:
        before = "1110" if "width" in cell.shape.slug else "0000"
        return {"seconds": seconds, "models": {"pruned": answers(before), "recovered": answers("1111")}}
    return None


def test_the_tables_say_what_is_finished_and_name_the_rest(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RefitCell, "result", made_up)
    document, cells = checkout / "study.md", every_cell([0, 1])
    other = "<!-- tables: written by benchmarks/cuts_study.py -->\n\nfirst\n\n<!-- end of tables -->\n"
    document.write_text(f"# Words\n\n{other}\nMore.\n\n{refit_tables.BEGIN}\nold\n{refit_tables.END}\n\nThe end.\n")
    missing = refit_tables.write_tables(document, "study", cells)
    text = document.read_text()
    assert text.startswith(f"# Words\n\n{other}") and text.endswith("\n\nThe end.\n") and "old" not in text
    lines = text.splitlines()
    # Before fine-tuning, and after 30, 90 and 300 steps; half the bytes, a quarter of the active parameters
    without = next(line for line in lines if line.startswith("| experts | 4 experts | 50 % | 25 % | no |"))
    assert [part.split()[0] for part in without.split("|")[6:10]] == ["0.0", "25.0", "50.0", "75.0"]
    assert "| experts | 4 experts | 50 % | 25 % | yes | 37.5 % (" in text
    # Refit and 90 steps, 4 of 4, against 300 steps without, 3 of 4, with both seeds
    added = next(line for line in lines if line.startswith("| ½ | experts | "))
    assert added.split("|")[-2].startswith(" +25.00 (") and added.split("|")[3].startswith(" +37.50 (")
    assert "in 1 of 1 shapes; the least: +25.00 (" in text
    assert "| a combination beats experts only at ¼, `arithmetic`, not refitted, no steps | experts + width: +75.00 (" in text
    # 37.5 % after refit: 30 steps without are worse, 90 better
    times = next(line for line in lines if line.startswith("| ½ | experts | 37.5 %"))
    assert times.split("|")[4:6] == [" 3.0 s ", " 90 steps "] and "1 min 30 s" in times
    assert len(missing) == len(cells) - 14 and "all of sorting at ⅓, refitted, with seed 0, 1" in text
    assert "`arithmetic-quarter-experts-steps90-seed0`" in text


def test_the_results_in_the_repository_are_of_the_recipes_that_the_study_runs(checkout: Path) -> None:
    """Otherwise the study would begin anew in every checkout."""
    file = refit_study.RESULTS.file
    found = json.loads(file.read_text()) if file.exists() else {}
    for cell in filter(understood, every_cell([0, 1, 2])):
        asked = cell.asked([f"name={cell.run(refit_study.STUDY)}", *cell.overrides()])
        assert found.get(cell.name, {}).get("asked", asked) == asked, cell.name


@pytest.mark.launcher
def test_a_cell_goes_through_the_pipeline(checkout: Path) -> None:
    cell = RefitCell("sorting", 0, SHAPES[6], False, 10)
    assert cell.do("study", SMALL) is None
    found = cell.result("study")
    assert found and list(found["models"]) == ["pruned", "recovered"] and found["seconds"]["recover"] > 0
    assert len(found["models"]["recovered"]["right"]) == 4 and found["models"]["pruned"]["bytes"] < 4_000_000
