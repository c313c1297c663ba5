"""Continuous batching says what batches say."""

from typing import Any

import pytest
from conftest import PLAYGROUND, tiny_model

from toolkit.evaluation import evaluate
from toolkit.moe import load_model, load_tokenizer
from toolkit.recipe.data import TaskRecipe
from toolkit.tasks import Task

PATH = str(PLAYGROUND / "model")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(PATH)


@pytest.mark.parametrize("stop", [[], [" ="]])
def test_the_same_greedy_answers_as_in_batches(tokenizer: Any, stop: list[str]) -> None:
    model, task = load_model(PATH), Task(TaskRecipe.model_validate({"name": "playground/arithmetic", "stop": stop}))
    batches, continuous = (
        evaluate(model, tokenizer, task, examples=12, max_new_tokens=40, backend=backend)
        for backend in ("transformers", "continuous")
    )
    assert continuous.items == batches.items
    assert (continuous.facts.backend, continuous.facts.batch_size) == ("continuous", None)


def test_what_does_not_end_is_cut_alike(tokenizer: Any) -> None:
    model, task = tiny_model("mixtral", vocab_size=768, eos_token_id=1), Task(TaskRecipe(name="playground/sorting"))
    batches, continuous = (
        evaluate(model, tokenizer, task, examples=5, max_new_tokens=6, backend=backend)
        for backend in ("transformers", "continuous")
    )
    assert continuous.items == batches.items
    assert [(item.tokens, item.ended) for item in continuous.items] == [(6, False)] * 5
