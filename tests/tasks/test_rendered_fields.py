"""Nothing of a conversation is lost without a word: every field is in what the model sees, or refused, or counted by name."""

from typing import Any

import pytest
from chat_templates import SHAPES, tokenizer_of
from conftest import raises
from tokenizers import normalizers

from toolkit.runtime.errors import PollardError
from toolkit.tasks import Example, check_rendering, encode, format_of, gold_of
from toolkit.tasks.conversation import conversation_in
from toolkit.tasks.prompts import completion_text

CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
CALLING = [
    {"role": "user", "content": "Weather in Oslo?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "name": "weather", "tool_call_id": "c1", "content": "3 degrees"},
    {"role": "assistant", "content": "It is cold."},
]
# What messages of public chat data sets carry: conversations, OpenAI's files, Hermes, WildChat, OpenAssistant, ShareGPT, xLAM
FIELDS: dict[str, Any] = {
    "reasoning_content": "I look it up.",
    "thinking": "I look it up.",
    "reasoning": "I look it up.",
    "tool_calls": [CALL],
    "name": "Mia",
    "id": "m7",
    "timestamp": "2026-11-30",
    "toxic": True,
    "country": "NO",
    "language": "English",
    "turn_identifier": 7,
    "refusal": "no",
    "annotations": [{"type": "url"}],
    "audio": {"id": "a1"},
    "score": 0.9,
    "emoji": {"+1": 2},
    "weight": 1,
}


def example_of(messages: list[dict[str, Any]], **columns: Any) -> Example:
    found = conversation_in({"chat": messages} | columns, "chat")
    return Example(found.messages, found.completion, found.gold, "chats.jsonl, line 7", reply=found.reply, tools=found.tools)


@pytest.mark.parametrize("where", ["user", "earlier", "answer"])
@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("shape", ["ChatML", "Qwen3", "harmony", "tools", "DeepSeek-R1"])
def test_every_field_is_rendered_refused_or_counted_by_name(shape: str, field: str, where: str) -> None:
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "And?"}, {"role": "assistant", "content": "Bye"},
    ]  # fmt: skip
    message = messages[{"user": 2, "earlier": 1, "answer": 3}[where]]
    message |= {field: FIELDS[field]} | ({"content": ""} if field == "tool_calls" and where != "user" else {})
    tokenizer, example = tokenizer_of(SHAPES[shape]), example_of(messages)
    name = "reasoning_content" if field in ("thinking", "reasoning") else field
    trained = str(tokenizer.decode(encode(tokenizer, example).input_ids))
    value = "weather" if field == "tool_calls" else str(FIELDS[field])
    try:
        notes = check_rendering(tokenizer, [example])
    except PollardError as error:
        assert f"chats.jsonl, line 7: the model's chat template leaves out `{name}`" in str(error)
        assert field in ("tool_calls", "reasoning_content", "thinking", "reasoning") and value not in trained
        return
    assert (value in trained) != any(f"does not show `{name}` of the" in note for note in notes)


def test_calls_names_and_tools_are_seen_where_the_template_shows_them() -> None:
    tokenizer = tokenizer_of(SHAPES["tools"])
    example = example_of(CALLING, tools=TOOLS)
    assert check_rendering(tokenizer, [example]) == [
        "1 of 1 examples: the chat template does not show `tool_call_id` of the tool"
    ]
    text = str(tokenizer.decode(encode(tokenizer, example).input_ids))
    assert '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>' in text
    assert "<tool_response name=weather>\n3 degrees" in text and '<tools>\n{"type": "function"' in text


def test_calls_and_tools_that_a_template_drops_are_refused_all_at_once() -> None:
    with raises("chat-template.leaves-out") as caught:
        check_rendering(tokenizer_of(SHAPES["ChatML"]), [example_of(CALLING, tools=TOOLS)] * 7)
    lines = str(caught.value).splitlines()
    assert lines[0] == ("chats.jsonl, line 7: the model's chat template leaves out its tools and `tool_calls` of the assistant.")
    assert lines[5] == "… and 2 more" and "template that shows it" in lines[6]


@pytest.mark.parametrize("shape", ["tools", "harmony"])
def test_an_answer_of_calls_is_learnt_and_judged_as_the_template_writes_it(shape: str) -> None:
    tokenizer = tokenizer_of(SHAPES[shape])
    example = example_of([CALLING[0], {"role": "assistant", "content": None, "tool_calls": [CALL]}], tools=TOOLS)
    encoded = encode(tokenizer, example)
    learnt = str(tokenizer.decode(encoded.input_ids[encoded.prompt_length :]))
    gold = gold_of(tokenizer, example)
    assert "weather" in learnt and '{"city": "Oslo"}' in learnt
    assert "weather" in gold and '{"city": "Oslo"}' in gold and "<|im_end|>" not in gold


# The worst of them: rules that the model was never shown.
def test_a_system_message_that_the_template_drops_is_refused() -> None:
    tokenizer = tokenizer_of(SHAPES["ChatML"])
    tokenizer.chat_template = SHAPES["ChatML"].template.replace(
        "<|im_start|>{{ m.role }}", "{% if m.role == 'system' %}{% continue %}{% endif %}<|im_start|>{{ m.role }}"
    )
    system = {"role": "system", "content": "Be brief."}
    with raises("chat-template.leaves-out", "`content` of the system"):
        check_rendering(tokenizer, [example_of([system, CALLING[0], CALLING[-1]])])


def test_refusals_of_the_template_come_with_their_lines_all_at_once() -> None:
    fine = example_of([CALLING[0], CALLING[-1]])
    system = example_of([{"role": "system", "content": "Be brief."}, CALLING[0], CALLING[-1]])
    with raises("chat-template.refuses") as caught:
        check_rendering(tokenizer_of(SHAPES["Gemma"]), [fine, system, fine, system])
    line = "chats.jsonl, line 7: The model's chat template refuses a conversation of system, user: no system role"
    assert str(caught.value).splitlines() == [line, line]


def test_the_text_of_end_tokens_is_taken_off_and_counted() -> None:
    tokenizer = tokenizer_of(SHAPES["ChatML"])
    marked = [
        example_of([CALLING[0], {"role": "assistant", "content": text}]) for text in ("cold<|im_end|>", "cold", "c<|im_end|>old")
    ]
    assert check_rendering(tokenizer, marked) == [
        "2 of 3 completions hold the text of an end token, where an answer ends: taken off"
    ]
    assert len({tuple(encode(tokenizer, example).input_ids) for example in marked}) == 1
    assert {gold_of(tokenizer, example) for example in marked} == {"cold"}


# Without a template there is a place for texts alone.
def test_plain_prompts_refuse_what_they_cannot_say() -> None:
    tokenizer = tokenizer_of(SHAPES["ChatML"])
    tokenizer.chat_template = None
    with raises("chat-template.leaves-out", "its tools and `tool_calls` of the assistant"):
        check_rendering(tokenizer, [example_of(CALLING, tools=TOOLS)])


# gpt-oss writes one call a message, Llama 3.1 refuses more.
def test_a_call_that_is_left_out_beside_another_is_missed() -> None:
    two = [CALL, {**CALL, "function": {"name": "time", "arguments": {}}}]
    single, parallel = ([CALLING[0], {"role": "assistant", "tool_calls": calls}] for calls in ([CALL], two))
    tokenizer = tokenizer_of(SHAPES["harmony"])
    assert check_rendering(tokenizer, [example_of(single)]) == []
    with raises("chat-template.leaves-out", "line 7", "`tool_calls[1:]` of the answer"):
        check_rendering(tokenizer, [example_of(single), example_of(parallel)])
    assert check_rendering(tokenizer_of(SHAPES["tools"]), [example_of(parallel)]) == []


@pytest.mark.parametrize("content", ["", "Let me see.", "<think>\nI look it up.\n</think>\n\n"])
@pytest.mark.parametrize("shape", ["tools", "harmony"])
def test_calls_are_read_back_with_the_text_before_them(shape: str, content: str) -> None:
    tokenizer, example = tokenizer_of(SHAPES[shape]), example_of([CALLING[0], {**CALLING[1], "content": content}])
    if (shape, content) == ("harmony", "Let me see."):
        with raises("chat-template.leaves-out", "`content` of the answer"):
            check_rendering(tokenizer, [example])
        return
    written, gold = completion_text(tokenizer, example), gold_of(tokenizer, example)
    assert format_of(tokenizer, example).answer_in(written).strip() == gold
    assert "weather" in gold and "Oslo" in gold and ("Let me see." in gold) == ("Let me see." in content)
    assert "look it up" not in gold and ("look it up" in written) == ("look it up" in content)


def test_a_completion_that_is_an_end_token_alone_is_refused() -> None:
    with raises("data.no-completion", "line 7"):
        check_rendering(tokenizer_of(SHAPES["ChatML"]), [example_of([CALLING[0], {**CALLING[3], "content": "<|im_end|>\n"}])])


def test_a_text_that_the_tokenizer_cannot_write_is_counted() -> None:
    tokenizer = tokenizer_of(SHAPES["ChatML"])
    rust: Any = tokenizer._tokenizer
    rust.normalizer = normalizers.Lowercase()
    small, large = (example_of([CALLING[0], {"role": "assistant", "content": text}]) for text in ("cold", "COLD"))
    assert check_rendering(tokenizer, [small]) == []
    (note,) = check_rendering(tokenizer, [small, large])
    assert note.startswith("1 of 2 completions cannot be written by the tokenizer as they are, the first becomes 'cold")
