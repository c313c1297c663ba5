"""Laws of drafting: the original's own words, whatever drafts; and the counts are honest."""

from typing import Any

import pytest
import torch
from conftest import PLAYGROUND, plan_for, raises, tiny_model
from transformers import GenerationConfig, PreTrainedModel

from toolkit.cuts.apply import apply_plan
from toolkit.evaluation.drafting import Draft, compare_drafting, timed_answer
from toolkit.moe import load_model, load_tokenizer
from toolkit.tasks import Example, encode_prompt

PROMPTS = (
    "What is 17 + 25?",
    "Reverse: a b c d e f",
    "Sort these words: olive acorn tiger",
    "x = 3; x = x + 4; print(x)",
    "Why?",
)


@pytest.fixture(scope="module")
def original() -> PreTrainedModel:
    return load_model(str(PLAYGROUND / "model"))


@pytest.fixture(scope="module")
def pruned() -> PreTrainedModel:
    model = load_model(str(PLAYGROUND / "model"))
    return apply_plan(model, plan_for(model, [0, 2, 5, 7]))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(str(PLAYGROUND / "model"))


def prompt_of(tokenizer: Any, text: str) -> list[int]:
    return encode_prompt(tokenizer, Example(({"role": "user", "content": text},), "", ""))


def settings(tokenizer: Any, count: int = 40) -> GenerationConfig:
    return GenerationConfig(do_sample=False, max_new_tokens=count, pad_token_id=0, eos_token_id=tokenizer.eos_token_id)


@pytest.mark.parametrize("text", PROMPTS)
def test_what_is_drafted_for_is_what_the_original_alone_writes(
    original: PreTrainedModel, pruned: PreTrainedModel, tokenizer: Any, text: str
) -> None:
    prompt = prompt_of(tokenizer, text)
    alone = timed_answer(original, prompt, settings(tokenizer))
    drafted = timed_answer(original, prompt, settings(tokenizer), Draft(pruned))
    assert drafted.tokens == alone.tokens and len(alone.tokens) > 1
    assert 0 <= drafted.accepted <= drafted.drafted and drafted.accepted < len(drafted.tokens)


# The end of an answer may be drafted and is then counted as the original's own: one less than what was drafted.
def test_a_model_that_drafts_for_itself_is_always_right(original: PreTrainedModel, tokenizer: Any) -> None:
    told, twin = settings(tokenizer, 12), load_model(str(PLAYGROUND / "model"))
    before = twin.generation_config
    drafted = timed_answer(original, prompt_of(tokenizer, PROMPTS[0]), told, Draft(twin))
    assert drafted.drafted - 1 <= drafted.accepted <= drafted.drafted and drafted.accepted > 0
    assert twin.generation_config is before


def test_a_model_that_drafts_what_is_never_right_gains_nothing_and_changes_nothing(
    original: PreTrainedModel, tokenizer: Any
) -> None:
    prompt = prompt_of(tokenizer, PROMPTS[1])
    random = tiny_model("mixtral", vocab_size=768, eos_token_id=1)
    random.lm_head.weight.data *= 50  # sure of its nonsense
    drafted = timed_answer(original, prompt, settings(tokenizer), Draft(random))
    assert drafted.tokens == timed_answer(original, prompt, settings(tokenizer)).tokens
    assert drafted.accepted < 0.1 * drafted.drafted


def test_both_ways_are_measured_in_turn(original: PreTrainedModel, pruned: PreTrainedModel, tokenizer: Any) -> None:
    found = compare_drafting(original, Draft(pruned), prompt_of(tokenizer, PROMPTS[2]), settings(tokenizer, 8))
    assert found.same
    for middle, low, high in (found.speed_alone, found.speed_drafted, found.ratio):
        assert 0 < low <= middle <= high


def test_a_family_that_cannot_take_back_what_it_read_is_told(tokenizer: Any, pruned: PreTrainedModel) -> None:
    class Stateful(type(pruned)):  # type: ignore[misc]
        _is_stateful = True

    torch.manual_seed(0)
    model = Stateful(pruned.config).eval()
    with raises("drafting.family"):
        timed_answer(model, [5, 6, 7], settings(tokenizer, 4), Draft(pruned))
