"""What is trained through a template is read back as the answer it was: of every scorer and every shape of template."""

from dataclasses import replace
from typing import Any

import pytest
from chat_templates import SHAPES, tokenizer_of
from conftest import raises
from transformers import PreTrainedTokenizerBase

from toolkit.evaluation.answers import read_answer
from toolkit.recipe.data import TaskRecipe
from toolkit.tasks import Example, Task, check_rendering, encode, format_of, gold_of
from toolkit.tasks.chat_format import split_reasoning
from toolkit.tasks.conversation import conversation_in

# Per scorer: keys of the task, and completions
SCORED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "exact": ({}, ["billing", "Sorted by letters.\n#### ant bee", "<", "two\nlines", "Ünïcödé – „so“"]),
    "numeric": ({}, ["#### 72", "48 + 24 = 72\n#### 72", "-5"]),
    "math": ({}, [r"So $\boxed{\frac{1}{2}}$.", "#### 0.5"]),
    "contains": ({}, ["Paris"]),
    "regex": ({"pattern": "Answer: (.+)"}, ["Answer: B"]),
    "choice": ({}, ["B"]),
    "label": ({"labels": ["very positive", "negative", "positive"]}, ["positive"]),
    "f1": ({}, ["in the old town"]),
    "judging_lengths:same_length": ({}, ["as long"]),
}
CASES = [(scorer, keys, text) for scorer, (keys, texts) in SCORED.items() for text in texts]
THOUGHT = "First I think, 3 times.\n#### 3 is no answer, said Rome."


@pytest.fixture(autouse=True)
def own_scorer(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "judging_lengths.py").write_text("def same_length(prediction, gold):\n    return len(prediction) == len(gold)\n")
    monkeypatch.chdir(tmp_path)


def answer_to(tokenizer: PreTrainedTokenizerBase, example: Example) -> str:
    """What a model answers that writes exactly what it was taught."""
    encoded = encode(tokenizer, example)
    written = encoded.input_ids[encoded.prompt_length :]
    return read_answer(tokenizer, written, [int(tokenizer.eos_token_id)], (), 999, format_of(tokenizer, example)).text


def example_with(reply: dict[str, Any]) -> Example:
    messages = [{"role": "user", "content": "Which one?"}, {"role": "assistant", **reply}]
    found = conversation_in({"messages": messages}, "messages")
    return Example(found.messages, found.completion, found.gold, "line 1", reply=found.reply)


@pytest.mark.parametrize("reasoning", ["none", "tags", "field"])
@pytest.mark.parametrize("special", [True, False], ids=["special", "plain text"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_gold_completion_is_strictly_right(shape: str, special: bool, reasoning: str) -> None:
    tokenizer = tokenizer_of(SHAPES[shape], special)
    if reasoning == "field" and not SHAPES[shape].keeps_reasoning:
        with raises("chat-template.leaves-out", "line 1", "`reasoning_content` of the answer"):
            check_rendering(tokenizer, [example_with({"content": "B", "reasoning_content": THOUGHT})])
        return
    for scorer, keys, text in CASES:
        replies = {
            "none": {"content": text},
            "tags": {"content": f"<think>\n{THOUGHT}\n</think>\n\n{text}"},
            "field": {"content": text, "reasoning_content": THOUGHT},
        }
        example = example_with(replies[reasoning])
        judge = Task(TaskRecipe(prompt="{q}", completion="{a}", scorer=scorer, **keys)).scorer
        answer = answer_to(tokenizer, example)
        assert example.gold == text, scorer
        assert judge.verdicts([(answer, gold_of(tokenizer, example))])[0].strict, f"{scorer}: {answer!r} is not {text!r}"
        trained = tokenizer.decode(encode(tokenizer, example).input_ids)
        assert (THOUGHT in trained) == (reasoning != "none"), "what was thought is learnt"


# With an end of turn that is not the end token (Qwen's base models), generation goes on to the end token behind it.
@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_end_of_a_turn_is_no_part_of_the_answer(shape: str, special: bool) -> None:
    tokenizer = tokenizer_of(SHAPES[shape], special, ends_apart=True)
    assert answer_to(tokenizer, example_with({"content": "billing"})).strip() == "billing"


@pytest.mark.parametrize("shape", SHAPES)
def test_an_answer_without_the_frame_is_an_answer_all_the_same(shape: str) -> None:
    form = format_of(tokenizer_of(SHAPES[shape]), example_with({"content": "billing"}))
    if form.opened:  # there the text begins inside the reasoning
        assert form.answer_in("billing") == ""
    else:
        assert form.answer_in("billing") == "billing"


@pytest.mark.parametrize("shape", ["Qwen3", "Qwen3, thinking only", "DeepSeek-R1", "harmony", "ChatML"])
def test_reasoning_that_came_to_no_end_is_no_answer(shape: str) -> None:
    form = format_of(tokenizer_of(SHAPES[shape]), example_with({"content": "billing"}))
    opening = "" if form.opened else form.reasoning[0][0]
    assert form.answer_in(f"{opening}It could be billing, or") == ""
    assert form.answer_in(f"{opening}It could be billing.{form.closing or form.reasoning[0][1]}access").strip() == "access"


def test_what_a_model_thinks_of_its_own_accord_is_taken_off_under_any_template() -> None:
    form = format_of(tokenizer_of(SHAPES["Llama 3"]), example_with({"content": "x"}))
    for opening, closing in (("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("\n<think>\n", "\n</think>\n\n")):
        assert form.answer_in(f"{opening}so 3 or 4{closing}four") == "four"
    assert (
        form.answer_in("Tags like <think> … </think> set reasoning apart.") == "Tags like <think> … </think> set reasoning apart."
    )


def test_several_messages_of_a_model_end_in_its_final_one() -> None:
    form = format_of(tokenizer_of(SHAPES["harmony"]), example_with({"content": "x"}))
    written = (
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary<|message|>I look it up.<|end|>"
        "<|start|>assistant<|channel|>final<|message|>72"
    )
    assert form.answer_in(written) == "72"


# Some servers cut the opening tag off, and with a template that opens the block data sets lack it.
@pytest.mark.parametrize("shape", SHAPES)
def test_reasoning_whose_opening_tag_is_missing_is_reasoning(shape: str) -> None:
    tokenizer = tokenizer_of(SHAPES[shape])
    example = example_with({"content": f"{THOUGHT}\n</think>\n\nbilling"})
    assert example.gold == "billing"
    assert answer_to(tokenizer, example).strip() == "billing"
    form = format_of(tokenizer, example)
    if not form.opened:
        assert form.answer_in("Tags are `<think>` and `</think>`.\nBoth.") == "Tags are `<think>` and `</think>`.\nBoth."
        assert form.answer_in("Write `</think>` behind it.") == "Write `</think>` behind it."


def test_a_message_before_the_final_one_is_no_part_of_the_answer() -> None:
    form = format_of(tokenizer_of(SHAPES["harmony"]), example_with({"content": "x"}))
    commentary = "<|channel|>commentary<|message|>I look it up.<|end|><|start|>assistant<|channel|>final<|message|>72"
    assert form.answer_in(commentary) == "72"


@pytest.mark.parametrize(("content", "shape"), [
    ("Write `</think>` behind it.", "Qwen3"),
    ("Write `</think>` behind it.", "DeepSeek-R1"),
    ("```\n<think>\n</think>\n```\nis a block.", "DeepSeek-V3.1"),
])  # fmt: skip
def test_an_answer_that_the_template_cuts_is_refused(content: str, shape: str) -> None:
    with raises("chat-template.leaves-out", "line 1", "a part of the text of the answer"):
        check_rendering(tokenizer_of(SHAPES[shape]), [example_with({"content": content})])
    assert check_rendering(tokenizer_of(SHAPES["MiniMax"]), [example_with({"content": content})]) == []


def test_a_question_that_the_template_cuts_is_counted() -> None:
    tokenizer = tokenizer_of(SHAPES["ChatML"])
    tokenizer.chat_template = SHAPES["ChatML"].template.replace("{{ m.content }}", "{{ m.content.split('</think>')[-1] }}")
    example = replace(example_with({"content": "billing"}), messages=({"role": "user", "content": "What is </think>?"},))
    assert check_rendering(tokenizer, [example]) == [
        "1 of 1 examples: the chat template does not show all of the text of the user"
    ]


def test_reasoning_is_split_from_the_text_behind_it() -> None:
    assert split_reasoning("So.\n</think>\n72") == ("So.", "72")
    assert split_reasoning("`</think>` ends it") == ("", "`</think>` ends it")
    assert split_reasoning("<think>\nSo.\n</think>\n\n  72") == ("So.", "  72")
    assert split_reasoning("72, <think>not so</think>") == ("", "72, <think>not so</think>")
    assert split_reasoning("<think>never closed") == ("", "<think>never closed")


# A template may be replaced between two calls, and each has its own.
def test_the_format_is_that_of_the_template_of_the_moment() -> None:
    tokenizer, example = tokenizer_of(SHAPES["Qwen3"]), example_with({"content": "x"})
    assert format_of(tokenizer, example).prefix == "<think>\n\n</think>\n\n"
    tokenizer.chat_template = SHAPES["ChatML"].template
    assert format_of(tokenizer, example).prefix == ""
