"""Laws of new questions in a run: new ones only, from the examples that may be looked at, kept where answers agree; the same
after a kill, in other batches and on two ranks."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import PLAYGROUND, ROOT, raises
from rank_launcher import RANKS, ranks
from small_run import kill_in_call
from transformers import PreTrainedModel

from toolkit.moe import load_model, load_tokenizer
from toolkit.pipeline import questions
from toolkit.pipeline.agreement import Majority
from toolkit.pipeline.drawing import Answer, Answered
from toolkit.pipeline.questions import QuestionWriting
from toolkit.pipeline.stages.answers import AnswerFacts, QuestionFacts, draw_answers
from toolkit.recipe.schema import Recipe
from toolkit.recovery.training_data import check_training_source, read_training_data
from toolkit.tasks import DataCache, Example, Task

PATH = str(PLAYGROUND / "model")


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return load_model(PATH)


def recipe(wanted: int = 12, batch_size: int = 16, task: object = "playground/sorting", **source: object) -> Recipe:
    data = {"self_generated": True, "questions": wanted, "shown": 0, "samples": 3, "examples": 10} | source
    return Recipe.model_validate(
        {
            "name": "own",
            "model": PATH,
            "task": task,
            "finetuning": {"data": [data], "max_length": 128},
            "evaluation": {"max_new_tokens": 48, "batch_size": batch_size},
        }
    )


def drawn(model: PreTrainedModel, folder: Path, wish: Recipe) -> AnswerFacts:
    return draw_answers(model, load_tokenizer(PATH), wish, folder, "fingerprint")


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def writing_of(wish: Recipe) -> QuestionWriting:
    return QuestionWriting(wish, wish.finetuning.data[0], load_tokenizer(PATH), DataCache())  # type: ignore[index]


def test_new_questions_are_answered_and_trained_on(model: PreTrainedModel, tmp_path: Path) -> None:
    wish, tokenizer = recipe(), load_tokenizer(PATH)
    facts = drawn(model, tmp_path, wish)
    assert isinstance(facts, QuestionFacts) and facts.questions == 12 and facts.drawn == 36
    assert facts.texts == 12 + facts.malformed + facts.repeated + facts.overlapping
    found = read_training_data(wish, tokenizer, tmp_path).encoded
    assert len(found) == facts.kept == facts.agreed > 6
    task = Task(wish.task)
    prompts = [str(tokenizer.decode(e.input_ids[: e.prompt_length])) for e in found]
    assert all(prompt.startswith("<|user|>Sort") and prompt.endswith("<|assistant|>") for prompt in prompts)
    assert len(set(prompts)) == len(prompts)
    for encoded in found:
        words = str(tokenizer.decode(encoded.input_ids[: encoded.prompt_length])).partition(": ")[2].removesuffix("<|assistant|>")
        answer = tokenizer.decode(encoded.input_ids[encoded.prompt_length :], skip_special_tokens=True)
        assert task.score(str(answer), "#### " + " ".join(sorted(words.split())))  # what most say is what is right
        assert encoded.input_ids[-1] == tokenizer.eos_token_id


# A text counts once, under the first reason; what is left are questions that nobody asks or has asked.
def test_known_questions_are_left_out_and_counted(tmp_path: Path) -> None:
    long = "Sort these words: acorn badge cabin daisy eagle fable giant honey igloo jelly kayak lemon maple"
    rows = [{"q": f"Sort these words: maple lemon {n}", "a": "a"} for n in range(5)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tests = [long, "Sort these words: river"]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps({"q": text, "a": "a"}) + "\n" for text in tests))
    task = {"prompt": "{q}", "completion": "{a}", **{name: str(tmp_path / f"{name}.jsonl") for name in ("train", "test")}}
    writing = writing_of(recipe(3, task=task | {"dev_examples": 1}))
    texts = [
        "Sort these words: MAPLE, lemon: " + text_of(writing.examples[0]).split()[-1],  # an example that was looked at
        "Sort these words: tiger",
        "Sort these words: tiger!",  # again
        "Sort these words: river",  # in the test set
        f"Now, please: {long} night",  # 13 words in a row of it
        "Sort these words",  # no end
        "Sort these words: " + "maple " * 128,  # too long
        "Sort these words: night",
        "Sort these words: olive",
        "Sort these words: piano",  # one too many
    ]
    ended = [text if text == "Sort these words" else f"{text}<|assistant|>" for text in texts]
    found = writing._sift([{"begun": "", "written": text} for text in ended])
    assert [text_of(example).split()[-1] for example in found.examples] == ["tiger", "night", "olive"]
    assert (found.texts, found.malformed, found.repeated, found.overlapping) == (9, 2, 2, 2)


def text_of(example: Example) -> str:
    return str(example.messages[-1]["content"])


def test_only_the_examples_of_the_recipe_are_looked_at(model: PreTrainedModel, tmp_path: Path) -> None:
    writing = writing_of(recipe(8, shown=2))
    allowed = {text_of(example) for example in writing.examples}
    assert len(allowed) == 10
    shown = []

    class Numbers(questions.random.Random):
        def sample(self, population: Any, k: int, **other: Any) -> list[Any]:
            shown.extend(population)
            return super().sample(population, k, **other)

    opening = writing.opening(Numbers(0), None)
    assert {text_of(example) for example in shown} == allowed
    text = str(writing.tokenizer.decode(opening.prompt))
    assert text.count("<|user|>") == 3 and text.endswith("<|user|>")
    assert len(writing.opening(Numbers(0), len(opening.prompt) - 1).prompt) < len(opening.prompt)  # as far as there is room


def test_a_kill_and_other_batches_change_nothing(model: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "TEXTS", 6)
    drawn(model, tmp_path / "whole", recipe())
    drawn(model, tmp_path / "other", recipe(batch_size=5))
    kill_in_call(2, questions, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        drawn(model, tmp_path / "killed", recipe())
    drawn(model, tmp_path / "killed", recipe())
    whole = files(tmp_path / "whole")
    assert len(whole) >= 5 and whole == files(tmp_path / "killed") == files(tmp_path / "other")


# The next files are begun only where questions are lacking, and not without end.
def test_writing_stops_at_a_bound(
    model: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(questions, "TEXTS", 4)
    written = ["one", "one", "one", "two"] * 10
    monkeypatch.setattr(questions, "generate", lambda model, prompts, *rest: [[n] for n in range(len(prompts))])
    writing = writing_of(recipe(4))
    monkeypatch.setattr(writing.tokenizer, "decode", lambda tokens, **other: f" {written[tokens[0]]} and<|assistant|>")
    monkeypatch.setattr(writing.form, "opening", lambda shown, begun_by=None: questions.Opening([2], "Sort"))
    found = writing.write(model, tmp_path, "fingerprint")
    assert [text_of(example) for example in found.examples] == ["Sort one and", "Sort two and"]
    assert found.texts == 20 == questions.TRIES * 4 and found.repeated == 18
    assert "2 of the 4 questions asked for" in capsys.readouterr().out

    monkeypatch.setattr(writing.tokenizer, "decode", lambda tokens, **other: "nothing")
    with raises("questions.none", "4 texts", "playground/sorting"):
        writing.write(model, tmp_path / "none", "fingerprint")
    assert len(list((tmp_path / "none").glob("*.jsonl"))) == 1  # nothing comes of more


def test_answers_that_never_agree_are_an_error(model: PreTrainedModel, tmp_path: Path) -> None:
    wish = recipe()
    cut = wish.model_copy(update={"evaluation": wish.evaluation.model_copy(update={"max_new_tokens": 2})})
    with raises("questions.none-agreed", "12 new questions", "2 new tokens"):
        drawn(model, tmp_path, cut)


EXAMPLE = Example(({"role": "user", "content": "?"},), "", "")


def answered(*texts: str, ended: bool = True) -> Answered:
    return Answered([7], EXAMPLE, [Answer([n], ended, text) for n, text in enumerate(texts)])


@pytest.mark.parametrize(
    ("texts", "kept"),
    [
        (["#### 1", "#### 2", "so #### 2", "that is #### 2"], 1),  # the first of those that agree, whatever stands around it
        (["#### 1", "#### 2", "#### 2", "#### 1"], None),  # a half is no majority
        (["none", "none", "none", "none"], None),  # nothing that the task finds in them
        (["#### 3", "#### 3.0", "three", "#### 3"], 0),
    ],
)
def test_an_answer_is_kept_where_more_than_half_agree(texts: list[str], kept: int | None) -> None:
    task = Task(Recipe.model_validate({"name": "x", "model": PATH, "task": "gsm8k"}).task)
    majority = Majority(task, "It is 5.\n#### 5", 4, longest=2)
    lines = [] if kept is None else [{"input_ids": [7, kept], "prompt_length": 1}]
    assert majority.lines([answered(*texts)]) == lines
    assert majority.lines([answered(*texts, ended=False)]) == []  # cut ones have no vote
    assert Majority(task, "#### 5", 4, longest=1).lines([answered(*texts)]) == []  # nor have those that are too long


def test_a_cut_answer_counts_against_the_majority() -> None:
    task = Task(Recipe.model_validate({"name": "x", "model": PATH, "task": "gsm8k"}).task)
    each = answered("#### 1", "#### 1", "#### 1", "#### 1")
    for cut, kept in ((1, 1), (2, 0)):
        answers = [answer._replace(ended=number >= cut) for number, answer in enumerate(each.answers)]
        assert len(Majority(task, "#### 5", 4, 9).lines([each._replace(answers=answers)])) == kept


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ({"questions": 5}, "add `self_generated: true`"),
        ({"self_generated": True, "questions": 5, "samples": 1}, "samples must be at least 2"),
        ({"self_generated": True, "questions": 0}, "greater than or equal to 1"),
        ({"self_generated": True, "shown": 2}, "add `questions: …`"),
        ({"self_generated": True, "questions": 5, "shown": -1}, "greater than or equal to 0"),
        ({"self_generated": True, "questions": 5, "writer": "student"}, "the original's to answer"),
        ({"self_generated": True, "questions": 5, "text": "a.txt"}, "a `text` has none"),
    ],
)
def test_what_cannot_be_meant_is_refused(source: dict, told: str) -> None:
    values = {"task": "gsm8k"} if not source.get("self_generated") else {}
    with pytest.raises(ValueError, match=told):
        Recipe.model_validate(
            {"name": "x", "model": PATH, "task": "gsm8k", "finetuning": {"teacher": "original", "data": [values | source]}}
        )


# Before the first stage, and not after an hour of calibration.
def test_a_task_that_cannot_have_new_questions_is_told_in_the_checks(tmp_path: Path) -> None:
    row = {"question": "Why?", "choices": ["a", "b"], "answer": 0}
    (tmp_path / "quiz.jsonl").write_text(f"{json.dumps(row)}\n" * 12)
    choices = {"name": "multiple_choice", "train": str(tmp_path / "quiz.jsonl"), "test": str(tmp_path / "quiz.jsonl")}
    wish = recipe(task=choices)
    with raises("questions.refused", "quiz"):
        check_training_source(wish, wish.finetuning.data[0], None, DataCache())  # type: ignore[index]
    lines = recipe(task={"name": "playground/code", "chat": False, "prompt": "Now:\n{question}"})
    check_training_source(lines, lines.finetuning.data[0], None, DataCache())  # type: ignore[index]
    with raises("questions.no-end", "playground/code"):
        check_training_source(lines, lines.finetuning.data[0], load_tokenizer(PATH), DataCache())  # type: ignore[index]


def test_keys_that_are_not_said_are_in_no_fingerprint() -> None:
    plain = Recipe.model_validate(
        {"name": "x", "model": PATH, "task": "gsm8k", "finetuning": {"data": [{"self_generated": True}]}}
    )
    assert not {"questions", "shown"} & plain.finetuning.data[0].model_dump().keys()  # type: ignore[index]
    assert {"questions", "shown"} <= recipe().finetuning.data[0].model_dump().keys()  # type: ignore[index]


@pytest.mark.launcher
def test_two_ranks_write_what_one_writes(model: PreTrainedModel, tmp_path: Path) -> None:
    script = tmp_path / "write.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nfrom toolkit.runtime import distributed\nfrom toolkit.moe import load_model\n"
        f"sys.path[:0] = [{str(ROOT / 'tests')!r}, {str(ROOT / 'tests' / 'pipeline')!r}]\n"
        "import test_questions as t\ndistributed.start()\nt.questions.TEXTS = 6\n"
        "print(t.drawn(load_model(t.PATH), Path('two'), t.recipe()))\ndistributed.stop()\n"
    )
    done = subprocess.run(ranks(RANKS, str(script)), cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(questions, "TEXTS", 6)
        facts = drawn(model, tmp_path / "one", recipe())
    one = files(tmp_path / "one")
    assert len(one) >= 5 and one == files(tmp_path / "two")
    assert str(facts) in done.stdout
