"""Chat messages as data sets publish them: read whole, or refused with what is wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import raises

from toolkit.recipe.data import TaskRecipe
from toolkit.tasks import Task
from toolkit.tasks.conversation import Conversation, conversation_in

HELLO = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def read(messages: Any, **columns: Any) -> Conversation:
    return conversation_in({"chat": messages} | columns, "chat")


def asked(*fields: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": "Weather in Oslo?"}, *fields]


@pytest.mark.parametrize(
    "messages",
    [
        HELLO,
        [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}],
        [{"from": "user", "value": "Hi"}, {"from": "assistant", "value": "Hello"}],
        [{"role": "human", "content": "Hi"}, {"role": "model", "content": "Hello"}],
        [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, {"role": "assistant", "content": ["Hello"]}],
        [
            {"role": "user", "content": "Hi", "tool_calls": None, "name": None},
            {"role": "assistant", "content": "Hello", "parts": []},
        ],
        [{"from": "Human", "value": "Hi"}, {"from": "GPT", "value": "Hello"}],
        json.dumps(HELLO),
    ],
)
def test_all_published_shapes_are_the_same_conversation(messages: Any) -> None:
    found = read(messages)
    assert found.messages == ({"role": "user", "content": "Hi"},)
    assert (found.completion, found.gold, found.reply, found.tools) == ("Hello", "Hello", {}, ())


@pytest.mark.parametrize(
    "call",
    [
        CALL,
        CALL | {"function": {"name": "weather", "arguments": '{"city": "Oslo"}'}},
        {"id": "c1", "name": "weather", "arguments": {"city": "Oslo"}},
        {"id": "c1", "name": "weather", "parameters": {"city": "Oslo"}},
        json.dumps(CALL),
    ],
)
def test_tool_calls_come_with_their_arguments_as_objects(call: Any) -> None:
    conversation = asked(
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "name": "weather", "content": "3 degrees"},
        {"role": "assistant", "content": "3 degrees."},
    )
    found = read(conversation, tools=[TOOL])
    assert found.messages[1] == {"role": "assistant", "content": "", "tool_calls": [CALL]}
    assert found.messages[2] == conversation[2] and found.tools == (TOOL,)


def test_a_final_message_may_consist_of_calls_and_is_judged_by_them() -> None:
    found = read(asked({"role": "assistant", "tool_calls": [CALL, CALL]}))
    assert found.completion == "" and found.reply == {"tool_calls": [CALL, CALL]}
    assert json.loads(found.gold) == [CALL["function"], CALL["function"]]


def test_earlier_ways_to_call_are_read_alike() -> None:
    function = {"name": "weather", "arguments": '{"city": "Oslo"}'}
    openai = read(asked({"role": "assistant", "content": None, "function_call": function}))
    sharegpt = read([{"from": "human", "value": "Weather in Oslo?"}, {"from": "function_call", "value": json.dumps(function)}])
    assert openai.reply == sharegpt.reply == {"tool_calls": [{k: v for k, v in CALL.items() if k != "id"}]}


@pytest.mark.parametrize("tools", [[TOOL], json.dumps([TOOL]), [json.dumps(TOOL)], [TOOL["function"]], TOOL])
def test_tools_are_read_from_their_column(tools: Any) -> None:
    assert read(HELLO, tools=tools).tools == (TOOL,)
    assert read(HELLO, functions=tools).tools == (TOOL,)
    assert read(HELLO, tools=None).tools == read(HELLO, tools=[]).tools == ()


# Parquet gives every tool the parameters of all.
def test_null_in_a_tool_is_left_out() -> None:
    filled_up = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "items": None}}, "x": None}
    assert read(HELLO, tools=[filled_up]).tools == (TOOL,)


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_is_one_field_under_all_its_names(name: str) -> None:
    found = read(asked({"role": "assistant", "content": "3 degrees.", name: "Look it up."}))
    assert found.reply == {"reasoning_content": "Look it up."} and found.gold == "3 degrees."


def test_reasoning_in_parts_or_tags_is_none_of_the_gold() -> None:
    parts = [{"type": "thinking", "thinking": "Look it up."}, {"type": "text", "text": "3 degrees."}]
    assert read(asked({"role": "assistant", "content": parts})).reply == {"reasoning_content": "Look it up."}
    tagged = read(asked({"role": "assistant", "content": "<think>\nLook it up.\n</think>\n\n3 degrees."}))
    assert tagged.gold == "3 degrees." and tagged.completion.startswith("<think>")


def test_reasoning_may_be_parts_of_a_part() -> None:
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "Look it up."}]}, {"type": "text", "text": "3 degrees."}]
    found = read(asked({"role": "assistant", "content": parts}))
    assert (found.completion, found.reply) == ("3 degrees.", {"reasoning_content": "Look it up."})


def test_reasoning_in_tags_and_a_field_is_there_once() -> None:
    text = "<think>\nLook it up.\n</think>\n\n3 degrees."
    assert read(asked({"role": "assistant", "content": text, "reasoning": "Look it up."})).reply == {}
    assert read(asked({"role": "assistant", "content": text, "reasoning": "Other"})).reply == {"reasoning_content": "Other"}


def test_calls_are_judged_with_the_text_before_them_and_without_reasoning() -> None:
    for content, before in (("Wait.", "Wait.\n"), ("<think>\nHm.\n</think>\n\n", ""), ("<think>Hm.</think>Wait.", "Wait.\n")):
        found = read(asked({"role": "assistant", "content": content, "tool_calls": [CALL]}))
        assert found.gold == before + '[{"arguments": {"city": "Oslo"}, "name": "weather"}]'


@pytest.mark.parametrize(
    ("result", "text"),
    [
        ({"degrees": 3, "snow": None}, '{"degrees": 3, "snow": null}'),
        ([{"type": "sedan", "price": 1.5}], '[{"type": "sedan", "price": 1.5}]'),
        (3, "3"),
        (True, "true"),
        ([], "[]"),
        (None, ""),
        ([{"type": "text", "text": "3 degrees"}], "3 degrees"),
        ('{"degrees": 3}', '{"degrees": 3}'),
    ],
)
@pytest.mark.parametrize("role", ["tool", "tool_response", "ipython"])
def test_what_a_tool_answers_need_not_be_a_text(role: str, result: Any, text: str) -> None:
    messages = asked(
        {"role": "tool_call", "content": '{"name": "weather", "arguments": {}}'},
        {"role": role, "content": result},
        HELLO[1],
    )
    assert read(messages).messages[2]["content"] == text


def test_every_other_field_of_a_message_passes() -> None:
    user = {"role": "user", "content": "Hi", "name": "Mia", "timestamp": "2026", "toxic": False, "country": "NO"}
    assert read([user, HELLO[1]]).messages == (user,)


def test_a_system_prompt_stands_before_a_conversation_without_one() -> None:
    system, own = {"role": "system", "content": "Be brief."}, {"role": "system", "content": "Be long."}
    assert conversation_in({"chat": HELLO}, "chat", "Be brief.").messages[0] == system
    assert conversation_in({"chat": [own, *HELLO]}, "chat", "Be brief.").messages[:1] == (own,)


@pytest.mark.parametrize(
    ("messages", "code", "named"),
    [
        ("Hi?", "conversation.no-list", "`chat`"),
        ([], "conversation.no-list", "`chat`"),
        (HELLO[:1], "conversation.no-list", "`chat`"),
        (["Hi?", "Ho."], "conversation.no-list", "`chat`"),
        ([HELLO[1], HELLO[0]], "conversation.ending", "user"),
        ([HELLO[0], {"role": "assistent", "content": "Ho"}], "conversation.role", "Did you mean `assistant`?"),
        ([{"role": ["user"], "content": "Hi"}, HELLO[1]], "conversation.role", "['user']"),
        (
            [{"role": "tool", "content": {"degrees": float("nan")}}, HELLO[1]],
            "conversation.result",
            "message 1",
        ),
        ([HELLO[0], {"content": "Ho"}], "conversation.role", "message 2"),
        ([HELLO[0], {"role": "assistant", "content": None}], "conversation.empty", "message 2"),
        ([{"role": "user", "content": " "}, HELLO[1]], "conversation.empty", "message 1"),
        ([{"role": "user", "content": 7}, HELLO[1]], "conversation.content", "message 1"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, HELLO[1]], "conversation.part", "image_url"),
        ([HELLO[0], HELLO[1] | {"weight": 0}], "conversation.not-trained", "weight: 0"),
        ([HELLO[0], HELLO[1] | {"train": False}], "conversation.not-trained", "train: False"),
        ([HELLO[0], HELLO[1] | {"thinking": ["So"]}], "conversation.reasoning", "message 2"),
        ([HELLO[0], {"role": "assistant", "tool_calls": [{"id": "c1"}]}], "conversation.tool-call", "message 2"),
        (
            [HELLO[0], {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{city: Oslo"}]}],
            "conversation.tool-call",
            "'{city: Oslo'",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_place(messages: Any, code: str, named: str) -> None:
    with raises(code, named):
        read(messages)


@pytest.mark.parametrize("tools", ["weather", [{"description": "no name"}], [["weather"]]])
def test_tools_without_names_are_refused(tools: Any) -> None:
    with raises("conversation.tools", "tools"):
        read(HELLO, tools=tools)


@pytest.mark.parametrize(
    ("columns", "names"),
    [
        ({"prompt": HELLO[:1], "completion": HELLO[1:]}, ["prompt", "completion"]),
        ({"prompt": HELLO[:1], "chosen": HELLO[1:], "rejected": HELLO[1:]}, ["prompt", "chosen"]),
        ({"prompt": json.dumps(HELLO[:1]), "completion": json.dumps(HELLO[1:])}, ["prompt", "completion"]),
        ({"prompt": "Hi", "chosen": HELLO, "rejected": HELLO}, "chosen"),
    ],
)
def test_questions_and_answers_that_stand_apart_are_one_conversation(columns: dict[str, Any], names: Any) -> None:
    found = conversation_in(columns, names)
    assert (found.messages, found.completion) == (tuple(HELLO[:1]), "Hello")


@pytest.mark.parametrize(
    ("columns", "named"),
    [
        (
            {"prompt": HELLO[:1], "completion": HELLO[1:]},
            "the field `prompt` holds chat messages and no text: instead of the templates name the columns",
        ),
        ({"prompt": "Hi", "completion": HELLO}, "`completion`"),
        (
            {"prompt": "Hi", "completion": json.dumps([{"from": "gpt", "value": "x"}])},
            "`completion`",
        ),
    ],
)
def test_messages_in_the_place_of_a_text_are_refused(tmp_path: Path, columns: dict[str, Any], named: str) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(columns))
    keys = {"prompt": "{prompt}", "completion": "{completion}", "scorer": "exact", "test": str(tmp_path / "a.jsonl")}
    with raises("data.messages-in-template", named):
        Task(TaskRecipe(**keys)).examples("test")
