"""One item of a task."""

from dataclasses import dataclass, field

Message = dict[str, str]


@dataclass(frozen=True)
class Example:
    """One item: the conversation so far, what the model should write, and the text its answer is judged by.

    `shots` are solved examples that stand before it in the prompt. `plain`: no chat template, even where there is one.
    Of an item with lettered choices, `choices` are their texts, and `cloze` is a prompt that does not list them. `where`
    names the line it came from.
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

    @property
    def turns(self) -> list[Message]:
        """What the model sees: the solved examples, behind the system's word and before the question."""
        systems = [message for message in self.messages if message["role"] == "system"]
        solved = [turn for shot in self.shots for turn in (*shot.asked, {"role": "assistant", "content": shot.completion})]
        return [*systems, *solved, *self.asked] if solved else list(self.messages)

    @property
    def asked(self) -> list[Message]:
        return [message for message in self.messages if message["role"] != "system"]

    def as_cloze(self) -> "Example":
        """The item as a question without its choices, the text of the right one its completion; its shots alike."""
        messages = (*self.messages[:-1], {"role": "user", "content": self.cloze or ""})
        shots = tuple(shot.as_cloze() for shot in self.shots)
        return Example(messages, self.choices[self.right], self.gold, self.where, shots, self.plain)
