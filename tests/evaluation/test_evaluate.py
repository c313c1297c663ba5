"""From a model and a task to scores."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import PLAYGROUND, raises, tiny_model
from transformers import PreTrainedModel

import toolkit
from toolkit.calibration import skipping_thresholds
from toolkit.evaluation import Scores, evaluate, generate, greedy
from toolkit.moe import load_model, load_tokenizer, skipping
from toolkit.recipe.data import TaskRecipe
from toolkit.tasks import Scorer, Task, encode_all, encode_prompt, padded_batches

# Lengths in no order: what is sorted for batching must come back as it was
QUESTIONS = [
    "Sort these words: olive acorn tiger",
    "Reverse: a b c d e f",
    "Reverse: a",
    "Run: x = 3; x = x + 4; print(x)",
    "Why?",
]
NEW = 6


@pytest.fixture
def task(tmp_path: Path) -> Task:
    path = tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps({"question": q, "answer": f"#### {i}"}) + "\n" for i, q in enumerate(QUESTIONS)))
    task = Task(TaskRecipe(train=str(path), test=str(path), prompt="{question}", completion="{answer}"))
    task.scorer = Scorer(lambda answer, gold: answer == gold or gold in ("#### 1", "#### 3"), lambda _, gold: gold == "#### 4")
    return task


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(str(PLAYGROUND / "model"))


@pytest.fixture
def model() -> PreTrainedModel:
    return tiny_model("mixtral", vocab_size=768, eos_token_id=1)


def told(scores: Scores) -> list[tuple[str, int, bool]]:
    return [(item.prediction, item.tokens, item.ended) for item in scores.items]


def tokens_of(model: PreTrainedModel, tokenizer: Any, task: Task, count: int = NEW) -> list[list[int]]:
    """What the model writes for each question, one at a time."""
    prompts = [encode_prompt(tokenizer, example) for example in task.examples("test")]
    return [generate(model, [prompt], greedy(model, tokenizer, count))[0] for prompt in prompts]


def test_items_come_back_in_the_files_order_with_question_and_gold(model: PreTrainedModel, tokenizer: Any, task: Task) -> None:
    scores = evaluate(model, tokenizer, task, batch_size=2, max_new_tokens=NEW)
    assert [item.index for item in scores.items] == list(range(5))
    assert [item.prompt for item in scores.items] == QUESTIONS
    assert [item.gold for item in scores.items] == [f"#### {i}" for i in range(5)]
    assert [item.correct for item in scores.items] == [False, True, False, True, False]
    assert [item.flexible for item in scores.items] == [False, True, False, True, True]
    assert (scores.score, scores.n, scores.correct) == (0.4, 5, 2)


# Padding on the left must change nothing: neither attention nor positions may see it.
@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "gpt_oss"])
def test_answers_do_not_depend_on_the_batch_size(family: str, tokenizer: Any, task: Task) -> None:
    model = tiny_model(family, vocab_size=768, eos_token_id=1)
    one, four = (told(evaluate(model, tokenizer, task, batch_size=size, max_new_tokens=NEW)) for size in (1, 4))
    assert one == four and len(set(one)) > 1


def test_generation_is_the_argmax_of_the_logits(model: PreTrainedModel, tokenizer: Any, task: Task) -> None:
    prompt = encode_prompt(tokenizer, task.examples("test")[0])
    ids = list(prompt)
    for _ in range(NEW):
        ids.append(int(model(model.dummy_inputs["input_ids"].new_tensor([ids])).logits[0, -1].argmax()))
    assert generate(model, [prompt], greedy(model, tokenizer, NEW)) == [ids[len(prompt) :]]


# The comparison must be of models, not of the decoding that each checkpoint prefers.
@pytest.mark.parametrize(
    "preference",
    [
        {"do_sample": True, "temperature": 9.0, "top_k": 5},
        {"num_beams": 3},
        {"repetition_penalty": 9.0},
        {"no_repeat_ngram_size": 1},
        {"suppress_tokens": list(range(2, 700))},
    ],
    ids=lambda preference: next(iter(preference)),
)
def test_decoding_is_greedy_whatever_the_checkpoint_says(
    model: PreTrainedModel, tokenizer: Any, task: Task, preference: dict[str, Any]
) -> None:
    plain = tokens_of(model, tokenizer, task)
    model.generation_config.update(**preference)
    assert tokens_of(model, tokenizer, task) == plain


def test_an_answer_ends_with_its_end_token_and_counts_it(model: PreTrainedModel, tokenizer: Any, task: Task) -> None:
    free = tokens_of(model, tokenizer, task)
    model.generation_config.eos_token_id = [free[0][2]]  # the third token of the first answer is now an end
    scores = evaluate(model, tokenizer, task, batch_size=5, max_new_tokens=NEW)
    assert (scores.items[0].tokens, scores.items[0].ended) == (free[0].index(free[0][2]) + 1, True)
    for item, tokens in zip(scores.items, free, strict=True):
        assert item.ended == (free[0][2] in tokens) and (item.ended or item.tokens == NEW)


def test_an_answer_that_does_not_end_is_cut_and_told(model: PreTrainedModel, tokenizer: Any, task: Task) -> None:
    scores = evaluate(model, tokenizer, task, max_new_tokens=2)
    assert [(item.tokens, item.ended) for item in scores.items] == [(2, False)] * 5


def test_the_first_examples_of_the_file_are_taken(model: PreTrainedModel, tokenizer: Any, task: Task) -> None:
    everything = evaluate(model, tokenizer, task, max_new_tokens=NEW)
    some = evaluate(model, tokenizer, task, examples=3, batch_size=2, max_new_tokens=NEW)
    assert some.items == everything.items[:3]
    assert evaluate(model, tokenizer, task, examples=99, max_new_tokens=NEW).n == 5


def test_a_path_serves_as_well_as_a_model(tiny_checkpoint, model: PreTrainedModel, tokenizer: Any, task: Task) -> None:
    folder = tiny_checkpoint()
    expected = told(evaluate(model, tokenizer, task, max_new_tokens=NEW))
    for path in (folder, str(folder)):
        assert told(evaluate(path, None, task, max_new_tokens=NEW)) == expected


def test_scores_tell_how_they_were_won(model: PreTrainedModel, tokenizer: Any, task: Task) -> None:
    facts = evaluate(model, tokenizer, task, "dev", batch_size=3, max_new_tokens=NEW).facts.to_json()
    assert {
        "task": task.name,
        "split": "dev",
        "batch_size": 3,
        "max_new_tokens": NEW,
        "ranks": 1,
        "dtype": "float32",
    }.items() <= facts.items()
    assert facts["tokens_per_second"] > 0 and facts["peak_memory_bytes"] > 2**20


def test_a_split_without_examples_is_an_error(model: PreTrainedModel, tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "few.jsonl"
    path.write_text(json.dumps({"question": "Why?", "answer": "#### 1"}) + "\n")  # too few for a dev slice
    task = Task(TaskRecipe(train=str(path), test=str(path), prompt="{question}", completion="{answer}"))
    with raises("evaluation.no-examples", "few", "dev"):
        evaluate(model, tokenizer, task, "dev")


def test_a_model_without_its_tokenizer_is_an_error(model: PreTrainedModel, task: Task) -> None:
    with raises("evaluation.no-tokenizer"):
        evaluate(model, None, task)


SKIPPING_FACTS = {"skip_rate", "experts_skipped", "skipped_per_token"}


def test_the_skip_rate_does_not_depend_on_the_batches_and_a_checkpoint_is_told_by_its_file(tmp_path: Path) -> None:
    tokenizer, task = load_tokenizer(str(PLAYGROUND / "model")), Task(TaskRecipe(name="playground/sorting"))
    model = tiny_model("mixtral", vocab_size=768, eos_token_id=1)
    batches = padded_batches(encode_all(tokenizer, task.examples("train")[:6], 128)[0], 3, int(tokenizer.pad_token_id))
    thresholds = skipping_thresholds(model, batches)
    plain = toolkit.evaluate(model, tokenizer, task, examples=5, max_new_tokens=6)
    assert not SKIPPING_FACTS & plain.facts.to_json().keys()
    with skipping(model, thresholds):
        alone, three, auto = (
            toolkit.evaluate(model, tokenizer, task, examples=5, batch_size=size, max_new_tokens=6) for size in (1, 3, "auto")
        )
    assert alone.items == three.items == auto.items
    assert alone.facts.skipped_per_token == three.facts.skipped_per_token == auto.facts.skipped_per_token
    assert 0.1 < alone.facts.skip_rate < 0.9
    assert alone.facts.experts_skipped == pytest.approx(alone.facts.skip_rate / 2)

    model.save_pretrained(tmp_path)
    thresholds.save(tmp_path)
    loaded = toolkit.evaluate(load_model(str(tmp_path)), tokenizer, task, examples=5, batch_size=3, max_new_tokens=6)
    assert loaded.facts.skipped_per_token == three.facts.skipped_per_token
