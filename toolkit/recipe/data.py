"""How a recipe names data: a task, plain text, and mixes of both (a part of toolkit/recipe/schema.py; see there)."""

import json
import re
import unicodedata
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from toolkit.recipe.choices import LabelFormat, ScorerName, TaskName
from toolkit.runtime.errors import did_you_mean

OWN_SCORER = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
SAMPLES, SAMPLING_TEMPERATURE = 4, 0.7  # the temperature of rejection-sampling fine-tuning (arXiv 2308.01825)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def label_words(label: str) -> str:
    """A label in small letters, a space between words: `not_spam`, `not-spam` and "Not spam" are the same label."""
    return re.sub(r"(?<=\w)[\s_-]+(?=\w)", " ", " ".join(unicodedata.normalize("NFC", label).casefold().split()))


def _unless_said(**rules: Any) -> Any:
    """Left out of a recipe's dump, and of fingerprints, where a recipe does not say it."""
    return Field(default=None, exclude_if=lambda value: value is None, **rules)


class TaskRecipe(Section):
    """What the model is for. `task: gsm8k` is short for `task: {name: gsm8k}`; what a named task leaves open, or all of
    a `custom` one, is said by the other keys."""

    name: TaskName = "custom"
    """A named task (`pollard tasks` lists them), or custom: all is said by the other keys."""
    dataset: str | None = None
    """Hub id of a data set, or a folder with one; `train` and `test` are then its splits."""
    subset: str | None = None
    """A data set's configuration on the hub."""
    revision: str | None = None
    """Branch, tag or commit of the data set."""
    train: str | list[str] | None = None
    """A split of `dataset`, or data files: one, a list, a pattern ("logs/*.csv") or a folder (docs/your-data.md)."""
    test: str | list[str] | None = None
    """As `train`."""
    system: str | None = _unless_said()
    """Template of a system prompt, e.g. "Be brief." or "{system}"; a conversation that begins with its own keeps that."""
    on_bad_lines: Literal["error", "skip"] | None = _unless_said()
    """Lines that cannot be used: error (unless given) lists them and stops; skip leaves them out and counts them."""
    prompt: str | None = None
    """Template over a line's columns, e.g. "{question}"."""
    completion: str | None = None
    """Template of what the model should write."""
    messages: str | list[str] | None = None
    """Column with chat messages ({role, content} or {from, value}), instead of the templates: the last message, the assistant's,
    is the completion. Of several columns, [prompt, completion], the messages follow one another. A column `tools` says what it
    may call."""
    answer: str | None = None
    """Template of the text the scorer compares with; the completion unless given."""
    scorer: str | None = None
    """How an answer is judged: exact, numeric, math, contains, regex, choice, label, f1, or by a Python function of your own,
    my_module:my_function (docs/tasks.md)."""
    pattern: str | None = _unless_said()
    """Of the scorer `regex`: what the answer stands in, with a group around the answer itself."""
    labels: list[str] | None = _unless_said()
    """Of a classification: the words to choose from; a column may hold a word, or its number."""
    label: str | None = _unless_said()
    """Column that says which of `labels`, or of `choices`, is right."""
    label_format: LabelFormat | None = _unless_said()
    """How it says so: letter, text, index_from_0 or index_from_1; looked up in the data unless given."""
    choices: str | list[str] | None = _unless_said()
    """Column with a list of choices, or a column for each; prompts may then say {options}, completions {letter}, {choice}."""
    cloze: str | None = _unless_said()
    """Template of a prompt without the choices, after which the likelihood of each choice is measured."""
    shots: int | None = _unless_said(ge=0)
    """So many solved examples before every question, set aside from train: in every prompt the same."""
    chat: bool | None = _unless_said()
    """false: plain text, even where the model has a chat template."""
    stop: list[str] | None = _unless_said()
    """Texts at which an answer ends, beside the model's own end token."""
    dev_examples: int = Field(default=500, ge=1)
    """Carved from train (at most a fifth of it), never trained on: what choices are made with."""

    @field_validator("scorer", mode="after")
    @classmethod
    def _scorer_is_known(cls, scorer: str | None) -> str | None:
        known = get_args(ScorerName)
        if scorer is None or scorer in known or OWN_SCORER.fullmatch(scorer):
            return scorer
        raise ValueError(
            f"no scorer of that name{did_you_mean(scorer, known)} Allowed: {', '.join(known)}, or my_module:my_function"
        )

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
        """Of numbers and truth values the text that data have for them, too."""
        if not isinstance(labels, list):
            return labels
        return [json.dumps(label) if isinstance(label, bool | int | float) else label for label in labels]

    @field_validator("labels", mode="after")
    @classmethod
    def _labels_can_be_told_apart(cls, labels: list[str] | None) -> list[str] | None:
        """Whatever the case, and whether spaces, `-` or `_` stand between words. Of labels inside others the longest counts."""
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


class DataRecipe(Section):
    """A task, in the grammar of the recipe's own, or plain text. `gsm8k` is short for `{task: {name: gsm8k}}`."""

    task: TaskRecipe | None = None
    """A task's training examples."""
    text: str | None = None
    """A .jsonl file (every line's `text`) or a .txt file (its paragraphs); all of it counts as completion."""
    examples: int | None = Field(default=None, ge=1)
    """How many of them, drawn by the recipe's seed; as the section says unless given."""

    @model_validator(mode="before")
    @classmethod
    def _expand_shorthands(cls, values: Any) -> Any:
        values = {"task": values} if isinstance(values, str) else values
        if isinstance(values, dict) and isinstance(values.get("task"), str):
            values = values | {"task": {"name": values["task"]}}
        return values

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.task is None) == (self.text is None):
            raise ValueError("give either a `task` or a `text` (a .jsonl or .txt file)")
        return self

    @property
    def name(self) -> str:
        """For people: the task's name, or the text's file."""
        return self.task.name if self.task else str(self.text)


class SourceRecipe(DataRecipe):
    """One part of a calibration mix."""

    weight: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Its share in the mix, against the others' weights; its number of examples unless given."""


def all_weights_or_none(sources: list[Any] | None) -> list[Any] | None:
    if len({source.weight is None for source in sources or ()}) > 1:
        raise ValueError("some sources have a weight and some have none: give every source one, or none")
    return sources


class TrainingSourceRecipe(SourceRecipe):
    """One part of the training data."""

    self_generated: bool = False
    """The original model's own sampled answers to the prompts of `task` (the recipe's unless given): the right ones."""
    samples: int = Field(default=SAMPLES, ge=1)
    """Of `self_generated`: answers drawn per prompt; equal ones count once."""
    temperature: float = Field(default=SAMPLING_TEMPERATURE, gt=0, allow_inf_nan=False)
    """Of `self_generated`: what they are drawn with."""

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if self.self_generated and self.text:
            raise ValueError("self_generated answers the prompts of a `task`, and a `text` has none")
        if not self.self_generated and (self.task is None) == (self.text is None):
            raise ValueError("give either a `task`, a `text` (a .jsonl or .txt file), or `self_generated: true`")
        if not self.self_generated and (self.samples, self.temperature) != (SAMPLES, SAMPLING_TEMPERATURE):
            raise ValueError("samples and temperature belong to answers of the model's own: add `self_generated: true`")
        return self

    @property
    def name(self) -> str:
        """For people."""
        return f"own answers{f' to {self.task.name}' if self.task else ''}" if self.self_generated else super().name
