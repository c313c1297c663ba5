"""From a line of a file to an example, by the task's templates."""

from typing import Any

from toolkit.errors import PollardError
from toolkit.tasks.classification import labelled
from toolkit.tasks.example import Example, Message
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
    if conversation:
        messages, completion = _turns(where, columns, conversation)
    else:
        messages = ({"role": "user", "content": filled(str(preset.prompt), columns, where)},)
        completion = filled(str(preset.completion), columns, where)
    if not completion.strip():
        raise PollardError(f"{where}: the completion is empty.")
    gold = filled(preset.answer, columns, where) if preset.answer else completion
    if not preset.choices:
        return Example(messages, completion, gold, where, plain=not preset.chat)
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


def _turns(where: str, columns: dict[str, Any], name: str) -> tuple[tuple[Message, ...], str]:
    messages = column(name, columns, where)
    well_formed = isinstance(messages, list) and len(messages) > 1
    well_formed = well_formed and all(isinstance(m, dict) and "role" in m and isinstance(m.get("content"), str) for m in messages)
    if not well_formed or messages[-1]["role"] != "assistant":
        raise PollardError(
            f"{where}: `{name}` must be a list of {{role, content}} messages, each content a text, "
            "that ends with the assistant's."
        )
    turns = tuple({"role": m["role"], "content": m["content"]} for m in messages)
    return turns[:-1], turns[-1]["content"]
