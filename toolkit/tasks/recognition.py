"""What task the columns of somebody's data file describe: the keys of a recipe's `task` that they mean, and how sure that is.

    question, answer             questions and answers; instruction, input, output as well, and other usual names
    text, label                  a classification, where few labels come again and again
    question, choices, answer    multiple choice
    messages, conversations      conversations, also with tools

Columns are known by their names and by what is in them. The scorer follows the answers: numbers, labels, short or long texts.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from toolkit.recipe.data import label_words
from toolkit.runtime.errors import PollardError
from toolkit.runtime.files import JsonObject
from toolkit.tasks.choices import whole_number
from toolkit.tasks.conversation import holds_messages
from toolkit.tasks.multiple_choice import GOLD_COLUMNS
from toolkit.tasks.scorer import MARK, boxed, gold_number
from toolkit.tasks.templates import FIELD, Row, fields_of, parsed_json, readable_text

QUESTIONS = (
    "question", "prompt", "instruction", "query", "problem", "input", "user", "source", "text", "sentence", "review", "comment",
    "document", "article", "message", "body", "subject", "description", "content", "title",
)  # fmt: skip
ANSWERS = (
    "answer", "completion", "response", "output", "target", "reply", "assistant", "solution", "label", "category", "class",
    "sentiment", "intent", "team", "queue", "topic", "summary", "translation", "result",
)  # fmt: skip
CONVERSATIONS, CHOICES, CONTEXT = (
    ("messages", "conversations", "conversation", "chat"),
    ("choices", "options", "endings"),
    "input",
)
SYSTEM, TOOLS = ("system", "system_prompt"), ("tools", "functions")
MOST_LABELS, ROWS_PER_LABEL, LABEL_WORDS, SHORT_WORDS = 20, 5, 4, 8


@dataclass(frozen=True)
class Recognition:
    """What was understood, and what was not."""

    shape: str
    task: JsonObject
    """Keys of the recipe's `task`, without its data."""
    question: tuple[str, ...]
    """The columns that make a question what it is: rows that agree in them ask the same."""
    unused: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)
    """Sentences on what was not certain."""


def recognize(rows: Sequence[Row], prompt: str | None = None, completion: str | None = None) -> Recognition:
    """The task of `rows`; with `prompt` and `completion` (templates) as the user gives them. Raises PollardError where the
    columns do not say what a question and an answer is."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if not columns:
        raise PollardError("No row has a column: there is nothing to ask.", code="init.no-columns")
    found = None
    if prompt is None and completion is None:
        found = _conversations(rows, columns) or _multiple_choice(rows, columns)
    found = found or _questions(rows, columns, prompt, completion)
    task = _system(columns) | found.task
    used = _columns_of(task, columns)
    return replace(found, task=task, unused=tuple(name for name in columns if name not in used))


def _questions(rows: Sequence[Row], columns: Sequence[str], prompt: str | None, completion: str | None) -> Recognition:
    asked, answered, notes = _question_and_answer(columns, prompt, completion)
    notes = [*notes, *(note for name in (*asked, answered) if (note := _about_objects(name, rows)))]
    prompt = prompt or "\n\n".join(f"{{{name}}}" for name in asked)
    if completion is not None:
        notes = [*notes, "Answers are compared as they stand (scorer exact): --scorer names another."]
        task: JsonObject = {"prompt": prompt, "completion": completion, "scorer": "exact"}
        return Recognition("questions and answers", task, tuple(asked), notes=notes)
    # A value that has no text is told, with its line, when the task is read
    answers = [text for row in rows if (text := readable_text(row.get(answered))) is not None]
    if labels := _labels(answers):
        prompt = f"{prompt}\nAnswer with one of: {{labels}}."
        task = {"name": "classification", "prompt": prompt, "label": answered, "labels": labels}
        return Recognition(f"classification into {len(labels)} labels", task, tuple(asked), notes=notes)
    scorer, why = _scorer(answers)
    task = {"prompt": prompt, "completion": f"{{{answered}}}", "scorer": scorer}
    return Recognition("questions and answers", task, tuple(asked), notes=[*notes, *why])


def _conversations(rows: Sequence[Row], columns: Sequence[str]) -> Recognition | None:
    held = [name for name in columns if all(holds_messages(row.get(name)) for row in rows)]
    named = [name for name in held if name.lower() in CONVERSATIONS] or held
    if not named:
        return None
    pair = [name for name in held if name.lower() in ("prompt", "completion")]
    messages = sorted(pair, reverse=True) if len(pair) == 2 else named[:1]  # prompt before completion
    note = "The last message of each is learnt and asked for, and has to be the same (scorer exact): --scorer names another."
    shape = "conversations" + (" with tools" if any(name in columns for name in TOOLS) else "")
    task: JsonObject = {"messages": messages if len(messages) > 1 else messages[0], "scorer": "exact"}
    return Recognition(shape, task, tuple(messages), notes=[note])


def _system(columns: Sequence[str]) -> JsonObject:
    name = next((name for name in SYSTEM if name in columns), None)
    return {"system": f"{{{name}}}"} if name else {}


def _multiple_choice(rows: Sequence[Row], columns: Sequence[str]) -> Recognition | None:
    choices = next((name for name in columns if name.lower() in CHOICES and all(_is_list(row.get(name)) for row in rows)), None)
    question = next(iter(_named(columns, QUESTIONS)), None)
    gold = next((name for name in GOLD_COLUMNS if name in columns), None)
    if not (choices and question and gold):
        return None
    task = {
        "name": "multiple_choice", "prompt": f"{{{question}}}\n{{options}}\nAnswer with the letter.", "cloze": f"{{{question}}}",
        "choices": choices, "label": gold,
    }  # fmt: skip
    return Recognition("multiple choice", task, (question, choices))


def _columns_of(task: JsonObject, columns: Sequence[str]) -> set[str]:
    """Those that a task reads: named by its templates, by its other keys, and beside a conversation its tools."""
    named = [name for key in ("system", "prompt", "completion", "cloze") for name in _in_template(task.get(key, ""), columns)]
    for key in ("messages", "choices", "label"):
        if value := task.get(key):
            named += value if isinstance(value, list) else [value]
    return {*named, *(TOOLS if "messages" in task else ())}


def _is_list(value: Any) -> bool:
    value = parsed_json(value)
    value = value.tolist() if hasattr(value, "tolist") else value
    return isinstance(value, list | dict) and len(value) > 1


def _question_and_answer(columns: Sequence[str], prompt: str | None, completion: str | None) -> tuple[list[str], str, list[str]]:
    """The columns of the question, that of the answer, and notes."""
    questions, answers = list(_named(columns, QUESTIONS)), list(_named(columns, ANSWERS))
    if prompt is not None:
        questions = _asked_for("--prompt", prompt, columns)
    asked = questions[:1] if prompt is None else questions
    answers = [name for name in answers if name not in asked]
    if completion is not None:
        answers = _asked_for("--completion", completion, columns)
    if prompt is None and asked and _bare(asked[0]) == "instruction" and (more := [n for n in columns if _bare(n) == CONTEXT]):
        asked = [*asked, *more]
    if asked and answers:
        return asked, answers[0], []
    if len(columns) == 2 and prompt is None and completion is None:
        first, second = (answers[0], *(name for name in columns if name != answers[0])) if answers else columns[::-1]
        return [second], first, [f"Neither the name {second!r} nor {first!r} is usual: that they ask and answer is a guess."]
    missing = "question" if not asked else "answer"
    raise PollardError(
        f"Which column is the {missing}? There are {', '.join(columns)}. Say how a row becomes a question and an answer: "
        f'--prompt "{{{columns[0]}}}" --completion "{{{columns[-1]}}}".',
        code="init.columns",
    )


def _asked_for(option: str, template: str, columns: Sequence[str]) -> list[str]:
    """The columns of a template that the user gives. Raises PollardError for none."""
    if not (named := _in_template(template, columns)):
        raise PollardError(
            f"{option} {template!r} names no column: there are {', '.join(columns)}, in braces.", code="init.template"
        )
    return named


def _in_template(template: str, columns: Sequence[str]) -> list[str]:
    """The columns that it names, by themselves or a part of them, in the data's order; none where braces do not close."""
    try:
        fields = fields_of(template)
    except ValueError:
        return []
    parts = {match[1] for field in fields if field not in columns and (match := FIELD.fullmatch(field))}
    return [name for name in columns if name in fields or name in parts]


def _bare(name: str) -> str:
    return name.strip().lower()


def _named(columns: Sequence[str], names: Sequence[str]) -> Iterator[str]:
    """The columns of these names, in the order of the names; then those that end with one ("ticket_text")."""
    for name in names:
        yield from (column for column in columns if _bare(column) == name)
    for name in names:
        yield from (column for column in columns if _bare(column).replace(" ", "_").replace("-", "_").endswith(f"_{name}"))


def _about_objects(name: str, rows: Sequence[Row]) -> str:
    number = sum(isinstance(row.get(name), list | dict) for row in rows)
    return f"{name!r} is a list or an object in {number:,} of {len(rows):,} rows: there it is read as JSON." if number else ""


def _labels(answers: Sequence[str]) -> list[str]:
    """The labels, those that come most often first, in their most frequent spelling; none where the answers are no labels."""
    spellings: dict[str, Counter[str]] = {}
    for answer in answers:
        spellings.setdefault(label_words(answer), Counter())[answer.strip()] += 1
    few = 2 <= len(spellings) <= MOST_LABELS and len(answers) >= ROWS_PER_LABEL * len(spellings)
    if not few or not all(words and len(words.split()) <= LABEL_WORDS for words in spellings):
        return []
    if any(whole_number(words) is not None or gold_number(words) is not None for words in spellings):
        return []
    found = sorted(spellings.values(), key=lambda counts: (-counts.total(), min(counts)))
    return [counts.most_common(1)[0][0] for counts in found]


def _scorer(answers: Sequence[str]) -> tuple[str, list[str]]:
    """By what all answers are, and a note where it is a compromise."""
    if all(gold_number(text) is not None and (MARK in text or len(text.split()) <= 2) for text in answers):
        return "numeric", []
    if all(boxed(text) is not None for text in answers):
        return "math", []
    if sorted(len(text.split()) for text in answers)[len(answers) // 2] <= SHORT_WORDS:
        return "exact", []
    return "f1", [
        "The answers are long texts: scorer f1 counts the words that they share with the right one, and knows no meaning. Better "
        "is a function of your own, --scorer my_file.py:my_function (docs/tasks.md)."
    ]
