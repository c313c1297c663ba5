"""Laws of what is learnt: the task alone is its training split; a mix has its shares, and nothing that the test set asks."""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from conftest import raises
from small_run import TASK, small_folder, small_recipe

from toolkit.moe import load_tokenizer
from toolkit.pipeline.checks import check
from toolkit.pipeline.context import RunContext
from toolkit.pipeline.runner import plan_stages
from toolkit.recipe.schema import Recipe
from toolkit.recovery.training_data import TrainingData, read_training_data
from toolkit.runtime.errors import PollardError
from toolkit.tasks import Encoded, Task, encode

MATHS = {"train": "maths.jsonl", "test": "test.jsonl", "prompt": "{query}", "completion": "{response}"}  # as MetaMathQA's columns
TEXT = "It rained in Odense on the day when the harbour was opened, and {} people stood in it."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with small_folder(tmp_path_factory, "training") as folder:
        asked = [json.loads(line)["question"] for line in (folder / "test.jsonl").read_text().splitlines()]
        own = [{"query": f"What is {i} + {i}?", "response": f"{2 * i}"} for i in range(17)]
        leaks = [{"query": asked[0].upper(), "response": "1"}, {"query": f"Think. {asked[0]}", "response": "1"}]
        (folder / "maths.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in [*own, *leaks, {"query": "?", "response": "!"}])
        )
        (folder / "notes.txt").write_text("\n\n".join([*(TEXT.format(i) for i in range(9)), f"Asked was: {asked[1]}"]))
        (folder / "one.txt").write_text("a")
        yield folder


def recipe(**finetuning: object) -> Recipe:
    return small_recipe(finetuning=finetuning)


def read(**finetuning: object) -> TrainingData:
    return read_training_data(recipe(**finetuning), load_tokenizer("original"), Path("answers"))


@cache
def of_task() -> list[Encoded]:
    """The training split."""
    return [encode(load_tokenizer("original"), example) for example in Task(recipe().task).examples("train")]


def from_task(encoded: Encoded) -> bool:
    return encoded in of_task()


def test_the_task_alone_and_a_mix_of_it_are_its_training_split(folder: Path) -> None:
    split = of_task()
    assert read() == read(data=[{"task": TASK}]) == read(data=[{"task": TASK, "weight": 3}]) == TrainingData(split, 0, 0)
    some = read(examples=5).encoded
    assert some == read(data=[{"task": TASK, "examples": 5}]).encoded and len(some) == 5 and all(map(from_task, some))


def test_other_data_has_its_columns_mapped_and_loses_what_the_test_set_asks(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = read(data=[{"task": MATHS}])
    assert found.overlapping == 2 and len(found.encoded) == 14  # 20 lines, 4 of them dev
    assert (
        "of 16 texts 1 repeat a question of the test set or the dev slice, 1 share 13 words in a row" in capsys.readouterr().out
    )
    text = load_tokenizer("original").decode([token for e in found.encoded for token in e.input_ids])
    assert "What is 3 + 3?" in text and "Think." not in text


def test_plain_text_is_learnt_whole_in_pieces(folder: Path) -> None:
    found = read(data=[{"text": "notes.txt"}], max_length=16)
    assert found.overlapping == 1 and all(e.prompt_length == 0 and 2 <= len(e.input_ids) <= 16 for e in found.encoded)
    assert len(read(data=[{"text": "notes.txt", "examples": 4}]).encoded) == 4


@pytest.mark.parametrize(
    ("weights", "numbers"),
    [((0.5, 0.5), (9, 9)), ((3, 1), (27, 9)), ((1, 3), (3, 9)), ((None, None), (48, 9)), ((0.9, 0.1), (48, 5))],
)
def test_weights_are_shares_of_the_examples_as_many_as_the_scarcest_source_allows(
    folder: Path, weights: tuple, numbers: tuple[int, int]
) -> None:
    data = [{"task": TASK, "weight": weights[0]}, {"text": "notes.txt", "weight": weights[1]}]
    found = read(data=data).encoded
    assert (sum(map(from_task, found)), sum(not from_task(e) for e in found)) == numbers
    assert len({tuple(e.input_ids) for e in found}) == len(found)  # none twice


def test_overlap_of_the_tasks_own_split_is_told_and_in_a_mix_repetitions_go(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = (folder / "train.jsonl").read_text()
    asked = json.loads((folder / "test.jsonl").read_text().splitlines()[0])["question"]
    lines = [{"question": question, "answer": "#### 1"} for question in (asked, f"Think. {asked}")]
    (folder / "leaky.jsonl").write_text(train + "".join(json.dumps(line) + "\n" for line in lines))
    task = {**TASK, "train": "leaky.jsonl", "dev_examples": 1}
    for finetuning, gone, said in (({}, 0, "all stay"), ({"data": [{"task": task}]}, 1, "the repetitions are left out")):
        leaky = small_recipe(task=task, finetuning=finetuning)
        found = read_training_data(leaky, load_tokenizer("original"), Path("answers"))
        assert (len(found.encoded), found.overlapping, found.repeating) == (61 - gone, gone, 1 - gone)
        assert f"1 repeat a question of the test set or the dev slice, 1 share 13 words in a row with one: {said}" in (
            capsys.readouterr().out
        )


@pytest.mark.parametrize(
    ("finetuning", "said"),
    [
        ({"data": [{"task": {**TASK, "train": "nowhere.jsonl"}}]}, "Cannot read nowhere.jsonl"),
        ({"data": [{"text": "nowhere.txt"}]}, "Cannot read nowhere.txt"),
        ({"data": [{"task": {**MATHS, "prompt": "{question}"}}]}, "maths.jsonl, line 1: no field `question`"),
        ({"max_length": 4}, "No example fits into max_length 4: the shortest has"),
    ],
)
def test_data_that_cannot_be_had_is_said_before_the_first_stage(folder: Path, finetuning: dict, said: str) -> None:
    changed = recipe(**finetuning).model_copy(update={"evaluation": small_recipe(evaluation={}).evaluation})
    with pytest.raises(PollardError) as error:
        check(RunContext(changed))
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("finetuning", "code", "named"),
    [
        ({"data": [{"text": "one.txt"}]}, "recovery.no-examples", "one.txt"),
        ({"data": [{"self_generated": True}]}, "recovery.no-own-answers", "answers/0"),
        ({"data": [{"task": TASK, "weight": 1}, {"text": "notes.txt", "weight": 1000}]}, "recovery.share-too-small", "custom"),
    ],
)
def test_nothing_left_to_learn_from_is_an_error(folder: Path, finetuning: dict, code: str, named: str) -> None:
    with raises(code, named):
        read(**finetuning)


def test_examples_that_are_all_too_long_are_an_error(folder: Path) -> None:
    with pytest.raises(PollardError, match="max_length 4"):
        read(max_length=4)


def test_what_is_learnt_belongs_to_the_fingerprints(folder: Path) -> None:
    def fingerprints(**finetuning: object) -> dict[str, str]:
        changed = small_recipe(finetuning=finetuning, evaluation={"off_task": False})
        return {stage.name: stage.fingerprint() for stage in plan_stages(changed)}

    def changed(before: dict[str, str], after: dict[str, str]) -> list[str]:
        return [name for name in ("answers", "teacher", "recover") if before.get(name) != after.get(name)]

    mix = {"data": [{"text": "notes.txt", "weight": 1}, {"self_generated": True, "weight": 1}], "teacher": "original"}
    before = fingerprints(**mix)
    assert list(before)[3:7] == ["evaluate/original", "evaluate/pruned", "answers", "teacher"]
    assert not {"answers", "teacher"} & fingerprints().keys()
    assert changed(before, fingerprints(**mix, trainer={"max_steps": 1})) == ["recover"]
    assert changed(before, fingerprints(**mix, distillation={"weight": 0.3})) == ["recover"]
    assert changed(before, fingerprints(**mix, distillation={"temperature": 1})) == ["teacher", "recover"]
    everything = ["answers", "teacher", "recover"]
    assert changed(before, fingerprints(**mix, examples=7)) == everything
    text = (folder / "notes.txt").read_text()
    (folder / "notes.txt").write_text(text + " More.")
    assert changed(before, fingerprints(**mix)) == everything
    (folder / "notes.txt").write_text(text)
