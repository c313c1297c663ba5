"""From the lines of a source to examples, by the task's templates.

{"question": "2 + 2 = ?", "answer": "4"}   prompt "{question}", completion "{answer}"   ->   user: 2 + 2 = ?   assistant: 4
"""

from collections.abc import Sequence
from typing import NamedTuple

from toolkit.runtime.errors import PollardError
from toolkit.tasks.chat_format import unclosed_reasoning
from toolkit.tasks.choices import LabelReader, label_reader
from toolkit.tasks.conversation import Conversation, conversation_in, holds_messages
from toolkit.tasks.example import Example
from toolkit.tasks.multiple_choice import ChoiceReader, choice_reader
from toolkit.tasks.presets import Preset
from toolkit.tasks.sources import Lines, bad_line
from toolkit.tasks.templates import Row, check_texts, column, fill_template


class ReadExamples(NamedTuple):
    """The examples of a source, and what is wrong with each line that cannot be used."""

    examples: list[Example]
    faults: list[PollardError]


class ExampleReader:
    """Reads the lines of one source. What numbers for labels and choices mean is decided once, over all of its lines.

    `message_columns` names the column, or columns, with chat messages, which then replace the templates. Raises PollardError
    where the source as a whole cannot be understood.
    """

    def __init__(self, lines: Lines, preset: Preset, message_columns: str | Sequence[str] | None) -> None:
        self.lines, self.preset, self.message_columns = lines, preset, message_columns
        self.answers: LabelReader | ChoiceReader | None = None
        if preset.choices:
            self.answers = choice_reader(self._prepared_rows(), preset, lines.class_names)
        elif preset.label:
            self.answers = label_reader(self._prepared_rows(), preset, lines.class_names)

    def read(self) -> ReadExamples:
        examples, faults = [], []
        for where, row in self.lines.lines:
            if isinstance(row, str):
                faults.append(bad_line(where, row))
                continue
            try:
                examples.append(self._example(where, row))
            except PollardError as error:
                faults.append(error)
            except RecursionError:
                faults.append(bad_line(where, "nested too deeply to be read."))
        return ReadExamples(examples, faults)

    def _prepared_rows(self) -> list[Row]:
        rows = []
        for row in self.lines.columns:
            try:
                rows.append(self.preset.prepare(row))
            except PollardError:
                continue  # it is raised again, with its line, where the line is read
        return rows

    def _example(self, where: str, row: Row) -> Example:
        preset, line = self.preset, row
        try:
            row = preset.prepare(row)
            row = self.answers.read(row) if self.answers else row
        except PollardError as error:
            raise PollardError(f"{where}: {error}", code=error.code) from None
        system = fill_template(preset.system, row, where) if preset.system else None
        chat = self._from_messages(where, row, system) if self.message_columns else self._from_templates(where, row, system)
        if not chat.completion.strip() and not chat.reply.get("tool_calls"):
            raise PollardError(f"{where}: the completion is empty.", code="data.no-completion")
        if tag := unclosed_reasoning(chat.completion):
            raise PollardError(
                f"{where}: the completion begins reasoning ({tag}) that never ends, and has no answer.",
                code="data.unclosed-reasoning",
            )
        if not chat.gold.strip():
            raise PollardError(f"{where}: the completion is nothing but reasoning, and has no answer.", code="data.no-completion")
        gold = fill_template(preset.answer, row, where) if preset.answer else chat.gold
        example = Example(
            chat.messages, chat.completion, gold, where, plain=not preset.chat, reply=chat.reply, tools=chat.tools, row=line
        )  # fmt: skip
        if not isinstance(self.answers, ChoiceReader):
            return example
        cloze = fill_template(preset.cloze, row, where) if preset.cloze else None
        return example.with_choices(tuple(row["texts"]), row["right"], cloze)

    def _from_templates(self, where: str, row: Row, system: str | None) -> Conversation:
        """A question and its answer."""
        prompt, completion = str(self.preset.prompt), str(self.preset.completion)
        for template in (prompt, completion):
            name = template.strip()[1:-1]
            if f"{{{name}}}" == template.strip() and holds_messages(row.get(name)):
                raise PollardError(
                    f"{where}: the field `{name}` holds chat messages and no text: instead of the templates name the columns "
                    "with them, `task.messages: chat`, or [prompt, completion] where they follow one another.",
                    code="data.messages-in-template",
                )
        question = {"role": "user", "content": fill_template(prompt, row, where)}
        if not question["content"].strip():
            raise PollardError(f"{where}: the prompt is empty.", code="data.no-prompt")
        messages = ({"role": "system", "content": system}, question) if system else (question,)
        return Conversation(messages, fill_template(completion, row, where), {}, ())

    def _from_messages(self, where: str, row: Row, system: str | None) -> Conversation:
        names = self.message_columns or ()
        for name in [names] if isinstance(names, str) else names:
            check_texts(name, column(name, row, where), where)
        try:
            return conversation_in(row, names, system)
        except PollardError as error:
            raise PollardError(f"{where}: {error}", code=error.code) from None
