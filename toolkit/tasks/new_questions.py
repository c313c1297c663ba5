"""New questions for a task, which a model writes as if it were the user, after solved examples: where they begin, where they end,
and whether they have the form of the task's prompts.

    task.prompt: "{question}\\nThink step by step."

    <|user|>Tom has 3 pens. …\\nThink step by step.<|assistant|>He has …<|end|><|user|>        what the model sees
    Ann has 5 cups. How many are left?\\nThink step by step.<|assistant|>                      what it writes: up to <|assistant|>

Whatever the model's template writes before and behind a user's message is read off from a message with a marked text (cf. Magpie,
arXiv 2406.08464). Plain prompts end with the fixed words behind the last field of `task.prompt`, or with their only line.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from string import Formatter

from transformers import PreTrainedTokenizerBase

from toolkit.runtime.errors import PollardError
from toolkit.tasks.example import SYSTEM_ROLES, Example
from toolkit.tasks.prompts import prompt_text, tokens_of, uses_chat_template
from toolkit.tasks.task import Task

MARKED = "zqQuestionqz"
BEGUN_WORDS = 3  # of a question that the model goes on from, at most, and at most half of it
ROOM = 2  # new questions may be so many times as long as the longest that was looked at


@dataclass(frozen=True)
class Opening:
    """What a model is given to write a question, and the words of the question that stand there already."""

    prompt: list[int]
    begun: str


class QuestionForm:
    """The form of a task's questions, for one model's template; `examples` are those that may be looked at.

    Raises PollardError as `check_new_questions` does, and where nothing would tell a question's end.
    """

    def __init__(self, task: Task, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> None:
        check_new_questions(task, examples)
        self.task, self.tokenizer, self.examples = task, tokenizer, examples
        self.model_example = examples[0]
        self.uses_template = uses_chat_template(tokenizer, self.model_example)
        self._template = None if task.recipe.messages else _pattern(task)
        self._fixed = "" if self._template is None or self.uses_template else _fixed_end(str(task.preset.prompt))
        _, found, behind = prompt_text(tokenizer, self._asked(MARKED, ())).partition(MARKED)
        self.stop = _first_mark(tokenizer, behind) if self.uses_template else f"{self._fixed}\n"
        if not found or not self.stop:
            raise PollardError(
                f"The model's chat template writes {'nothing behind a' if found else 'no'} message of the user's, so that "
                "nothing tells where a new question ends: leave `questions` out of finetuning.data.",
                code="questions.template",
            )
        if self.stop == "\n" and any("\n" in text_of(example) for example in examples):
            raise PollardError(
                f"Prompts of task {task.name} are plain text of several lines, and nothing tells where one ends: end "
                '`task.prompt` with fixed words (such as "\\nAnswer:"), or let the chat template render it (task.chat: true).',
                code="questions.no-end",
            )

    @cached_property
    def max_new_tokens(self) -> int:
        """Of a new question and what ends it."""
        longest = max(len(tokens_of(self.tokenizer, text_of(example), special=False)) for example in self.examples)
        return ROOM * longest + len(tokens_of(self.tokenizer, self.stop, special=False))

    def opening(self, shown: Sequence[Example], begun_by: Example | None = None) -> Opening:
        """What the model goes on from: `shown` as turns of a conversation or as plain text, then where the user speaks; with the
        first words of `begun_by`, if given."""
        begun = _first_words(text_of(begun_by)) if begun_by else ""
        before = prompt_text(self.tokenizer, self._asked(MARKED, shown)).partition(MARKED)[0]
        text = f"{before}{begun}" if begun else before.rstrip(" ")  # a word's token has the space before it
        return Opening(tokens_of(self.tokenizer, text, not self.uses_template), begun)

    def read(self, written: str, begun: str) -> Example | None:
        """The new question that a text begins with; None for one that has no end, or another form."""
        text, ended, _ = f"{begun}{written}".partition(self.stop)
        text = f"{text}{self._fixed}".strip()
        special = any(token in text for token in self.tokenizer.all_special_tokens if token.strip())
        if not ended or not text or special or (self._template and not self._template.fullmatch(text)):
            return None
        return self._asked(text, (), where=f"a new question for {self.task.name}")

    def _asked(self, text: str, shots: Sequence[Example], where: str = "") -> Example:
        """An example with a question and no answer, in the model's and the task's frame."""
        systems = [message for message in self.model_example.messages if message["role"] in SYSTEM_ROLES]
        asked = (*systems, {"role": "user", "content": text})
        return replace(self.model_example, messages=asked, completion="", gold="", where=where, shots=tuple(shots), reply={})


def text_of(example: Example) -> str:
    return str(example.messages[-1]["content"])


def check_new_questions(task: Task, examples: Sequence[Example]) -> None:
    """Raises PollardError for a task for which a model cannot write questions, or where their answers cannot be compared."""
    why = _refusal(task, examples)
    if why:
        raise PollardError(
            f"finetuning.data: no new questions can be written for task {task.name}: {why}", code="questions.refused"
        )


def _refusal(task: Task, examples: Sequence[Example]) -> str:
    scorer = task.preset.scorer or ""
    if task.preset.choices:
        return "of made-up choices none or several may be right, and letters agree by chance. Leave `questions` out."
    if task.scorer.takes_row:
        return f"{scorer} looks at a line of the data, which made-up questions do not have. Leave `questions` out."
    if ":" in scorer and task.preset.answer:
        return (
            f"{scorer} judges by what `task.answer` says, which an answer is not, so two answers cannot be compared. Leave "
            "`questions` out."
        )
    if any(example.tools for example in examples):
        return "some of its conversations have tools, whose results nobody can make up. Leave `questions` out."
    if any(len(example.dialogue) != 1 or example.messages[-1]["role"] != "user" for example in examples):
        return "some of its conversations have several turns, and a question is a single one. Leave `questions` out."
    systems = {tuple(str(message["content"]) for message in e.messages if message["role"] in SYSTEM_ROLES) for e in examples}
    if len(systems) > 1:
        return "its system prompts differ, and which one a new question would have is not known. Leave `questions` out."
    return ""


def _pattern(task: Task) -> re.Pattern[str]:
    """Matches the prompts that the task's template makes: its fixed words, and something in every field. Labels stand in prompts
    as they are."""
    parts = []
    for literal, field, _, _ in Formatter().parse(str(task.preset.prompt).strip()):
        parts.append(re.escape(literal))
        if field == "labels" and task.preset.labels:
            parts.append(re.escape(", ".join(task.preset.labels)))
        elif field is not None:
            parts.append(r"\s*\S.*?")
    return re.compile("".join(parts), re.DOTALL)


def _first_mark(tokenizer: PreTrainedTokenizerBase, behind: str) -> str:
    """What ends a user's message: the first token that the tokenizer has for it, or the first line of words."""
    line = behind.strip().partition("\n")[0]
    marks = [token for token in (*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens) if token and line.startswith(token)]
    return max(marks, key=len, default=line)


def _fixed_end(template: str) -> str:
    """The words of a template behind its last field."""
    *_, (literal, field, _, _) = Formatter().parse(template.strip())
    return "" if field is not None else literal.rstrip()


def _first_words(text: str) -> str:
    words = list(re.finditer(r"\S+", text))
    number = min(BEGUN_WORDS, len(words) // 2)
    return text[: words[number - 1].end()] if number else ""
