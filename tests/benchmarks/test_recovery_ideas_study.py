"""Laws of the study of what is learned beyond the examples: cells are recipes of their own, part b knows a hundred examples and
no more, parts are compared with what they have to beat, and the tables say what is finished."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import fine_grained
import pretrain
import recovery_ideas_study
import recovery_ideas_tables
from recovery_ideas_cells import RECIPE, IdeaCell, IdeaResult, few_examples
from recovery_ideas_variants import EQUAL_RANKS, FULLEST, VARIANTS, Variant
from transformers import AutoConfig

from toolkit.recipe.file import load_recipe
from toolkit.recipe.schema import Recipe
from toolkit.tasks import Task

SMALL = ["evaluation.examples=4", "calibration.examples=4", "finetuning.trainer.max_steps=2", "evaluation.max_new_tokens=4"]
BY_NAME = {variant.name: variant for variant in VARIANTS}


def every_cell(seeds: list[int], parts: Sequence[str] = recovery_ideas_study.ALL_PARTS) -> list[IdeaCell]:
    return [cell for group in recovery_ideas_study.groups_of(seeds, parts) for cell in group]


def recipe_of(cell: IdeaCell) -> Recipe:
    return load_recipe(RECIPE, cell.arguments("study", []))


def test_every_cell_is_a_recipe_of_its_own_on_the_test_set(checkout: Path) -> None:
    cells = every_cell([0, 1, 2])
    assert len({cell.name for cell in cells}) == len(cells) == len(VARIANTS) * 3
    asked = {cell.asked(cell.arguments("study", [])) for cell in cells}
    assert len(asked) == len(cells)
    for cell in cells:
        recipe, variant = recipe_of(cell), cell.variant
        assert recipe.seed == cell.seed and recipe.finetuning.trainer["learning_rate"] == pytest.approx(variant.rate)
        assert (recipe.evaluation.split, recipe.evaluation.examples) == ("test", None)
        assert recipe.evaluation.models == list(variant.models) and recipe.finetuning.select_by == "last"
        assert bool(recipe.pruning.refit) == (variant.part == "f")


def test_each_is_compared_with_one_that_there_is() -> None:
    assert set(FULLEST) <= set(BY_NAME)
    without = [variant for variant in VARIANTS if variant.against is None]
    assert {variant.part for variant in without} == set("abcde")
    for variant in VARIANTS:
        other = BY_NAME[variant.against] if variant.against else None
        if other and variant.part == "f":
            assert set(variant.keys) - set(other.keys) == {"pruning.refit=true"} and other.place == variant.place
        elif other:
            assert other.part == variant.part


def test_what_differs_from_what_it_is_compared_with_is_what_the_part_asks_about(checkout: Path) -> None:
    """The losses of part a start from one cut and do as many steps; the gradients of part c do the same training."""
    for variant in VARIANTS:
        if variant.part not in ("a", "c", "e") or not variant.against:
            continue
        own, other = (recipe_of(IdeaCell(each, 0)) for each in (variant, BY_NAME[variant.against]))
        assert (own.pruning, own.task, own.calibration) == (other.pruning, other.task, other.calibration)
        more = own.finetuning.trainer["max_steps"] > other.finetuning.trainer["max_steps"]
        assert more == (variant.slug == "longer") and own.finetuning.method == other.finetuning.method


def test_adapters_that_are_compared_have_as_many_numbers() -> None:
    config = AutoConfig.from_pretrained(ROOT / "data/playground/model")
    hidden, width, kept = config.hidden_size, config.intermediate_size, 4
    expert, attention = (hidden + 2 * width) + (width + hidden), 4 * 2 * hidden  # numbers per rank
    each, shared = EQUAL_RANKS["each"], EQUAL_RANKS["shared"]
    assert each * (kept * expert + attention) == shared * (expert + attention)


def test_few_examples_are_all_that_their_recipes_know_of_the_task(checkout: Path) -> None:
    files = [few_examples(seed) for seed in (0, 1)]
    assert files[0].read_text() != files[1].read_text()
    everything = (ROOT / "data/playground/arithmetic/train.jsonl").read_text().splitlines()
    assert all(set(file.read_text().splitlines()) < set(everything) for file in files)
    for cell in every_cell([1]):
        if cell.variant.place == "few":
            recipe = recipe_of(cell)
            tasks = [recipe.task, *(source.task for source in recipe.finetuning.data or () if source.task)]
            assert {task.train for task in tasks} == {str(files[1])} and recipe.calibration.examples == 100
            assert all(len(Task(task).examples("train")) == 100 for task in tasks)
        else:
            assert str(files[1]) not in json.dumps(recipe_of(cell).model_dump(mode="json"))


def test_groups_share_no_directory_and_what_needs_a_model_comes_behind_it(checkout: Path) -> None:
    groups = recovery_ideas_study.groups_of([4, 5], recovery_ideas_study.ALL_PARTS)
    runs = [{cell.run("study") for cell in group} for group in groups]
    assert sum(map(len, runs)) == len(set().union(*runs))
    assert [cell.seed for group in groups for cell in group] == [4] * len(VARIANTS) + [5] * len(VARIANTS)
    for group in groups:
        arguments = [cell.arguments("study", []) for cell in group]
        for at, own in enumerate(arguments):
            needed = [text for text in own if "-d-first-" in text and not text.startswith("name=")]
            before = {Path("runs", said[0].removeprefix("name="), "recovered") for said in arguments[:at]}
            assert all(any(str(path) in text for path in before) for text in needed)


def test_parts_are_chosen_by_their_letters() -> None:
    assert recovery_ideas_study.letters("a,c") == ["a", "c"]
    assert {cell.variant.part for cell in every_cell([0], ["a", "c"])} == {"a", "c"}
    with pytest.raises(ValueError, match="x"):
        recovery_ideas_study.letters("a,x")


def result(*right: str, subjects: tuple[str, ...] = ("arithmetic",), **roles: str) -> IdeaResult:
    models = {"recovered": dict(zip(subjects, right, strict=True))} | {role: {subjects[0]: text} for role, text in roles.items()}
    return {"seconds": {"teacher": 10.0, "recover": 50.0}, "steps": 300, "examples": 100, "models": models}


MADE_UP = {
    ("b-everything-teacher", 0): result("1111", original="1111", pruned="0000"),
    ("b-few-sft", 0): result("1000"),
    ("b-few-questions", 0): result("1111"),
    ("b-few-questions", 1): result("0000"),
    ("d-first-alone", 0): result("11", "00", subjects=("arithmetic", "sorting")),
    ("d-continued-full", 0): result("00", "11", subjects=("arithmetic", "sorting")),
    ("d-grown-new", 0): result("11", "10", subjects=("arithmetic", "sorting")),
    ("e-experts4-shared", 0): result("1100"),
    ("f-experts4-each-refit", 0): result("1110"),
}


def test_the_tables_say_what_is_finished_and_name_the_rest(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(IdeaCell, "result", lambda cell, study: MADE_UP.get((cell.variant.name, cell.seed)))
    document, cells = checkout / "study.md", every_cell([0, 1])
    other = "<!-- tables: written by benchmarks/recovery_study.py -->\n\nfirst\n\n<!-- end of tables -->\n"
    begin, end = recovery_ideas_tables.BEGIN, recovery_ideas_tables.END
    document.write_text(f"# Words\n\n{other}\nMore.\n\n{begin}\nold\n{end}\n\nThe end.\n")
    missing = recovery_ideas_tables.write_tables(document, "study", cells)
    text = document.read_text()
    assert text.startswith(f"# Words\n\n{other}") and text.endswith("\n\nThe end.\n") and "old" not in text
    # Compared with the ceiling by the seed that both have
    assert "Within 2 points of the ceiling: … and 2,000 questions of the original (+0.00)." in text

    def row(variant: Variant) -> list[str]:
        line = next(line for line in text.splitlines() if line.startswith(f"| {variant.title} |"))
        return [part.strip() for part in line.strip("|").split("|")]

    few = row(BY_NAME["b-few-sft"])
    assert few[1].startswith("25.0 %") and few[2] == "1" and few[3].startswith("-75.00") and few[-2:] == ["300", "1 min 0 s"]
    assert row(BY_NAME["b-few-questions"])[1].startswith("50.0 %")
    assert "| original | 100.0 %" in text and "pruned, before | 0.0 %" in text
    grown = row(BY_NAME["d-grown-new"])
    assert [part.split()[0] for part in grown[1:]] == ["100.0", "50.0", "1", "+100.00", "-50.00", "300", "1"]
    assert "### (c)" not in text and len(missing) == len(cells) - len(MADE_UP)
    assert "`b-few-sft` with seed 1" in text and "`b-few-questions`" not in text


def test_the_results_in_the_repository_are_of_the_recipes_that_the_study_runs(checkout: Path) -> None:
    """Otherwise the study would begin anew in every checkout."""
    file = recovery_ideas_study.RESULTS.file
    found = json.loads(file.read_text()) if file.exists() else {}
    for cell in every_cell([0, 1, 2]):
        asked = cell.asked(cell.arguments(recovery_ideas_study.STUDY, []))
        assert found.get(cell.name, {}).get("asked", asked) == asked, cell.name


def test_a_pretraining_that_was_ended_goes_on_and_is_then_done(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain, "ROWS", 1)
    monkeypatch.setattr(pretrain, "LENGTH", 16)
    asked = replace(fine_grained.FINE_GRAINED, experts=4, active=2, width=8)
    assert not fine_grained.finished(asked, 50)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pretrain, "CHECKPOINT_SECONDS", -1)  # after every step
        patch.setattr(pretrain.os, "replace", stop_at_second_call(pretrain.os.replace))
        fine_grained.make(asked, steps=50)
    assert asked.resume.exists() and not fine_grained.finished(asked, 50)
    fine_grained.make(asked, steps=50)
    assert fine_grained.finished(asked, 50) and not asked.resume.exists()
    resumed = (asked.model / "model.safetensors").read_bytes()
    asked.log.unlink()
    fine_grained.make(asked, steps=50)
    assert (asked.model / "model.safetensors").read_bytes() == resumed


def stop_at_second_call(rename: Callable[[Path, Path], None]) -> Callable[[Path, Path], None]:
    calls: list[Path] = []

    def stopping(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == 2:
            raise KeyboardInterrupt
        rename(source, target)

    return stopping


@pytest.mark.launcher
def test_a_cell_goes_through_the_pipeline(checkout: Path) -> None:
    cell = IdeaCell(BY_NAME["a-layers3-kl"], 0)
    assert cell.do("study", ["finetuning.examples=8", *SMALL]) is None
    found = cell.result("study")
    assert found and list(found["models"]) == ["recovered"] and len(found["models"]["recovered"]["arithmetic"]) == 4
    assert found["seconds"]["teacher"] > 0 and (found["steps"], found["examples"]) == (2, 8)
