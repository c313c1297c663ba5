"""Laws of what is observed: a mix of one source is that source; each source counts by its share; own answers are right ones."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import PLAYGROUND
from small_run import TASK, small_folder, small_recipe

from toolkit.cuts.statistics import ExpertStatistics
from toolkit.moe import load_model, load_tokenizer
from toolkit.pipeline.calibration_data import read_source, right_answers
from toolkit.pipeline.runner import run
from toolkit.recipe.data import TaskRecipe
from toolkit.recipe.schema import Recipe
from toolkit.recipe.sources import SourceRecipe
from toolkit.runtime.errors import PollardError
from toolkit.selection import CRITERIA, select
from toolkit.tasks import DataCache, Scorer, Task, encode

BLOCK = "model.layers.0.mlp"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with small_folder(tmp_path_factory, "data") as folder:
        (folder / "notes.jsonl").write_text("".join(json.dumps({"text": f"Note {i}: it rained."}) + "\n" for i in range(9)))
        (folder / "empty.txt").write_text("\n \n")
        yield folder


def calibrated(name: str, reconstruct: bool = False, **calibration: object) -> ExpertStatistics:
    changes = {f"calibration__{key}": value for key, value in calibration.items()}
    if reconstruct:
        changes["pruning__criterion"] = "reconstruction"
    return ExpertStatistics.load(run(small_recipe(name=name, **changes), until="calibrate").statistics)


@pytest.mark.parametrize("weight", [None, 0.3])
def test_a_mix_of_one_source_is_that_source(folder: Path, weight: float | None) -> None:
    task = calibrated("task")
    mix = calibrated(f"mix-{weight}", data=[{"task": TASK, "examples": 8, "weight": weight}])
    assert mix.vectors.keys() == task.vectors.keys() and not mix.about.sources
    assert all(torch.equal(mix.vectors[name], task.vectors[name]) for name in task.vectors)
    for criterion in CRITERIA.keys() - {"reconstruction"}:
        assert select(mix, criterion, 4).blocks == select(task, criterion, 4).blocks


def test_sources_count_by_their_share_and_all_tokens_are_still_counted(folder: Path) -> None:
    alone = [calibrated("task"), calibrated("text", data=[{"text": "notes.jsonl", "examples": 4}])]
    sources = [{"task": TASK, "examples": 8, "weight": 1}, {"text": "notes.jsonl", "examples": 4, "weight": 3}]
    mix = calibrated("both", data=sources)
    assert [(source.name, source.share) for source in mix.about.sources] == [("custom", 0.25), ("notes.jsonl", 0.75)]
    assert mix.about.examples == 12
    assert mix.get(BLOCK, "count").sum() == pytest.approx(2 * sum(mix.about.blocks[BLOCK].tokens.values()))
    use = [part.get(BLOCK, "count") / part.get(BLOCK, "count").sum() for part in alone]
    torch.testing.assert_close(mix.get(BLOCK, "count") / mix.get(BLOCK, "count").sum(), 0.25 * use[0] + 0.75 * use[1])


def test_subsets_of_a_mix_are_searched_on_all_its_batches_together(folder: Path) -> None:
    data = [{"task": TASK, "examples": 8}, {"text": "notes.jsonl", "examples": 4}]
    recipe = small_recipe(name="search-mix", calibration__data=data, pruning__criterion="reconstruction")
    directory = run(recipe, until="select")
    mix = ExpertStatistics.load(directory.statistics)
    found = mix.about.reconstruction["layerwise"][BLOCK]
    assert found.tokens == sum(mix.about.blocks[BLOCK].tokens.values())
    # A loss is a sum over batches: two of the task, one of notes
    alone = [
        calibrated("search-task", data=data[:1], reconstruct=True),
        calibrated("search-notes", data=data[1:], reconstruct=True),
    ]
    parts = [part.about.reconstruction["layerwise"][BLOCK].keep[4].table for part in alone]
    for subset, loss in found.keep[4].table.items():
        assert loss == pytest.approx(sum(part[subset] for part in parts), rel=1e-5)


def test_without_weights_sources_count_by_their_examples(folder: Path) -> None:
    mix = calibrated("examples", data=[{"task": TASK, "examples": 6}, {"text": "notes.jsonl", "examples": 2}])
    assert [source.share for source in mix.about.sources] == [0.75, 0.25]


def redone(recipe: Recipe, capsys: pytest.CaptureFixture[str]) -> bool:
    capsys.readouterr()
    run(recipe, until="calibrate")
    return "done already, skipped" not in capsys.readouterr().out


def test_a_changed_source_is_watched_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = small_recipe(name="changed", calibration__data=[{"text": "notes.jsonl", "examples": 2}])
    assert redone(recipe, capsys) and not redone(recipe, capsys)
    before = (folder / "notes.jsonl").read_text()
    (folder / "notes.jsonl").write_text(before.replace("rained", "snowed"))
    assert redone(recipe, capsys)
    (folder / "notes.jsonl").write_text(before)
    other = [{"text": "notes.jsonl", "examples": 2}, {"task": TASK, "examples": 2}]
    assert redone(small_recipe(name="changed", calibration__data=other), capsys)


@pytest.mark.parametrize(
    ("calibration", "said"),
    [
        ({"data": [{"text": "nowhere.txt"}]}, "Cannot read nowhere.txt"),
        ({"data": [{"text": "nowhere.jsonl"}]}, "Cannot read nowhere.jsonl"),
        ({"data": [{"text": "empty.txt"}]}, "empty.txt is empty: it holds no text"),
        ({"data": [{"text": "train.jsonl"}]}, "train.jsonl, line 1: plain text is read from the field `text`"),
        ({"data": [{"text": "notes.doc"}]}, "notes.doc is no text file"),
        ({"data": [{"task": {**TASK, "train": "nowhere.jsonl"}}]}, "Cannot read nowhere.jsonl"),
        ({"data": [{"text": "notes.jsonl"}], "self_generated": True}, "calibration.data holds only plain text"),
    ],
)
def test_data_that_cannot_be_had_is_said_before_the_first_stage(
    folder: Path, calibration: dict, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(PollardError) as error:
        calibrated("wrong", **calibration)
    assert said in str(error.value)
    assert not capsys.readouterr().out


def playground(**calibration: object) -> Recipe:
    values = {"examples": 12, "max_length": 256, "self_generated": True} | calibration
    return Recipe.model_validate(
        {"name": "own", "model": str(PLAYGROUND / "model"), "task": "playground/arithmetic", "calibration": values}
        | {"evaluation": {"max_new_tokens": 64}}
    )


def test_the_models_own_answers_are_kept_where_they_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, source = playground(), SourceRecipe(task=TaskRecipe(name="playground/arithmetic"))
    tokenizer, model = load_tokenizer(recipe.model.path), load_model(recipe.model.path)
    asked = Task(recipe.task).examples("train")[:12]
    kept = right_answers(model, tokenizer, Task(recipe.task), asked, recipe)
    given = {tuple(encode(tokenizer, example).input_ids): example for example in asked}
    assert len(kept) >= 10 and all(tuple(e.input_ids) in given for e in kept)  # a model of 99 % writes what it was taught
    # The first 5 answers are called wrong: exactly they are missing
    wrong = {example.gold for example in asked[:5]}
    task = Task(recipe.task)
    task.scorer = Scorer(lambda prediction, gold: gold not in wrong, lambda prediction, gold: False)
    assert len(right_answers(model, tokenizer, task, asked, recipe)) == sum(example.gold not in wrong for example in asked)
    found = read_source(source, recipe, tokenizer, DataCache(), model)
    assert f"the model's own answers, {len(found.encoded)} of 12 kept" in found.note
    assert (found.not_kept, found.left_out) == (12 - len(found.encoded), 0)


def test_no_right_answer_is_an_error(folder: Path) -> None:
    with pytest.raises(PollardError, match="answered none of 8 training prompts of custom rightly within 4 new tokens"):
        calibrated("none", self_generated=True)
