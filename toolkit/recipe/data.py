"""The keys with which a recipe names data: a task, plain text, and mixes of both (a part of toolkit/recipe/schema.py)."""

import json
import re
import unicodedata
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from toolkit.recipe.choices import LabelFormat, ScorerName, TaskName
from toolkit.runtime.errors import did_you_mean

OWN_FUNCTION = re.compile(r"(?:[A-Za-z_][\w.]*|[^:]+\.py):[A-Za-z_]\w*")  # my_module:my_function, my_file.py:my_function


class Section(BaseModel):
    # Built when the first recipe is read, each section once: half of the time to `pollard --help` otherwise
    model_config = ConfigDict(defer_build=True, extra="forbid", frozen=True, use_attribute_docstrings=True)


def label_words(label: str) -> str:
    """A label in lower case with one space between words: `not_spam`, `not-spam` and "Not spam" are the same label."""
    return re.sub(r"(?<=\w)[\s_-]+(?=\w)", " ", " ".join(unicodedata.normalize("NFC", label).casefold().split()))


def optional(**rules: Any) -> Any:
    """A key that is None by default. It is then left out of dumps and of fingerprints, which are older than the key."""
    return Field(default=None, exclude_if=lambda value: value is None, **rules)


class NearestRecipe(Section):
    """Solved examples looked for anew for each question."""

    nearest: int = Field(ge=1, strict=True)
    """Number of training examples whose questions share the most words with it (BM25), never the question itself."""


class TaskRecipe(Section):
    """The task to specialise for. `task: gsm8k` is short for `task: {name: gsm8k}`. The other keys override a named task's
    settings, or define a `custom` task."""

    name: TaskName = "custom"
    """A named task (`pollard tasks` lists them), or custom: a task that the other keys define."""
    dataset: str | None = None
    """Hub id of a data set, or a folder with one; `train` and `test` are then its splits."""
    subset: str | None = None
    """A data set's configuration on the hub."""
    revision: str | None = None
    """Branch, tag or commit of the data set."""
    train: str | list[str] | None = None
    """A split of `dataset`, or data files: one, a list, a pattern ("logs/*.csv") or a folder (docs/your-data.md)."""
    test: str | list[str] | None = None
    """Test data, named as `train` is."""
    system: str | None = optional()
    """Template of the system prompt, e.g. "Be brief." or "{system}". A conversation that has a system prompt keeps its own."""
    on_bad_lines: Literal["error", "skip"] | None = optional()
    """Lines that cannot be used: error (the default) lists them and stops; skip leaves them out and reports how many."""
    prompt: str | None = None
    """Template of the prompt, with column names in braces, e.g. "{question}"."""
    completion: str | None = None
    """Template of the text that the model should write."""
    messages: str | list[str] | None = None
    """Column with chat messages ({role, content} or {from, value}), instead of templates. The last message, which must be the
    assistant's, is the completion. Several columns, e.g. [prompt, completion], are joined. A column `tools` lists the tools
    that the model may call."""
    answer: str | None = None
    """Template of the reference answer that the scorer compares with. Default: the completion."""
    scorer: str | None = None
    """How answers are scored: exact, numeric, math, contains, regex, choice, label, f1, or your own Python function,
    my_module:my_function (docs/tasks.md)."""
    pattern: str | None = optional()
    """For `scorer: regex`: a regular expression with a group around the answer, e.g. "Answer: (.+)"."""
    labels: list[str] | None = optional()
    """For a classification: the labels to choose from. The data may contain a label or its number."""
    label: str | None = optional()
    """Column with the correct one of `labels` or `choices`."""
    label_format: LabelFormat | None = optional()
    """Format of `label`: letter, text, index_from_0 or index_from_1. Default: detected from the data."""
    choices: str | list[str] | None = optional()
    """Column with a list of choices, or one column per choice. Prompts can use {options}, completions {letter} and {choice}."""
    cloze: str | None = optional()
    """Template of a prompt without the options; the likelihood of each choice after it is measured."""
    shots: Annotated[int, Field(ge=0)] | NearestRecipe | None = optional()
    """Number of solved examples before every question, the same in every prompt. They are removed from the training data. Or
    {nearest: 3}: for each question those training examples that are nearest to it (docs/tasks.md)."""
    chat: bool | None = optional()
    """false: plain text, even if the model has a chat template."""
    stop: list[str] | None = optional()
    """Texts that end an answer, in addition to the model's end token."""
    dev_examples: int = Field(default=500, ge=1)
    """Size of the dev slice, taken from the training data (at most a fifth of it) and never trained on. All choices are made with
    it, never with the test set."""

    @field_validator("scorer", mode="after")
    @classmethod
    def _scorer_is_known(cls, scorer: str | None) -> str | None:
        known = get_args(ScorerName)
        if scorer is None or scorer in known or OWN_FUNCTION.fullmatch(scorer):
            return scorer
        raise ValueError(
            f"no scorer of that name{did_you_mean(scorer, known)} Allowed: {', '.join(known)}, or my_module:my_function "
            "(my_file.py:my_function)"
        )

    @field_validator("shots", mode="before")
    @classmethod
    def _shots_are_a_number_or_the_nearest(cls, shots: Any) -> Any:
        """Faults are told as such, and not as those of one of two types that the value might have."""
        if isinstance(shots, dict):
            return NearestRecipe.model_validate(shots)
        if shots is None or isinstance(shots, NearestRecipe):
            return shots
        if isinstance(shots, bool) or not isinstance(shots, int) or shots < 0:
            raise ValueError("a number of solved examples, greater than or equal to 0, or {nearest: 3}")
        return shots

    @field_validator("pattern", mode="after")
    @classmethod
    def _pattern_compiles(cls, pattern: str | None) -> str | None:
        if pattern is None:
            return None
        try:
            groups = re.compile(pattern).groups
        except re.error as error:
            raise ValueError(f"no regular expression: {error}") from None
        if not groups:
            raise ValueError("put a group around the answer itself, as in 'Answer: (.+)'")
        return pattern

    @field_validator("messages", mode="after")
    @classmethod
    def _columns_are_named(cls, messages: str | list[str] | None) -> str | list[str] | None:
        if messages is not None and (not messages or not all(messages)):
            raise ValueError("name the column with the messages, or several columns")
        return messages

    @field_validator("train", "test", mode="after")
    @classmethod
    def _files_are_named(cls, source: str | list[str] | None) -> str | list[str] | None:
        if source is not None and (not source or not all(source)):
            raise ValueError("name a file, a list of files, or a split of `dataset`")
        return source

    @field_validator("choices", mode="after")
    @classmethod
    def _choices_are_several(cls, choices: str | list[str] | None) -> str | list[str] | None:
        if isinstance(choices, list) and len(choices) < 2:
            raise ValueError("give a column for each choice, at least two, or the name of one column with a list")
        return choices

    @field_validator("labels", mode="before")
    @classmethod
    def _labels_are_words(cls, labels: Any) -> Any:
        """Numbers and truth values become the text that JSON data has for them."""
        if not isinstance(labels, list):
            return labels
        return [json.dumps(label) if isinstance(label, bool | int | float) else label for label in labels]

    @field_validator("labels", mode="after")
    @classmethod
    def _labels_are_distinct(cls, labels: list[str] | None) -> list[str] | None:
        """Case and the separators between words (space, `-`, `_`) do not distinguish labels."""
        if labels is None:
            return None
        words = [label_words(label) for label in labels]
        if len(labels) < 2 or len(set(words)) < len(labels) or not all(words):
            raise ValueError("give at least two labels, no two of them the same and none empty")
        return labels

    @model_validator(mode="after")
    def _keys_are_used(self) -> Self:
        if self.pattern and self.scorer != "regex":
            raise ValueError("pattern belongs to the scorer regex: add `scorer: regex`")
        if self.labels and self.scorer != "label" and self.name != "classification":
            raise ValueError("labels belong to a classification: say `name: classification` or `scorer: label`")
        chosen = self.choices or self.name == "multiple_choice"
        if self.label_format and not (self.labels or chosen or self.name == "classification"):
            raise ValueError("label_format says how `label` names one of `labels` or `choices`: give these, too")
        if self.label_format == "letter" and not chosen:
            raise ValueError("labels have no letters: say label_format: text, index_from_0 or index_from_1")
        if self.cloze and not self.choices and self.name != "multiple_choice":
            raise ValueError("cloze is what choices are weighed behind: name their column, `choices: …`")
        return self

    @field_validator("stop", mode="after")
    @classmethod
    def _stops_say_something(cls, stop: list[str] | None) -> list[str] | None:
        if stop is not None and not all(stop):
            raise ValueError("an empty stop text would end every answer before it begins")
        return stop


def named_data(values: Any) -> Any:
    """The keys of a task that is given by its name."""
    values = {"task": values} if isinstance(values, str) else values
    if isinstance(values, dict) and isinstance(values.get("task"), str):
        values = values | {"task": {"name": values["task"]}}
    return values


class DataRecipe(Section):
    """A task, with the same keys as the recipe's `task`, or plain text. `gsm8k` is short for `{task: {name: gsm8k}}`."""

    task: TaskRecipe | None = None
    """A task's training examples."""
    text: str | None = None
    """A .jsonl file (the `text` of every line) or a .txt file (its paragraphs). All tokens count as completion tokens."""
    examples: int | None = Field(default=None, ge=1)
    """Number of examples, drawn with the recipe's seed. Default: the section's `examples`."""

    @model_validator(mode="before")
    @classmethod
    def _expand_shorthands(cls, values: Any) -> Any:
        return named_data(values)

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.task is None) == (self.text is None):
            raise ValueError("give either a `task` or a `text` (a .jsonl or .txt file)")
        return self

    @property
    def name(self) -> str:
        """The name in messages: the task's name, or the text's file."""
        return self.task.name if self.task else str(self.text)
