"""From a line of a file to an example, by the task's templates."""

from typing import Any

from toolkit.errors import PollardError
from toolkit.tasks.classification import labelled
from toolkit.tasks.conversation import Conversation, conversation_in
from toolkit.tasks.example import Example
from toolkit.tasks.multiple_choice import lettered
from toolkit.tasks.preset import Preset
from toolkit.tasks.sources import Row
from toolkit.tasks.templates import column, filled


def example_of(row: Row, preset: Preset, conversation: str | None) -> Example:
    """`conversation` names a column with chat messages, which then stands for the templates. Raises PollardError, with the
    line, for one that does not fit them."""
    where, columns = row
    try:
        columns = _prepared(columns, preset)
    except PollardError as error:
        raise PollardError(f"{where}: {error}") from None
    system = filled(preset.system, columns, where) if preset.system else None
    chat = _chat(where, columns, conversation, system) if conversation else _asked(where, columns, preset, system)
    if not chat.completion.strip() and not chat.reply.get("tool_calls"):
        raise PollardError(f"{where}: the completion is empty.")
    messages, completion = chat.messages, chat.completion
    gold = filled(preset.answer, columns, where) if preset.answer else chat.gold
    if not preset.choices:
        return Example(messages, completion, gold, where, plain=not preset.chat, reply=chat.reply, tools=chat.tools)
    cloze = filled(preset.cloze, columns, where) if preset.cloze else None
    texts = tuple(columns["texts"])
    return Example(messages, completion, gold, where, plain=not preset.chat, choices=texts, right=columns["right"], cloze=cloze)


def _prepared(columns: dict[str, Any], preset: Preset) -> dict[str, Any]:
    columns = preset.prepare(columns)
    if preset.choices:
        columns = lettered(columns, preset.choices)
    if preset.label:
        if not preset.labels:
            raise PollardError("a classification needs `task.labels`, e.g. labels: [positive, negative].")
        columns = labelled(columns, preset.label, preset.labels)
    return columns


def _asked(where: str, columns: dict[str, Any], preset: Preset, system: str | None) -> Conversation:
    """A question and its answer, by the task's templates."""
    question = {"role": "user", "content": filled(str(preset.prompt), columns, where)}
    messages = ({"role": "system", "content": system}, question) if system else (question,)
    return Conversation(messages, filled(str(preset.completion), columns, where), {}, ())


def _chat(where: str, columns: dict[str, Any], name: str, system: str | None) -> Conversation:
    column(name, columns, where)  # says what is there instead
    try:
        return conversation_in(columns, name, system)
    except PollardError as error:
        raise PollardError(f"{where}: {error}") from None
