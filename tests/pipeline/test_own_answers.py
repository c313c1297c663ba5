"""What the original model writes: right answers only, no two the same, and the same ones after a kill."""

from dataclasses import replace
from pathlib import Path

import pytest
from chat_templates import SHAPES, tokenizer_of
from conftest import PLAYGROUND
from small_run import kill_in_call
from transformers import PreTrainedModel

from toolkit.moe import load_model, load_tokenizer
from toolkit.pipeline import drawing
from toolkit.pipeline.stages.answers import AnswerFacts, draw_answers
from toolkit.recipe.schema import Recipe
from toolkit.recovery.training_data import read_training_data
from toolkit.runtime.errors import PollardError
from toolkit.tasks import Task, encode, encode_prompt

PATH = str(PLAYGROUND / "model")


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return load_model(PATH)


def recipe(temperature: float = 2.0, max_new_tokens: int = 48) -> Recipe:
    source = {"self_generated": True, "examples": 12, "samples": 4, "temperature": temperature}
    finetuning = {"data": [source], "max_length": 128}
    evaluation = {"max_new_tokens": max_new_tokens, "batch_size": 16}
    return Recipe.model_validate(
        {"name": "own", "model": PATH, "task": "playground/arithmetic", "finetuning": finetuning, "evaluation": evaluation}
    )


def drawn(model: PreTrainedModel, folder: Path, wish: Recipe) -> AnswerFacts:
    return draw_answers(model, load_tokenizer(PATH), wish, folder, "fingerprint")


def test_right_answers_are_kept_once(model: PreTrainedModel, tmp_path: Path) -> None:
    tokenizer, wish = load_tokenizer(PATH), recipe()
    facts = drawn(model, tmp_path, wish)
    found = read_training_data(wish, tokenizer, tmp_path).encoded
    assert facts == AnswerFacts(drawn=48, kept=len(found)) and 0 < len(found) < 48  # hot enough to err and to vary
    assert len({tuple(e.input_ids) for e in found}) == len(found)
    task = Task(wish.task)
    gold = {tuple(encode_prompt(tokenizer, example)): example.gold for example in task.examples("train")}
    for encoded in found:
        prompt, answer = encoded.input_ids[: encoded.prompt_length], encoded.input_ids[encoded.prompt_length :]
        assert answer[-1] == tokenizer.eos_token_id
        assert task.score(tokenizer.decode(answer, skip_special_tokens=True), gold[tuple(prompt)])


def test_a_kill_loses_one_piece_and_changes_nothing(
    model: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawing, "PROMPTS", 4)
    drawn(model, tmp_path / "whole", recipe())
    calls = kill_in_call(2, drawing, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        drawn(model, tmp_path / "killed", recipe())
    drawn(model, tmp_path / "killed", recipe())
    assert len(calls) == 4  # three pieces of one batch, one of them begun twice
    whole = sorted((tmp_path / "whole" / "0").iterdir())
    assert len(whole) == 4
    for path in whole:
        assert path.read_bytes() == (tmp_path / "killed" / "0" / path.name).read_bytes()


def test_no_right_answer_is_an_error(model: PreTrainedModel, tmp_path: Path) -> None:
    with pytest.raises(PollardError, match=r"None of the original model's 48 answers .* is right and ends within 2 new tokens"):
        drawn(model, tmp_path, recipe(max_new_tokens=2))


def test_prompts_that_are_all_left_out_are_told_as_that(model: PreTrainedModel, tmp_path: Path) -> None:
    wish = recipe()
    short = wish.model_copy(update={"finetuning": wish.finetuning.model_copy(update={"max_length": 2})})
    with pytest.raises(PollardError, match=r"own answers.* has no prompt left to answer: all are 2 tokens or longer"):
        drawn(model, tmp_path, short)


# What the template writes around an answer, and reasoning before it, are learnt with the answer and not judged.
@pytest.mark.parametrize("shape", ["ChatML", "Qwen3", "Qwen3, thinking only", "DeepSeek-R1"])
def test_answers_are_right_whatever_the_template_writes_around_them(
    shape: str, model: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, wish = tokenizer_of(SHAPES[shape], ends_apart=True), recipe()
    wish = wish.model_copy(update={"finetuning": wish.finetuning.model_copy(update={"max_length": 512})})
    written = {}
    for example in Task(wish.task).examples("train"):
        thinking = replace(example, completion=f"<think>\nHm.\n</think>\n\n{example.completion}")
        encoded = encode(tokenizer, thinking)
        written[tuple(encoded.input_ids[: encoded.prompt_length])] = encoded.input_ids[encoded.prompt_length :]
    monkeypatch.setattr(drawing, "generate", lambda model, prompts, *rest: [written[tuple(prompt)] for prompt in prompts])
    draw_answers(model, tokenizer, wish, tmp_path, "fingerprint")
    found = read_training_data(wish, tokenizer, tmp_path).encoded
    assert len(found) == 12 and all("Hm." in str(tokenizer.decode(e.input_ids)) for e in found)
