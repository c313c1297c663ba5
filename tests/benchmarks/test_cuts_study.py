"""Laws of the study of cuts: cells are recipes, what ends is kept and not repeated, ranks and differences are those of the
definition."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import cuts_cells
import cuts_layers
import cuts_study
import cuts_tables
import study
from cuts_cells import SweepCell, TrainedCell
from cuts_layers import LayerCell

from toolkit.pipeline.sweep_grid import load_grid
from toolkit.recipe.file import load_recipe

SMALL = ["evaluation.examples=4", "calibration.examples=4", "finetuning.trainer.max_steps=2", "evaluation.max_new_tokens=4"]


def test_every_cell_is_a_recipe_of_its_own_on_the_dev_slice(checkout: Path) -> None:
    cells = [cell for group in cuts_study.groups_of([0, 1, 2]) for cell in group]
    assert len({(cell.subject, cell.criterion, cell.width, cell.seed) for cell in cells}) == 2 * 5 * 3 * 3 == len(cells)
    assert len({cell.name for cell in cells}) == len(cells)
    for cell in cells:
        recipe = load_recipe(cuts_cells.RECIPE, cell.overrides())
        assert (recipe.pruning.width, recipe.pruning.width_criterion, recipe.seed) == (cell.width, cell.criterion, cell.seed)
        assert recipe.pruning.keep is None and recipe.task.name == f"playground/{cell.subject}"
        assert (recipe.evaluation.split, recipe.evaluation.examples, recipe.finetuning.select_by) == ("dev", None, "last")
    assert {(cell.subject, cell.seed) for cell in cells if cell.control} == {
        (s, i) for s in cuts_cells.SUBJECTS for i in range(3)
    }


def test_a_sweep_masks_every_criterion_at_every_width(checkout: Path) -> None:
    grid = load_grid(cuts_cells.RECIPE, SweepCell("sorting", 1).overrides())
    found = {(cell.recipe.pruning.width_criterion, cell.recipe.pruning.width) for cell in grid.cells}
    assert len(found) == len(grid.cells) == 15 and {cell.seed for cell in grid.cells} == {1}


def test_groups_that_run_at_once_share_no_directory_and_the_first_seed_comes_first() -> None:
    groups = cuts_study.groups_of([4, 5])
    runs = [{cell.run("study") for cell in group} for group in groups]
    assert all(len(own) == 1 for own in runs) and len(set().union(*runs)) == len(runs)
    assert [group[0].seed for group in groups] == [4] * 6 + [5] * 6


def test_what_is_finished_is_not_repeated_and_a_changed_recipe_is(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[str] = []

    def launch(ranks: int, what: list[str], arguments: list[str], log: Path) -> bool:
        launched.append(log.stem)
        return "taylor" not in log.stem

    monkeypatch.setattr(study, "launch", launch)
    monkeypatch.setattr(TrainedCell, "measured", lambda cell, run: {"seconds": 1.0, "models": {}})
    done, fails = TrainedCell("sorting", 0, "energy", 64), TrainedCell("sorting", 0, "taylor", 64)
    assert done.do("study", []) is None and str(fails.do("study", [])).startswith(fails.name)
    assert done.result("study") and fails.result("study") is None
    assert done.do("study", []) is None and fails.do("study", []) is not None
    assert launched == [done.name, fails.name, fails.name]
    done.do("study", ["calibration.examples=16"])
    assert launched[3:] == [done.name]


def answers(right: str, **rest: Any) -> Any:
    return {"score": right.count("1") / len(right), "n": len(right), "interval": [0.2, 0.9], "right": right, **rest}


def test_the_default_is_paired_with_the_others_seed_by_seed(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def masked(right: str, criterion: str | None, width: int | None, parameters: int) -> Any:
        return answers(
            right, criterion=criterion, width=width, loss=0.5, tokens=8, parameters=parameters, active_parameters=parameters
        )

    def swept(cell: SweepCell, study: str) -> Any:
        if cell.subject == "sorting":
            return None
        right = "1100" if cell.seed == 0 else "0000"
        return {"models": [masked("1111", None, None, 100), masked(right, "energy", 64, 25), masked("0100", "random", 64, 25)]}

    def trained(cell: TrainedCell, study: str) -> Any:
        if (cell.subject, cell.width, cell.seed) != ("arithmetic", 64, 0) or cell.criterion not in ("energy", "random"):
            return None
        if cell.criterion == "energy":
            return {"seconds": 1.0, "models": {"recovered": answers("1110"), "control": answers("1000")}}
        return {"seconds": 1.0, "models": {"recovered": answers("1100")}}

    monkeypatch.setattr(SweepCell, "result", swept)
    monkeypatch.setattr(TrainedCell, "result", trained)
    cells = [cell for group in cuts_study.groups_of([0, 1]) for cell in group]
    document, sweeps = (
        checkout / "study.md",
        [SweepCell(subject, seed) for seed in (0, 1) for subject in ("arithmetic", "sorting")],
    )
    document.write_text(f"# Words\n\n{cuts_tables.BEGIN}\nold\n{cuts_tables.END}\n\nMore words.\n")
    missing = cuts_tables.write_tables(document, "study", sweeps, cells, [LayerCell("sorting", (0, 1))])
    text = document.read_text()
    assert text.startswith("# Words\n") and text.endswith("\n\nMore words.\n") and "old" not in text
    assert "| 64 | 25 (25 %) | 25 (25 %) |" in text
    assert "| 64 | `energy` | 50.0 % (20.0–90.0 %) | 0.0 % (20.0–90.0 %) | 25.0 % | 0.5000 |" in text
    # Over both seeds the default alone is right once, the other alone once; fine-tuned, only the first seed is there
    assert "| 64 | `random` | +0.00 (" in text and "| 64 | `energy` | 75.0 % (20.0–90.0 %) | 75.0 % | +50.00 (" in text
    assert "| 64 | `random` | 50.0 % (20.0–90.0 %) | 50.0 % | +25.00 (" in text and text.count(" | +25.00 (") == 2
    assert len(missing) == 2 + (len(cells) - 2) + 1 and "layers-sorting" in missing and "`masked-sorting-seed1`" in text
    assert "`arithmetic-fisher-width64-seed0`, " in text and ", everything fine-tuned to width 192 with seed 1." in text


def test_ranks_count_from_the_best_and_equals_share_them() -> None:
    sets = {key: {"loss": value, "score": score} for key, value, score in (("0", 1.0, 0.5), ("1", 3.0, 0.5), ("0,1", 2.0, 0.0))}
    assert [cuts_tables._loss_rank(key, sets) for key in sets] == ["1 of 3", "3 of 3", "2 of 3"]  # type: ignore[arg-type]
    assert [cuts_tables._score_rank(key, sets) for key in sets] == ["=1 of 3", "=1 of 3", "3 of 3"]  # type: ignore[arg-type]


def test_all_sets_of_layers_are_measured_and_dev_loss_chooses_greedily_among_them(checkout: Path) -> None:
    cell = LayerCell("sorting", (0,))
    cell.do("study", SMALL)
    found = cell.result("study")
    assert found and len(found["sets"]) == 15 and len({model["parameters"] for model in found["sets"].values()}) == 4
    kept = {(choice["criterion"], len(choice["kept"])): choice["kept"] for choice in found["choices"]}
    assert set(kept) == {(name, number) for name in cuts_tables.LAYER_CRITERIA for number in (1, 2, 3)}
    losses = {tuple(map(int, key.split(","))): model["loss"] for key, model in found["sets"].items()}
    assert losses[tuple(kept["dev_loss", 3])] == min(loss for key, loss in losses.items() if len(key) == 3)
    assert kept["top", 2] == [0, 3] and set(kept["dev_loss", 1]) < set(kept["dev_loss", 2]) < set(kept["dev_loss", 3])
    text = "\n".join(cuts_tables._layer_tables("sorting", found))
    assert f"| 3 | `top` | {', '.join(map(str, kept['top', 3]))} | " in text and "| 3 | `dev_loss` | " in text


def test_a_set_of_layers_that_is_measured_is_not_measured_again(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell, asked = LayerCell("sorting", (0,)), []

    def measure(*arguments: Any) -> Any:
        asked.append(arguments[-1])
        if len(asked) == 3:
            raise KeyboardInterrupt
        return {"parameters": 1, "active_parameters": 1, "loss": 1.0, "score": 0.5, "n": 4, "interval": [0.0, 1.0]}

    monkeypatch.setattr(LayerCell, "_with_layers", measure)
    with pytest.raises(KeyboardInterrupt):
        cell.do("study", SMALL)
    assert cell.result("study") is None
    cell.do("study", SMALL)
    assert len(asked) == 15 + 1 and len(set(asked)) == 15 and cell.result("study")
    assert cuts_layers.sets_of_layers(2) == [(0, 1), (0,), (1,)]


@pytest.mark.launcher
def test_a_cell_is_narrowed_and_fine_tuned_through_the_pipeline(checkout: Path) -> None:
    cell = TrainedCell("sorting", 0, "energy", 64)
    assert cell.do("study", SMALL) is None
    found = cell.result("study")
    assert found and list(found["models"]) == ["recovered"] and len(found["models"]["recovered"]["right"]) == 4


def test_the_results_in_the_repository_are_of_the_recipes_that_the_study_runs(checkout: Path) -> None:
    """Otherwise the study would begin anew in every checkout."""
    found = json.loads(cuts_study.RESULTS.file.read_text())
    cells = [cell for group in cuts_study.groups_of([0, 1, 2]) for cell in group]
    for cell in cells:
        asked = cell.asked([f"name={cell.run(cuts_study.STUDY)}", *cell.overrides()])
        assert found.get(cell.name, {}).get("asked", asked) == asked, cell.name
    assert {cell.name for cell in cells} <= found.keys()
