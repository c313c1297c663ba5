"""Chat messages of a line, in the shapes they are published in, whole: reasoning, tool calls and their results included.

    {"messages": [{"role": "user", "content": "Weather?"}, {"role": "assistant", "tool_calls": [{"function": {"name": …}}]}, …],
     "tools": [{"type": "function", "function": {"name": "get_weather", "parameters": {…}}}]}
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}], "system": "Be brief."}     ShareGPT
    {"prompt": [{"role": "user", "content": "Hi"}], "completion": [{"role": "assistant", "content": "Hello"}]}

Fields are understood here; whether the chat template shows them is checked in tasks/rendered_fields.py. A field that is null or
empty counts as absent: files with columns give every message all fields.
"""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from toolkit.runtime.errors import PollardError, did_you_mean
from toolkit.tasks.chat_format import REASONING, REASONING_NAMES, split_reasoning
from toolkit.tasks.example import SYSTEM_ROLES, Message, Tool
from toolkit.tasks.templates import Row, parsed_json, text_of

TEMPLATE_ROLES = {  # the roles of chat templates, by the names that data sets use
    "system": "system", "developer": "developer", "user": "user", "human": "user", "prompter": "user", "assistant": "assistant",
    "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "bot": "assistant", "tool": "tool", "function": "tool",
    "observation": "tool", "tool_response": "tool", "ipython": "ipython", "function_call": "assistant", "tool_call": "assistant",
}  # fmt: skip
CALL_ROLES = ("function_call", "tool_call")  # of messages that consist of calls
RESULT_ROLES = ("tool", "ipython")  # of messages with the result of a tool
# Fields that mark a message as not to be trained on
UNTRAINED_MARKS = {"weight": 0, "train": False, "loss": False, "trainable": False}


class Conversation(NamedTuple):
    """`completion` is the final message's text, `reply` its other fields."""

    messages: tuple[Message, ...]
    completion: str
    reply: Message
    tools: tuple[Tool, ...]

    @property
    def gold(self) -> str:
        """The text that answers are compared with: the reply without its reasoning, and its tool calls."""
        return text_of_reply(self.completion, self.reply)


def conversation_in(row: Row, names: str | Sequence[str], system: str | None = None) -> Conversation:
    """The conversation in a column, or in several one after the other, with the tools in a column `tools` (or `functions`);
    `system` stands before one that has no system message of its own.

    Raises PollardError for what is no conversation that ends with the assistant, and for fields that cannot be used.
    """
    names = [names] if isinstance(names, str) else names
    parts, name = [parsed_json(row[name]) for name in names], " + ".join(names)
    given = [message for part in parts if isinstance(part, list) for message in part]
    if not all(isinstance(part, list) for part in parts) or len(given) < 2 or not all(isinstance(m, dict) for m in given):
        raise PollardError(
            f"`{name}` must be a list of at least two messages, {{role, content}} or {{from, value}}, that ends with the "
            "assistant's.",
            code="conversation.no-list",
        )
    messages = [_message(message, f"message {number} of `{name}`") for number, message in enumerate(given, start=1)]
    if messages[-1]["role"] != "assistant":
        raise PollardError(
            f"`{name}` ends with a message of the {messages[-1]['role']}: the last one, which is what is learnt and asked for, "
            "must be the assistant's.",
            code="conversation.ending",
        )
    for mark in (key for key, value in UNTRAINED_MARKS.items() if messages[-1].get(key, True) == value):
        raise PollardError(
            f"the last message of `{name}` says {mark}: {messages[-1][mark]}, and it is the one that is learnt.",
            code="conversation.not-trained",
        )
    if system and messages[0]["role"] not in SYSTEM_ROLES:
        messages.insert(0, {"role": "system", "content": system})
    last = {key: value for key, value in messages[-1].items() if key not in ("role", "content")}
    return Conversation(tuple(messages[:-1]), messages[-1]["content"], last, _tools(row))


def holds_messages(value: Any) -> bool:
    """Whether a column holds chat messages."""
    value = parsed_json(value)
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) and _is_message(item) for item in value)


def _is_message(item: Message) -> bool:
    return {"role", "content"} <= item.keys() or {"from", "value"} <= item.keys()


def text_of_reply(completion: str, reply: Message) -> str:
    """A reply as one text: without its reasoning, and with tool calls as JSON of names and arguments."""
    text = split_reasoning(completion)[1]
    if not reply.get("tool_calls"):
        return text
    calls = json.dumps([call["function"] for call in reply["tool_calls"]], ensure_ascii=False, sort_keys=True)
    return f"{text.strip()}\n{calls}".strip()


def _message(given: Message, what: str) -> Message:
    """One message in the shape that chat templates take."""
    fields = {key: value for key, value in given.items() if value is not None and value != [] and value != {}}
    role, content = fields.pop("role", fields.pop("from", None)), fields.pop("content", fields.pop("value", None))
    role = role.lower() if isinstance(role, str) else role
    if not isinstance(role, str) or role not in TEMPLATE_ROLES:
        known = ", ".join(TEMPLATE_ROLES)
        raise PollardError(
            f"{what} has the role {role!r}{did_you_mean(str(role), list(TEMPLATE_ROLES))} Roles that are known: {known}.",
            code="conversation.role",
        )
    if role in CALL_ROLES:  # ShareGPT's way to call a tool
        fields["tool_calls"], content = content, None
    if "function_call" in fields:  # OpenAI's earlier one
        fields["tool_calls"] = [fields.pop("function_call")]
    if TEMPLATE_ROLES[role] in RESULT_ROLES:
        content = _result(given.get("content", given.get("value")), what)
    text, thoughts = _text(content, what)
    thoughts += [fields.pop(key) for key in REASONING_NAMES if key in fields]
    if "tool_calls" in fields:
        fields["tool_calls"] = [_call(call, what) for call in _as_list(parsed_json(fields["tool_calls"]))]
    message = {"role": TEMPLATE_ROLES[role], "content": text, **fields}
    if not all(isinstance(thought, str) for thought in thoughts):
        raise PollardError(f"{what}: its reasoning is no text.", code="conversation.reasoning")
    if thoughts := [thought for thought in dict.fromkeys(thoughts) if thought.strip()]:
        thought = "\n".join(thoughts)
        if split_reasoning(text)[0] != thought.strip():  # the text may have it as well
            message[REASONING] = thought
    if not text.strip() and not message.get("tool_calls") and TEMPLATE_ROLES[role] in ("user", "assistant"):
        raise PollardError(
            f"{what} (of the {TEMPLATE_ROLES[role]}) is empty: it has neither text nor tool calls.", code="conversation.empty"
        )
    return message


def _text(content: Any, what: str) -> tuple[str, list[str]]:
    """The text of a message, a line for each of its parts, and parts that are reasoning."""
    if content is None or isinstance(content, str):
        return content or "", []
    if not isinstance(content, list) or not all(isinstance(part, dict | str) for part in content):
        raise PollardError(
            f"{what}: its content is {type(content).__name__}, neither a text nor a list of parts.", code="conversation.content"
        )
    texts: list[str] = []
    thoughts: list[str] = []
    for part in content:
        kind = "text" if isinstance(part, str) else str(part.get("type", "text"))
        value = part if isinstance(part, str) else part.get("text") or part.get(kind)
        if kind in ("thinking", "reasoning") and isinstance(value, list):  # of parts
            value = _text(value, what)[0]
        if kind not in ("text", "input_text", "output_text", "thinking", "reasoning") or not isinstance(value, str):
            raise PollardError(f"{what} holds a part of type {kind!r}, and only text can be used here.", code="conversation.part")
        (thoughts if kind in ("thinking", "reasoning") else texts).append(value)
    return "\n".join(texts), thoughts


def _result(result: Any, what: str) -> Any:
    """The result of a tool: a text or parts as they are, all else as JSON."""
    if isinstance(result, list) and result and all(_is_part(item) for item in result):
        return result
    try:
        return "" if result is None else text_of(result)
    except ValueError as error:
        raise PollardError(f"{what}: in its result {error}.", code="conversation.result") from None


def _is_part(item: Any) -> bool:
    return isinstance(item, str) or (isinstance(item, dict) and bool({"text", str(item.get("type"))} & item.keys()))


def _call(call: Any, what: str) -> Message:
    """One tool call, {"type": "function", "function": {"name", "arguments"}}, its arguments an object, as templates want it."""
    call = parsed_json(call)
    function = parsed_json(call.get("function", call)) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise PollardError(f"{what} has a tool call without a name: {call!r}.", code="conversation.tool-call")
    arguments = function.get("arguments", function.get("parameters", {}))
    parsed = parsed_json(arguments) if arguments not in (None, "") else {}
    if not isinstance(parsed, dict):
        raise PollardError(
            f"{what} calls {function['name']} with arguments that are no JSON object: {arguments!r}.",
            code="conversation.tool-call",
        )
    outside = {key: value for key, value in call.items() if key not in ("function", "name", "arguments", "parameters")}
    return {"type": "function"} | outside | {"function": {"name": function["name"], "arguments": parsed}}


def _tools(row: Row) -> tuple[Tool, ...]:
    """The tools that a conversation may call, each {"type": "function", "function": {…}}."""
    name = next((name for name in ("tools", "functions") if row.get(name)), None)
    if name is None:
        return ()
    tools = []
    for tool in _as_list(parsed_json(row[name])):
        tool = _without_null(parsed_json(tool))
        if isinstance(tool, dict) and "function" not in tool and "name" in tool:
            tool = {"type": "function", "function": tool}
        if not isinstance(tool, dict) or not isinstance(tool.get("function"), dict) or "name" not in tool["function"]:
            raise PollardError(
                f"`{name}` must be a list of tools with a name, as JSON schemas, and holds {tool!r}.", code="conversation.tools"
            )
        tools.append(tool)
    return tuple(tools)


def _without_null(value: Any) -> Any:
    """Without null fields: files with columns give every tool the parameters of all."""
    if isinstance(value, dict):
        return {key: _without_null(inner) for key, inner in value.items() if inner is not None}
    return [_without_null(inner) for inner in value] if isinstance(value, list) else value


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
