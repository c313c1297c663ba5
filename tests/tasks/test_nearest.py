"""Laws of the nearest examples: BM25 over the training questions, never the question itself, one procedure for every split."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import PLAYGROUND, ROOT, raises
from pydantic import ValidationError
from transformers import AutoTokenizer

from toolkit.evaluation import Decoding
from toolkit.evaluation.evaluate import requests_of
from toolkit.recipe.data import TaskRecipe
from toolkit.tasks import Example, Split, Task, encode_prompt
from toolkit.tasks.nearest import NearestExamples
from toolkit.tasks.question_words import words_in

SPLITS: tuple[Split, ...] = ("train", "dev", "test")
FRUITS = [
    "How many apples does Mia have?",
    "How many apples are left?",
    "Who ate the pears?",
    "How many apples does Tom have?",
    "how many APPLES does Mia have",  # the first one again, in other letters
    "Where do pears grow?",
    "How many plums does Ann have?",
]


def example(question: str, answer: str = "a") -> Example:
    return Example(({"role": "user", "content": question},), answer, answer)


def text_of(example: Example) -> str:
    return str(example.messages[-1]["content"])


def nearest(number: int, pool: list[str] = FRUITS) -> NearestExamples:
    return NearestExamples([example(question, str(n)) for n, question in enumerate(pool)], number, text_of)


def by_hand(question: str, pool: list[str]) -> list[float]:
    """BM25 as Lucene has it, k1 = 1.5 and b = 0.75."""
    texts, mean = [words_in(text) for text in pool], sum(len(words_in(text)) for text in pool) / len(pool)
    scores = []
    for text in texts:
        score = 0.0
        for word in words_in(question):
            having, count = sum(word in other for other in texts), text.count(word)
            rarity = math.log(1 + (len(texts) - having + 0.5) / (having + 0.5))
            score += rarity * count / (count + 1.5 * (1 - 0.75 + 0.75 * len(text) / mean))
        scores.append(score)
    return scores


@pytest.mark.parametrize(
    "question", ["How many pears does Tom have left?", "Who ate apples, apples?", "How many apples are left?"]
)
def test_they_are_those_of_the_highest_bm25(question: str) -> None:
    pool = [text for text in FRUITS if text != FRUITS[4]]  # a repeated question counts once
    scores = by_hand(question, pool)
    others = [n for n in range(len(pool)) if words_in(pool[n]) != words_in(question)]
    wanted = sorted(others, key=lambda n: (-round(scores[n], 5), n))[:3]
    assert [text_of(shot) for shot in nearest(3).of(example(question))] == [pool[n] for n in reversed(wanted)]


def test_a_question_never_sees_itself_nor_its_own_words() -> None:
    for question in FRUITS:
        shown = nearest(5).of(example(question))
        assert len(shown) == 5 and words_in(question) not in {words_in(text_of(shot)) for shot in shown}
        assert len({words_in(text_of(shot)) for shot in shown}) == 5


def test_of_equally_near_ones_the_first_counts_and_of_a_repeated_one_the_first_answer() -> None:
    unknown = nearest(3).of(example("zzz"))  # it shares no word with any
    assert [shot.completion for shot in unknown] == ["2", "1", "0"]
    (shot,) = nearest(1).of(example("How many apples does Mia really have?"))
    assert shot.completion == "0"


def test_a_pool_of_too_few_different_questions_is_refused() -> None:
    nearest(5)
    with raises("task.shots", "6 nearest", "6 different"):
        nearest(6)


def test_the_package_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with raises("task.no-bm25s", "nearest-shots"):
        nearest(2)


def task_of(folder: Path, train: list[str], test: list[str], **recipe: Any) -> Task:
    for name, texts in (("train", train), ("test", test)):
        rows = [{"q": text, "a": f"{name} {n}"} for n, text in enumerate(texts)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {name: str(folder / f"{name}.jsonl") for name in ("train", "test")}
    return Task(TaskRecipe(prompt="Q: {q}\nAnswer briefly.", completion="{a}", **(files | recipe)))


COUNTED = [f"{word} {number}?" for number in range(10) for word in ("one two", "one three", "two three")]


# The law that makes training worth something: what is learnt is answering prompts as they will be asked.
def test_a_question_has_the_same_prompt_in_training_and_in_the_test(tmp_path: Path) -> None:
    task = task_of(tmp_path, COUNTED, COUNTED, shots={"nearest": 3})
    tokenizer = AutoTokenizer.from_pretrained(PLAYGROUND / "model")
    asked = {text_of(example): encode_prompt(tokenizer, example) for example in task.examples("test")}
    learnt = {text_of(example): encode_prompt(tokenizer, example) for example in task.examples("train")}
    assert len(learnt) == 24 and learnt.items() <= asked.items()
    assert all(len(example.shots) == 3 for split in SPLITS for example in task.examples(split))


# Whoever writes the answers, a server that renders the chat itself included.
def test_what_a_server_is_asked_has_them_too(tmp_path: Path) -> None:
    task = task_of(tmp_path, COUNTED, COUNTED, shots={"nearest": 2})
    requests = requests_of(AutoTokenizer.from_pretrained(PLAYGROUND / "model"), task.examples("test"), Decoding())
    for request, example in zip(requests, task.examples("test"), strict=True):
        shown = [text for shot in example.shots for text in (text_of(shot), shot.completion)]
        assert [message["content"] for message in request.messages] == [*shown, text_of(example)]


def test_all_training_examples_stay_and_none_of_dev_or_test_is_shown(tmp_path: Path) -> None:
    task, plain = (task_of(tmp_path, COUNTED, ["one two?"], **keys) for keys in ({"shots": {"nearest": 2}}, {}))
    train = {text_of(example) for example in plain.examples("train")}
    assert {text_of(example) for example in task.examples("train")} == train
    for split in SPLITS:
        assert {text_of(shot) for example in task.examples(split) for shot in example.shots} <= train
    assert task.known_size("train") is None


def test_fixed_words_of_the_template_count_for_nothing(tmp_path: Path) -> None:
    questions = [*("briefly answer q" for _ in range(6)), "alpha beta", "gamma delta", "epsilon"]
    task = task_of(tmp_path, questions, ["beta gamma"], shots={"nearest": 2}, dev_examples=1)
    shown = {text_of(shot) for shot in task.examples("test")[0].shots}
    assert "Q: briefly answer q\nAnswer briefly." not in shown


# Ranks are processes of their own, in which sets have other orders.
@pytest.mark.launcher
def test_every_process_finds_the_same(tmp_path: Path) -> None:
    task = task_of(tmp_path, COUNTED, COUNTED, shots={"nearest": 3})
    here = [[shot.completion for shot in example.shots] for example in task.examples("test")]
    code = (
        "import sys; sys.path.insert(0, 'tests/tasks'); from pathlib import Path; import test_nearest as t\n"
        f"task = t.task_of(Path({str(tmp_path)!r}), t.COUNTED, t.COUNTED, shots={{'nearest': 3}})\n"
        "print([[shot.completion for shot in example.shots] for example in task.examples('test')])"
    )
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == str(here)


@pytest.mark.parametrize(
    ("shots", "told"),
    [
        ({"nearest": 0}, "greater than or equal to 1"),
        ({"nearest": 2.5}, "valid integer"),
        ({"nearest": True}, "valid integer"),
        ({"nearest": 1, "farthest": 2}, "Extra inputs"),
        ({}, "Field required"),
        ("nearest", r"or \{nearest: 3\}"),
        (True, r"or \{nearest: 3\}"),
        (-1, "greater than or equal to 0"),
    ],
)
def test_what_cannot_be_meant_is_one_fault(shots: Any, told: str) -> None:
    with pytest.raises(ValidationError, match=told) as caught:
        TaskRecipe(shots=shots)
    assert len(caught.value.errors()) == 1
