"""One item of a task."""

from dataclasses import dataclass, field, replace
from typing import Any

Message = dict[str, Any]  # role, content, and what else the data says of a turn: tool_calls, name, reasoning_content, …
SYSTEM_ROLES = ("system", "developer")  # roles of what stands before a conversation, solved examples included


@dataclass(frozen=True)
class Example:
    """One item: the conversation so far, what the model should write, and the text its answer is judged by.

    `reply` holds what the assistant's final message says beside its text (`completion`, empty where it consists of calls):
    reasoning_content, tool_calls, …; `tools` are those that the conversation may call, as JSON schemas. `shots` are solved
    examples that stand before it in the prompt. `plain`: no chat template, even where there is one. Of an item with lettered
    choices, `choices` are their texts, and `cloze` is a prompt that does not list them. `where` names the line it came from.
    """

    messages: tuple[Message, ...]
    completion: str
    gold: str
    where: str = field(default="", compare=False)
    shots: tuple["Example", ...] = ()
    plain: bool = False
    choices: tuple[str, ...] = ()
    right: int = 0
    cloze: str | None = None
    reply: Message = field(default_factory=dict)
    tools: tuple[dict[str, Any], ...] = ()

    @property
    def answer(self) -> Message:
        """The assistant's final message, whole."""
        return {"role": "assistant", "content": self.completion, **self.reply}

    @property
    def turns(self) -> list[Message]:
        """What the model sees: the solved examples, behind the system's word and before the question."""
        systems = [message for message in self.messages if message["role"] in SYSTEM_ROLES]
        solved = [turn for shot in self.shots for turn in (*shot.asked, shot.answer)]
        return [*systems, *solved, *self.asked] if solved else list(self.messages)

    @property
    def asked(self) -> list[Message]:
        return [message for message in self.messages if message["role"] not in SYSTEM_ROLES]

    @property
    def question(self) -> str:
        """The texts of the conversation, for people."""
        return "\n".join(message["content"] for message in self.messages if message.get("content"))

    def as_cloze(self) -> "Example":
        """The item as a question without its choices, the text of the right one its completion; its shots alike."""
        messages = (*self.messages[:-1], {"role": "user", "content": self.cloze or ""})
        shots = tuple(shot.as_cloze() for shot in self.shots)
        return replace(self, messages=messages, completion=self.choices[self.right], shots=shots, choices=(), right=0, cloze=None)
