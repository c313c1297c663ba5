"""Laws of the study of fit: cells are recipes of their own, what shares a folder runs one after the other, a shape that a search
found becomes the recipe that leaves it, and the tables compare what they say."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import fit
import fit_cells
import fit_scores
import fit_study
import fit_tables
import study
from fit_cells import CutCell, SearchCell

from toolkit.cuts.fit_result import FitShape
from toolkit.recipe.file import load_recipe

SMALL = [
    "evaluation.examples=4", "calibration.examples=8", "finetuning.trainer.max_steps=2", "evaluation.max_new_tokens=4",
    "pruning.fit.examples=4", "pruning.width_multiple=128", "pruning.fit.cuts=[experts,width]", "pruning.fit.refit.examples=8",
]  # fmt: skip
WHOLE = [4, 8, 256, 2, "moe"]


def every_search(seeds: list[int]) -> list[SearchCell]:
    return [cell for group in fit_study.groups_of(seeds) for cell in group if isinstance(cell, SearchCell)]


def test_every_search_is_a_recipe_of_its_own_with_a_part_of_the_bytes(checkout: Path) -> None:
    cells = every_search([0, 1, 2])
    assert len({cell.name for cell in cells}) == len(cells) == 2 * 3 * 3 * 2
    whole = sum(file.stat().st_size for file in fit_cells.MODEL.glob("*.safetensors"))
    for cell in cells:
        recipe = load_recipe(cell.recipe, cell.overrides())
        fit = recipe.pruning.fit
        assert fit and fit.bytes == whole // fit_cells.SIZES[cell.size] and fit.refit and "dense" in fit.cuts
        assert (recipe.seed, recipe.task.name, recipe.pruning.refit) == (cell.seed, f"playground/{cell.subject}", True)
        assert (recipe.evaluation.split, recipe.evaluation.examples) == ("test", None)
        assert fit.measured == (64 if cell.every_shape else 8)


def test_groups_share_no_directory_and_searches_come_first() -> None:
    groups = fit_study.groups_of([4, 5])
    runs = [{cell.run("study") for cell in group if isinstance(cell, SearchCell)} for group in groups]
    assert all(len(own) == 1 for own in runs) and len(set().union(*runs)) == len(runs) == 2 * 3 * 2
    for group in groups:
        assert [cell.every_shape for cell in group[:2] if isinstance(cell, SearchCell)] == [False, True]
        assert [cell.cut for cell in group[2:] if isinstance(cell, CutCell)] == [*fit_cells.CUTS, fit_cells.BEST]
    assert [group[0].seed for group in groups] == [4] * 6 + [5] * 6


def found(shape: list[Any], loss: float | None, score: float, cut: str | None = None) -> Any:
    return {"shape": shape, "bytes": 100, "loss": loss, "score": score, "n": 4, "seconds": 2.0, "single_cut": cut}


MIXED, EXPERTS, WIDTH = [3, 6, 88, 2, "moe"], [4, 2, 256, 2, "moe"], [4, 8, 64, 2, "moe"]
DENSE, SINGLE_EXPERT = [4, 2, 248, 2, "dense"], [2, 1, 256, 1, "moe"]


def answered(right: str) -> Any:
    return {"score": right.count("1") / len(right), "n": len(right), "interval": [0.1, 0.9], "right": right}


def searched(every: bool, chosen: list[Any]) -> Any:
    shapes = [found(MIXED, 0.3, 0.5), found(EXPERTS, 0.5, 0.25, "experts"), found(WIDTH, 0.2, 0.75, "width"),
              found(DENSE, 0.9, 0.0)]  # fmt: skip
    shapes += [found(SINGLE_EXPERT, None, 0.0), found([3, 4, 128, 2, "moe"], 0.1, 0.75)] if every else []
    return {
        "asked": "x", "original": WHOLE, "original_score": 1.0, "shapes": shapes, "chosen": chosen,
        "kept_layers": {"4": [0, 1, 2, 3], "3": [0, 1, 3], "2": [0, 3]},
        "seconds": {"fit/scores": 10.0, "fit/measure": 20.0, "fit/choose": 30.0},
        "models": {} if every else {"refitted": answered("1100"), "recovered": answered("1110")},
    }  # fmt: skip


def test_a_shape_that_was_found_becomes_the_recipe_that_leaves_it(checkout: Path) -> None:
    result = searched(True, MIXED)
    for cut, expected in (("experts", EXPERTS), ("width", WIDTH), ("dense", DENSE), ("best", [3, 4, 128, 2, "moe"])):
        assert fit_cells.shape_of(result, cut) == FitShape(*expected)
    assert fit_cells.shape_of(result, "layers") is None
    for shape in (MIXED, EXPERTS, WIDTH, DENSE, SINGLE_EXPERT):
        cell = CutCell("sorting", 0, 1, "best", FitShape(*shape), fit_cells.numbers_of(FitShape(*shape), result))  # type: ignore[arg-type]
        recipe = load_recipe(cell.recipe, cell.overrides())
        pruning = recipe.pruning
        kept = pruning.layers if isinstance(pruning.layers, list) else [0, 1, 2, 3]
        assert kept == result["kept_layers"][str(shape[0])] and pruning.form == shape[4]
        assert (pruning.keep or 8, pruning.width or 256) == (shape[1], shape[2]) and pruning.fit is None and pruning.refit


def test_a_shape_that_fit_chose_is_not_run_again(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[str] = []
    monkeypatch.setattr(study, "launch", lambda ranks, what, arguments, log: bool(launched.append(log.stem)) or True)
    monkeypatch.setattr(CutCell, "measured", lambda cell, run: {"shape": list(cell.shape or ()), "seconds": {}, "models": {}})
    cells = {cut: CutCell("sorting", "half", 0, cut) for cut in ("experts", "width", "layers")}
    assert "not finished" in str(cells["width"].do("study", [])) and not launched
    folder = checkout / "runs" / "study"
    folder.mkdir(parents=True)
    for every, search in enumerate(cells["width"].searches):
        (folder / f"{search.name}.json").write_text(json.dumps(searched(bool(every), WIDTH)))
    for _ in range(2):
        assert [cell.do("study", []) for cell in cells.values()] == [None] * 3
    assert launched == [cells["experts"].name]
    width, layers = cells["width"].result("study"), cells["layers"].result("study")
    assert width and width["shape"] == WIDTH and width["models"]["recovered"]["right"] == "1110"
    assert layers and layers["shape"] is None


def test_the_tables_say_what_is_finished_and_name_the_rest(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rights = {"experts": ("1000", "1100"), "width": ("1100", "1111"), "dense": ("0000", "0000"), "best": ("1110", "1111")}

    def finished(cell: SearchCell | CutCell, study_name: str) -> Any:
        if (cell.subject, cell.size) != ("arithmetic", "half") or cell.seed > 0:
            return None
        if isinstance(cell, SearchCell):
            return searched(cell.every_shape, MIXED)
        if cell.cut not in rights:
            return {"shape": None, "seconds": {}, "models": {}}
        models = dict(zip(("refitted", "recovered"), map(answered, rights[cell.cut]), strict=True))
        return {"shape": list(fit_cells.shape_of(searched(True, MIXED), cell.cut) or ()), "seconds": {}, "models": models}

    monkeypatch.setattr(SearchCell, "result", finished)
    monkeypatch.setattr(CutCell, "result", finished)
    document = checkout / "study.md"
    document.write_text(f"# Words\n\n{fit_tables.BEGIN}\nold\n{fit_tables.END}\n\nThe end.\n")
    missing = fit_tables.write_tables(document, "study", fit_study.groups_of([0, 1]))
    text = document.read_text()
    assert text.startswith("# Words\n\n") and text.endswith("\n\nThe end.\n") and "old" not in text
    # 0.3 nats where 0.1 is the least, 50 % where 75 % is the most
    assert "in points: 1 or less in the median | 25.00 (at most 25.00; 1 of 12 searches) |" in text
    # 3 of 4 against 4 of 4 by the best single cut, fine-tuned; before that 2 of 4 against 2
    assert "fine-tuned, in points: at least -0.5 everywhere | in 0 of 1; the least -25.00, the median -25.00 |" in text
    assert "refit, in points: at least -0.5 everywhere | in 1 of 1; the least +0.00, the median +0.00 |" in text
    assert "better at ¼" not in text
    assert "| fit | 3 × 6 × 88 | 0.3000 | 50.0 % | 50.0 % (" in text and "| layers only |" not in text
    assert "| the best of all | 3 × 4 × 128 | 0.1000 | 75.0 % | 75.0 % (" in text
    assert "| ½ | experts only | +25.00 (" in text and "| ½ | 4 | 10.0 s | 20.0 s | 30.0 s | 6 | 12.0 s | 0.2000 / 25.0 |" in text
    assert len(missing) == 11 * 7 and "`sorting-quarter-seed1-fit`" in text


def test_the_results_in_the_repository_are_of_the_recipes_that_the_study_runs(checkout: Path) -> None:
    """Otherwise the study would begin anew in every checkout."""
    file = fit_study.RESULTS.file
    results = json.loads(file.read_text()) if file.exists() else {}
    for cell in every_search([0, 1, 2]):
        asked = cell.asked([f"name={cell.run(fit_study.STUDY)}", *cell.overrides()])
        assert results.get(cell.name, {}).get("asked", asked) == asked, cell.name


def test_the_tables_in_the_repository_are_of_the_recipes_that_are_compared(checkout: Path, monkeypatch: Any) -> None:
    """Otherwise shapes would be measured anew in every checkout."""
    monkeypatch.setattr(fit, "DRAWS", 1)
    tables = fit_scores.ScoreTables.load(fit.FILE).tables
    assert tables
    for key, table in tables.items():
        subject, seed = key.split("-seed")
        assert table.asked == fit_scores.asked_of(fit_scores.recipe_of(fit.NAME, subject, int(seed)))
        assert [limit.part for limit in table.limits] == list(fit_scores.PARTS)
        for limit in table.limits:
            exhaustive, found = (fit.outcomes(table, limit)[name] for name in ("exhaustive", "fit"))
            assert exhaustive.nats == exhaustive.points == exhaustive.by_accuracy == 0 <= found.nats


@pytest.mark.launcher
def test_cells_go_through_the_pipeline(checkout: Path) -> None:
    fit, every, *_, best = fit_study.groups_of([0], ["sorting"], ["quarter"])[0]
    assert [cell.do("study", SMALL) for cell in (fit, every)] == [None, None]
    one, all_of_it = fit.result("study"), every.result("study")
    assert one and all_of_it and len(one["shapes"]) <= len(all_of_it["shapes"])
    assert one["chosen"] in [each["shape"] for each in all_of_it["shapes"]]
    assert best.do("study", SMALL) is None
    finished = best.result("study")
    assert finished and len(finished["models"]["recovered"]["right"]) == 4
