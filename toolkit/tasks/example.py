"""One item of a task, and the messages that it consists of."""

from dataclasses import dataclass, field, replace
from typing import Any

from toolkit.tasks.templates import Row

Message = dict[str, Any]  # as chat templates take it: role, content, and whatever else the data gives (tool_calls, name, …)
Tool = dict[str, Any]  # a JSON schema
SYSTEM_ROLES = ("system", "developer")  # of messages that stand before everything else, solved examples included


@dataclass(frozen=True)
class Example:
    """One item: the conversation so far, what the model should write, and the text its answer is judged by."""

    messages: tuple[Message, ...]
    completion: str  # the text of the assistant's final message; empty where that consists of tool calls
    gold: str
    where: str = field(default="", compare=False)  # the line that it came from, for messages
    shots: tuple["Example", ...] = ()  # solved examples that stand before it in the prompt
    plain: bool = False  # without the chat template, even where there is one
    choices: tuple[str, ...] = ()  # the texts of lettered choices
    right: int = 0  # the index of the right choice
    cloze: str | None = None  # a prompt that does not list the choices
    reply: Message = field(default_factory=dict)  # the other fields of the final message: reasoning_content, tool_calls, …
    tools: tuple[Tool, ...] = ()  # that the conversation may call
    row: Row = field(default_factory=dict, compare=False, repr=False)  # the line, for scorers that look at it

    @property
    def answer(self) -> Message:
        """The assistant's final message with all its fields."""
        return {"role": "assistant", "content": self.completion, **self.reply}

    @property
    def turns(self) -> list[Message]:
        """The messages of the prompt: system messages, solved examples, then the item's own."""
        systems = [message for message in self.messages if message["role"] in SYSTEM_ROLES]
        solved = [turn for shot in self.shots for turn in (*shot.dialogue, shot.answer)]
        return [*systems, *solved, *self.dialogue] if solved else list(self.messages)

    @property
    def dialogue(self) -> list[Message]:
        """The messages without those of the system."""
        return [message for message in self.messages if message["role"] not in SYSTEM_ROLES]

    @property
    def question(self) -> str:
        """The texts of the messages, for people."""
        return "\n".join(message["content"] for message in self.messages if message.get("content"))

    def with_choices(self, choices: tuple[str, ...], right: int, cloze: str | None) -> "Example":
        return replace(self, choices=choices, right=right, cloze=cloze)

    def as_cloze(self) -> "Example":
        """The item, and its shots, as a question without choices whose completion is the text of the right one."""
        messages = (*self.messages[:-1], {"role": "user", "content": self.cloze or ""})
        shots = tuple(shot.as_cloze() for shot in self.shots)
        return replace(self, messages=messages, completion=self.choices[self.right], shots=shots, choices=(), right=0, cloze=None)
