import importlib.util
import itertools
import json
import re
from typing import Any

import pytest
from conftest import PLAYGROUND

spec = importlib.util.spec_from_file_location("playground_generate", PLAYGROUND / "generate.py")
generate: Any = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
spec.loader.exec_module(generate)  # type: ignore[union-attr]

SPLITS = ("train", "test")
STEP = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")


def committed(task: str, split: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (PLAYGROUND / task / f"{split}.jsonl").read_text().splitlines()]


def result_of(answer: str) -> str:
    """What follows the one `####`."""
    steps, mark, result = answer.partition("#### ")
    assert mark and result and "####" not in steps + result
    return result


def fact_in(question: str) -> tuple[str, str]:
    """Which person and which kind of fact a question is about, from its wording alone."""
    known = {
        wording.format(p=person): (person, kind)
        for kind, (_, wordings) in generate.FACTS.items()
        for wording, person in itertools.product(wordings, generate.PEOPLE)
    }
    (found,) = {fact for wording, fact in known.items() if question.endswith(wording)}
    return found


@pytest.mark.parametrize("task", generate.TASKS)
def test_a_seed_fixes_the_stream_and_another_seed_changes_it(task: str) -> None:
    def first(seed: int) -> list[Any]:
        return list(itertools.islice(generate.stream(task, "train", seed), 50))

    assert first(0) == first(0)
    assert first(0) != first(1)


# Names and things are decoration: not even the same numbers in the same template may be in both splits.
@pytest.mark.parametrize("task", generate.TASKS)
def test_train_and_test_share_no_key_however_much_is_drawn(task: str) -> None:
    train, test = ({e.key for e in itertools.islice(generate.stream(task, split, 7), 2000)} for split in SPLITS)
    assert train and test and not train & test


@pytest.mark.parametrize("task", generate.TASKS)
def test_the_committed_files_are_what_the_generator_writes_and_share_no_key(task: str) -> None:
    sizes = generate.SIZES if task == "arithmetic" else generate.SMALL_SIZES
    keys = {}
    for split in SPLITS:
        examples = generate.distinct(task, split, sizes[split])
        assert committed(task, split) == [{"question": e.question, "answer": e.answer} for e in examples]
        keys[split] = {e.key for e in examples}
        assert len(keys[split]) == len(examples)
    assert not keys["train"] & keys["test"]


@pytest.mark.parametrize("task", generate.TASKS)
def test_no_committed_test_question_is_in_train(task: str) -> None:
    train, test = ([line["question"] for line in committed(task, split)] for split in SPLITS)
    assert not set(train) & set(test)


@pytest.mark.parametrize("task", ["arithmetic", "code"])
@pytest.mark.parametrize("split", SPLITS)
def test_every_step_is_right_and_the_last_is_the_result(task: str, split: str) -> None:
    for line in committed(task, split):
        steps = STEP.findall(line["answer"])
        assert len(steps) >= 2
        assert all(eval(f"{a} {sign} {b}") == int(result) for a, sign, b, result in steps)
        assert result_of(line["answer"]) == steps[-1][-1]


@pytest.mark.parametrize("split", SPLITS)
def test_a_program_really_prints_the_answer(split: str) -> None:
    for line in committed("code", split):
        *program, last = line["question"].removeprefix("Run: ").split("; ")
        values: dict[str, int] = {}
        exec("\n".join(program), {}, values)
        assert str(values[last.removeprefix("print(").removesuffix(")")]) == result_of(line["answer"])


@pytest.mark.parametrize("split", SPLITS)
def test_words_are_sorted_and_letters_reversed(split: str) -> None:
    for line in committed("sorting", split):
        assert result_of(line["answer"]).split() == sorted(line["question"].removeprefix("Sort these words: ").split())
    for line in committed("reversing", split):
        assert result_of(line["answer"]).split() == line["question"].removeprefix("Reverse: ").split()[::-1]


@pytest.mark.parametrize("split", SPLITS)
def test_the_tallest_follows_from_the_claims(split: str) -> None:
    for line in committed("logic", split):
        order = line["answer"].partition(".")[0].split(" > ")
        claims = re.findall(r"(\w+) is (taller|shorter) than (\w+)\.", line["question"])
        claimed = {(a, b) if word == "taller" else (b, a) for a, word, b in claims}
        assert claimed == set(itertools.pairwise(order))
        assert result_of(line["answer"]) == order[0 if "tallest" in line["question"] else -1]


# The test asks known facts in other words: there must be one truth, whatever the wording and the split.
def test_facts_have_a_constant_truth_that_train_knows() -> None:
    truths = {
        split: {(fact_in(line["question"]), result_of(line["answer"])) for line in committed("facts", split)} for split in SPLITS
    }
    assert len(dict(truths["train"])) == len(truths["train"]) == len(generate.PEOPLE) * len(generate.FACTS)
    assert truths["test"] <= truths["train"]
    assert all(answer == generate.fact_of(*fact) for fact, answer in truths["train"])


@pytest.mark.parametrize(
    ("steps", "values", "worked"),
    [
        ("a*b r-c", {"a": 6, "b": 4, "c": 9}, [("6 * 4", 24), ("24 - 9", 15)]),
        ("a*b c*d q+r", {"a": 2, "b": 3, "c": 4, "d": 5}, [("2 * 3", 6), ("4 * 5", 20), ("6 + 20", 26)]),
        ("a/2 a+r", {"a": 8}, [("8 / 2", 4), ("8 + 4", 12)]),
        ("a/b", {"a": 7, "b": 2}, None),  # no whole number
        ("a-b", {"a": 2, "b": 2}, None),  # below 1
        ("a*b", {"a": 10, "b": 10}, None),  # above 99
    ],
)
def test_steps_are_worked_out_within_whole_numbers_to_99(steps: str, values: dict[str, int], worked: Any) -> None:
    assert generate.work_out(steps, values) == worked
