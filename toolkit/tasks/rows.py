"""From the lines of a source to examples, by the task's templates."""

from collections.abc import Callable, Sequence
from typing import Any

from toolkit.runtime.errors import PollardError
from toolkit.tasks.chat_format import unclosed_reasoning
from toolkit.tasks.choices import label_reader
from toolkit.tasks.conversation import Conversation, conversation_in, holds_messages
from toolkit.tasks.example import Example
from toolkit.tasks.multiple_choice import choice_reader
from toolkit.tasks.presets import Preset
from toolkit.tasks.sources import Lines
from toolkit.tasks.templates import check_texts, column, fill_template

Row = dict[str, Any]


def examples_of(lines: Lines, preset: Preset, conversation: str | Sequence[str] | None) -> tuple[list[Example], list[str]]:
    """The examples of a source, and of each line that cannot be used what is wrong with it, where it stands.

    `conversation` names the column, or columns, with chat messages, which then stand for the templates. Raises PollardError
    where it is the whole source that cannot be understood.
    """
    prepare, examples, bad = _preparation(lines, preset), [], []
    for where, columns in lines.lines:
        if isinstance(columns, str):
            bad.append(f"{where}: {columns}")
            continue
        try:
            examples.append(_example((where, columns), prepare, preset, conversation))
        except PollardError as error:
            bad.append(str(error))
        except RecursionError:
            bad.append(f"{where}: nested too deeply to be read.")
    return examples, bad


def _preparation(lines: Lines, preset: Preset) -> Callable[[Row], Row]:
    """What is done to a line's columns before the templates: what labels and choices mean is decided over all lines."""
    rows = []
    for columns in lines.columns:
        try:
            rows.append(preset.prepare(columns))
        except PollardError:
            continue  # it is raised again, and told, where the line is read
    steps = [preset.prepare]
    if preset.choices:
        steps.append(choice_reader(rows, preset, lines.class_names).of)
    elif preset.label:
        steps.append(label_reader(rows, preset, lines.class_names).of)

    def prepare(columns: Row) -> Row:
        for step in steps:
            columns = step(columns)
        return columns

    return prepare


def _example(
    row: tuple[str, Row], prepare: Callable[[Row], Row], preset: Preset, conversation: str | Sequence[str] | None
) -> Example:
    where, columns = row
    try:
        columns = prepare(columns)
    except PollardError as error:
        raise PollardError(f"{where}: {error}") from None
    system = fill_template(preset.system, columns, where) if preset.system else None
    chat = _chat(where, columns, conversation, system) if conversation else _asked(where, columns, preset, system)
    if not chat.completion.strip() and not chat.reply.get("tool_calls"):
        raise PollardError(f"{where}: the completion is empty.")
    if tag := unclosed_reasoning(chat.completion):
        raise PollardError(f"{where}: the completion begins reasoning ({tag}) that never ends, and has no answer.")
    if not chat.gold.strip():
        raise PollardError(f"{where}: the completion is nothing but reasoning, and has no answer.")
    messages, completion = chat.messages, chat.completion
    gold = fill_template(preset.answer, columns, where) if preset.answer else chat.gold
    if not preset.choices:
        return Example(messages, completion, gold, where, plain=not preset.chat, reply=chat.reply, tools=chat.tools)
    cloze = fill_template(preset.cloze, columns, where) if preset.cloze else None
    texts = tuple(columns["texts"])
    return Example(messages, completion, gold, where, plain=not preset.chat, choices=texts, right=columns["right"], cloze=cloze)


def _asked(where: str, columns: Row, preset: Preset, system: str | None) -> Conversation:
    """A question and its answer, by the task's templates."""
    for template in (preset.prompt, preset.completion):
        name = str(template).strip()[1:-1]
        if f"{{{name}}}" == str(template).strip() and holds_messages(columns.get(name)):
            raise PollardError(
                f"{where}: the field `{name}` holds chat messages and no text: instead of the templates name the columns with "
                "them, `task.messages: chat`, or [prompt, completion] where they follow one another."
            )
    question = {"role": "user", "content": fill_template(str(preset.prompt), columns, where)}
    if not question["content"].strip():
        raise PollardError(f"{where}: the prompt is empty.")
    messages = ({"role": "system", "content": system}, question) if system else (question,)
    return Conversation(messages, fill_template(str(preset.completion), columns, where), {}, ())


def _chat(where: str, columns: Row, names: str | Sequence[str], system: str | None) -> Conversation:
    for name in [names] if isinstance(names, str) else names:
        check_texts(name, column(name, columns, where), where)
    try:
        return conversation_in(columns, names, system)
    except PollardError as error:
        raise PollardError(f"{where}: {error}") from None
