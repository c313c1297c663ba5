"""What a model finds likely: choices, and completions."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PLAYGROUND, tiny_model
from transformers import PreTrainedModel

from toolkit.evaluation import completion_loss, evaluate
from toolkit.evaluation import likelihood as choices
from toolkit.evaluation.likelihood import Row, likeliest, log_likelihoods
from toolkit.evaluation.shared_prefix import CommonPrefix, compute_prefix
from toolkit.moe import load_tokenizer
from toolkit.recipe.data import TaskRecipe
from toolkit.tasks import Encoded, Task, encode_prompt, padded_batches

ROWS = [
    {"question": "Which comes first?", "choices": ["acorn", "tiger", "olive and badge"], "answer": 0},
    {"question": "Reverse: a b c", "choices": ["a b c", "c b a"], "answer": 1},
    {"question": "Why?", "choices": ["x", "because of the olive tree", "no"], "answer": 2},
]

KEYS = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2)]  # item and choice


@pytest.fixture
def task(tmp_path: Path) -> Task:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return Task(TaskRecipe(name="multiple_choice", train=str(path), test=str(path)))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(str(PLAYGROUND / "model"))


def by_hand(model: PreTrainedModel, prompt: list[int], text: list[int]) -> float:
    """One token after the other, without padding."""
    log_p_SV = model(torch.tensor([prompt + text]), use_cache=False).logits[0].log_softmax(-1)
    return sum(float(log_p_SV[len(prompt) + i - 1, token]) for i, token in enumerate(text))


# Padding, batching and keeping only the last logits must change nothing, in any family.
def test_log_likelihoods_are_the_sums_of_the_tokens_own(family: str) -> None:
    model = tiny_model(family)
    rows = [Row(0, 0, [5, 6, 7], [8]), Row(0, 1, [5, 6, 7], [9, 10, 11, 12]), Row(1, 0, [13], [14, 15])]
    with torch.no_grad():
        expected = [by_hand(model, row.prompt, row.text) for row in rows]
    assert log_likelihoods(model, rows, 0) == pytest.approx(expected, abs=1e-4)


# What all prompts begin with is computed once, and the sums are the same.
def test_shared_shots_change_no_log_likelihood(family: str) -> None:
    model, shots = tiny_model(family), list(range(3, 23))
    own = [([30], [8]), ([31, 32, 33], [9, 10, 11, 12]), ([40] * 9, [14, 15]), ([50, 51], [16] * 6)]
    rows = [Row(i, 0, shots + prompt, text) for i, (prompt, text) in enumerate(own)]
    common = CommonPrefix.of([row.prompt for row in rows])
    assert common and common.tokens == shots
    prefix = compute_prefix(model, common)
    assert prefix
    assert log_likelihoods(model, rows, 0, prefix) == pytest.approx(log_likelihoods(model, rows, 0), abs=1e-5, rel=1e-5)


def test_shots_pass_once_for_all_choices(task: Task, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, examples = tiny_model("mixtral", vocab_size=768, eos_token_id=1), task.examples("test")
    shown = [replace(example, shots=(examples[0], examples[1])) for example in examples]
    passed: list[int] = []
    model.get_input_embeddings().register_forward_pre_hook(lambda _, given: passed.append(given[0].numel()))
    found = likeliest(model, tokenizer, shown, 32)
    alone, behind, batch = passed  # first one prompt both ways
    passed.clear()
    monkeypatch.setattr(CommonPrefix, "of", lambda prompts: None)
    assert likeliest(model, tokenizer, shown, 32) == found
    (whole,) = passed
    prefix = (whole - batch) // len(KEYS)
    assert batch + prefix * len(KEYS) == whole and alone > prefix >= 16 and behind <= batch // len(KEYS)


@pytest.mark.parametrize("size", [1, 3, 32])
def test_the_likeliest_choice_is_that_with_the_most_per_byte(size: int, task: Task, tokenizer: Any) -> None:
    model, examples = tiny_model("mixtral", vocab_size=768, eos_token_id=1), task.examples("test")
    expected = []
    for example in examples:
        prompt = encode_prompt(tokenizer, example.as_cloze())
        with torch.no_grad():
            values = [
                by_hand(model, prompt, tokenizer(text, add_special_tokens=False)["input_ids"]) / len(text)
                for text in example.choices
            ]
        expected.append(values.index(max(values)))
    assert likeliest(model, tokenizer, examples, size) == expected


def test_the_cloze_prompt_shows_no_choices(task: Task, tokenizer: Any) -> None:
    shown = [str(tokenizer.decode(encode_prompt(tokenizer, example.as_cloze()))) for example in task.examples("test")]
    assert shown[0] == "<|user|>Which comes first?<|assistant|>"
    assert "A." not in "".join(shown)


def test_both_scores_are_reported_and_kept(task: Task, tokenizer: Any, tmp_path: Path) -> None:
    model = tiny_model("mixtral", vocab_size=768, eos_token_id=1)
    scores = evaluate(model, tokenizer, task, max_new_tokens=2)
    right = [
        found == example.right
        for found, example in zip(likeliest(model, tokenizer, task.examples("test"), 2), task.examples("test"), strict=True)
    ]
    assert [item.likeliest for item in scores.items] == right and scores.likelihood_score == sum(right) / 3
    scores.save(tmp_path, "pruned")
    summary = json.loads((tmp_path / "pruned.json").read_text())
    assert (summary["likelihood_score"], summary["likelihood_correct"]) == (sum(right) / 3, sum(right))
    assert f"{sum(right) / 3:.1%} by the likeliest choice" in scores.other_measures


# Each rank weighs every second batch: together they find what one finds.
def test_the_batches_are_shared_out(task: Task, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, examples = tiny_model("mixtral", vocab_size=768, eos_token_id=1), task.examples("test")
    alone, parts = likeliest(model, tokenizer, examples, 3), []
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setattr(choices, "gather", lambda found: parts.append(found) or [dict.fromkeys(KEYS, 0.0)])
        likeliest(model, tokenizer, examples, 3)
    assert not parts[0].keys() & parts[1].keys() and parts[0].keys() | parts[1].keys() == set(KEYS)
    monkeypatch.setattr(choices, "gather", lambda found: parts)
    assert likeliest(model, tokenizer, examples, 3) == alone


LENGTHS = (24, 9, 17, 12)


def sequences() -> list[Encoded]:
    generator = torch.Generator().manual_seed(3)
    return [Encoded(torch.randint(3, 64, (length,), generator=generator).tolist(), 5) for length in LENGTHS]


# Neither padding nor the prompt counts, and a long completion counts by its tokens, however it is batched.
@pytest.mark.parametrize("size", [1, 3])
def test_it_is_the_cross_entropy_of_the_completion_tokens(size: int) -> None:
    model = tiny_model("mixtral", torch.float64)
    expected = []
    for ids, prompt in sequences():
        log_p = model(torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
        expected += [-log_p[i - 1, ids[i]].item() for i in range(prompt, len(ids))]
    found = completion_loss(model, padded_batches(sequences(), size, 0))
    assert found.tokens == sum(LENGTHS) - 5 * len(LENGTHS) == len(expected)
    assert found.mean == pytest.approx(sum(expected) / len(expected), rel=1e-6)


def test_without_a_token_to_predict_there_is_no_loss() -> None:
    found = completion_loss(tiny_model("mixtral"), padded_batches([Encoded([5], 0)], 1, 0))
    assert found.tokens == 0 and math.isnan(found.mean) and found.finite is None
