"""Tokens, row by row: what a row writes is its own affair."""

import random
from collections import Counter
from typing import Any

import pytest
import torch
from conftest import tiny_model

from toolkit.evaluation import Decoding, decoding, generate, greedy, sampled
from toolkit.evaluation.generation import StopInAnswer
from toolkit.recipe.data import TaskRecipe
from toolkit.tasks import Task, chat_format, encode_prompt

KINDS = ("arithmetic", "sorting", "reversing", "facts", "logic", "code")


@pytest.fixture(scope="module")
def prompts(tokenizer: Any) -> list[list[int]]:
    """Answers of all lengths, so that rows leave the batch one after the other."""
    tasks = [Task(TaskRecipe.model_validate({"name": f"playground/{kind}"})) for kind in KINDS]
    return [encode_prompt(tokenizer, example) for task in tasks for example in task.examples("test")[:3]]


def stop_at(tokenizer: Any, *texts: str) -> StopInAnswer:
    return StopInAnswer(tokenizer, texts, [tokenizer.eos_token_id], chat_format(tokenizer))


def stock(model: Any, prompt: list[int], settings: Any) -> list[int]:
    """transformers' own loop on one prompt."""
    return model.generate(torch.tensor([prompt]), generation_config=settings)[0, len(prompt) :].tolist()


def test_rows_that_leave_a_batch_change_nothing_for_the_others(model: Any, tokenizer: Any, prompts: list[list[int]]) -> None:
    settings = greedy(model, tokenizer, 64)
    answers = generate(model, prompts, settings)
    assert answers == [stock(model, prompt, settings) for prompt in prompts]
    assert len({len(answer) for answer in answers}) > 5  # they did leave at different steps


# A cache that is cut by rows must stay right in families with a cache or positions of their own, too.
@pytest.mark.parametrize("family", ["qwen2_moe", "gpt_oss", "deepseek_v2"])
def test_leaving_rows_change_nothing_in_other_families(family: str, tokenizer: Any, prompts: list[list[int]]) -> None:
    model = tiny_model(family, vocab_size=768, eos_token_id=1)
    settings = greedy(model, tokenizer, 12)
    settings.eos_token_id = list(range(1, 768, 9))  # a random model ends only by chance: let there be many ends
    answers = generate(model, prompts, settings)
    assert answers == [generate(model, [prompt], settings)[0] for prompt in prompts]
    assert len({len(answer) for answer in answers}) > 2


def test_what_is_drawn_depends_on_the_rows_own_numbers_alone(model: Any, tokenizer: Any, prompts: list[list[int]]) -> None:
    settings, drawing = sampled(model, tokenizer, 48, temperature=2.0), Decoding(seed=7)
    together = generate(model, prompts, settings, [drawing.random_numbers(i, 0) for i in range(len(prompts))])
    alone = [generate(model, [prompt], settings, [drawing.random_numbers(i, 0)])[0] for i, prompt in enumerate(prompts)]
    assert together == alone
    other = generate(model, prompts, settings, [drawing.random_numbers(i, 1) for i in range(len(prompts))])
    assert sum(a != b for a, b in zip(together, other, strict=True)) > len(prompts) // 2
    assert (
        Decoding(seed=8).random_numbers(0, 0).random()
        != drawing.random_numbers(0, 0).random()
        != drawing.random_numbers(0, 1).random()
    )


def test_tokens_are_drawn_as_often_as_the_model_means(tokenizer: Any) -> None:
    model = tiny_model("mixtral", vocab_size=768, eos_token_id=1)
    prompt, count = [5, 6, 7], 2000
    settings = sampled(model, tokenizer, 1, temperature=0.25)
    drawn = generate(model, [prompt] * count, settings, [random.Random(i) for i in range(count)])
    found = Counter(answer[0] for answer in drawn)
    with torch.no_grad():
        chances = torch.softmax(model(torch.tensor([prompt])).logits[0, -1] / 0.25, dim=-1)
    for token, chance in zip(*(values.tolist() for values in reversed(chances.topk(5))), strict=True):
        assert abs(found[token] / count - chance) < 4 * (chance * (1 - chance) / count) ** 0.5  # 4 standard errors


def test_an_answer_ends_with_the_token_that_completes_a_stop_string(model: Any, tokenizer: Any, prompts: list[list[int]]) -> None:
    settings = greedy(model, tokenizer, 64)
    free = generate(model, prompts, settings)
    stopped = generate(model, prompts, settings, stop=stop_at(tokenizer, " ="))
    assert stopped != free
    for whole, part in zip(free, stopped, strict=True):
        assert whole[: len(part)] == part
        assert part == whole or " =" in tokenizer.decode(part)
        assert " =" not in tokenizer.decode(part[:-1])


# As on a GPU, which runs ahead: what a row writes after its end is not its answer.
@pytest.mark.parametrize("strings", [[], [" ="]])
def test_rows_that_are_looked_at_seldom_answer_the_same(
    model: Any, tokenizer: Any, prompts: list[list[int]], strings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = stop_at(tokenizer, *strings) if strings else None
    for settings in (greedy(model, tokenizer, 45), sampled(model, tokenizer, 45, temperature=1.0)):

        def answers(settings: Any = settings) -> list[list[int]]:
            numbers = [random.Random(i) for i in range(len(prompts))]
            return generate(model, prompts, settings, numbers, stop)

        at_once = answers()
        with monkeypatch.context() as patch:
            patch.setattr(decoding, "steps_between_checks", lambda where: 8)
            assert answers() == at_once


def test_a_stop_string_is_not_looked_for_in_the_prompt(model: Any, tokenizer: Any, prompts: list[list[int]]) -> None:
    prompt = next(prompt for prompt in prompts if prompt[-1] == tokenizer.convert_tokens_to_ids("<|assistant|>"))
    settings = greedy(model, tokenizer, 64)
    criterion = stop_at(tokenizer, "<|assistant|>")
    assert generate(model, [prompt], settings, stop=criterion) == generate(model, [prompt], settings)
