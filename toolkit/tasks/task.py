"""A task: its examples in three splits, and its scorer."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from toolkit.errors import PollardError
from toolkit.recipe_data import TaskRecipe
from toolkit.tasks.gsm8k import GSM8K
from toolkit.tasks.playground import PLAYGROUND
from toolkit.tasks.preset import Preset
from toolkit.tasks.scorers import SCORERS, final_part
from toolkit.tasks.sources import Row, is_local, read_hub, read_jsonl

Split = Literal["train", "dev", "test"]
PRESETS: dict[str, Preset] = {"custom": Preset(scorer="exact"), "gsm8k": GSM8K, **PLAYGROUND}
DEV_SHARE = 5  # dev takes at most a fifth of train


@dataclass(frozen=True)
class Example:
    """One item: the conversation so far, what the model should write, and the text its answer is judged by; `where` names the
    line it came from."""

    messages: tuple[dict[str, str], ...]
    completion: str
    gold: str
    where: str = field(default="", compare=False)


class Task:
    """Examples and scorer of `recipe.task`; files are read when first asked for.

    Raises PollardError for keys that are missing, unreadable files, empty splits and fields a line does not have.
    """

    def __init__(self, recipe: TaskRecipe) -> None:
        preset = PRESETS[recipe.name]
        own = {key: value for key, value in recipe.model_dump().items() if value is not None and key in Preset.__annotations__}
        if "dataset" in own:  # another data set: the preset's subset and splits mean nothing there
            own = {"subset": None, "train": "train", "test": "test", "sizes": {}} | own
        self.name = recipe.name
        self.preset = Preset(**{**preset.__dict__, **own})
        self.recipe = recipe
        self.scorer = SCORERS[self.preset.scorer or "exact"]
        if not recipe.messages and not (self.preset.prompt and self.preset.completion):
            raise PollardError(
                'A custom task needs `task.prompt` and `task.completion` (templates such as "{question}"), or `task.messages`.'
            )

    def score(self, prediction: str, gold: str) -> bool:
        """Whether an answer is right, by strict extraction. Raises PollardError where the scorer does."""
        try:
            return self.scorer.strict(prediction, gold)
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            raise PollardError(
                f"The scorer of task {self.name} fails on the answer {prediction!r} to {gold!r}: {what}."
            ) from error

    def sources(self, splits: Sequence[Literal["train", "test"]] = ("train", "test")) -> dict[str, str]:
        """Where train and test come from, for people and fingerprints."""
        return {split: self._source(split) for split in splits}

    def examples(self, split: Split) -> list[Example]:
        """All examples of a split, in the file's order (dev and train: what the carving left them)."""
        if split == "test":
            return self._test
        return self._carved[split]

    def known_size(self, split: Split) -> int | None:
        """How many examples a split of the preset's hub data set has, without fetching it; None where that is not known."""
        if split == "test":
            return self.preset.sizes.get(str(self.preset.test))
        everything = self.preset.sizes.get(str(self.preset.train))
        if everything is None:
            return None
        dev = self._dev_size(everything)
        return dev if split == "dev" else everything - dev

    def _dev_size(self, everything: int) -> int:
        return min(self.recipe.dev_examples, everything // DEV_SHARE)

    @cached_property
    def _test(self) -> list[Example]:
        return self._read("test")

    @cached_property
    def _carved(self) -> dict[str, list[Example]]:
        """Train without its dev slice, and the slice: the same whatever the recipe's seed, so that runs compare."""
        everything = self._read("train")
        chosen = set(random.Random("dev").sample(range(len(everything)), self._dev_size(len(everything))))
        return {
            "train": [example for i, example in enumerate(everything) if i not in chosen],
            "dev": [example for i, example in enumerate(everything) if i in chosen],
        }

    def _source(self, split: Literal["train", "test"] | str) -> str:
        source = getattr(self.preset, split)
        if source is None or (not is_local(source) and not self.preset.dataset):
            raise PollardError(
                f"Task {self.name} has no {split} data: give `task.{split}`, a JSONL file (or a split of `task.dataset`)."
            )
        return source

    def _read(self, split: str) -> list[Example]:
        source = self._source(split)
        if is_local(source):
            rows = read_jsonl(source)
        else:
            rows = read_hub(str(self.preset.dataset), self.preset.subset, source, self.recipe.revision)
        if not rows:
            raise PollardError(f"{source} is empty: task {self.name} needs {split} examples.")
        examples = [self._example(row) for row in rows]
        if split == "test":
            self._check_golds(examples)
        return examples

    def _check_golds(self, examples: list[Example]) -> None:
        """Raises PollardError for a text by which no answer could be right (`numeric` without a number), or every one, and
        for one that the scorer cannot read."""
        verdicts = self.scorer.verdicts([(example.gold, example.gold) for example in examples])
        for example, verdict in zip(examples, verdicts, strict=True):
            if verdict.error:
                raise PollardError(f"{example.where}: the scorer fails on the answer {example.gold!r} itself: {verdict.error}.")
            if not final_part(example.gold) or not verdict.strict:
                nothing = f"scorer `{self.preset.scorer}` finds nothing to compare with in the answer {example.gold!r}"
                raise PollardError(f"{example.where}: {nothing}.")

    def _example(self, row: Row) -> Example:
        where, columns = row
        columns = self.preset.prepare(columns)
        if self.recipe.messages:
            messages, completion = self._conversation(where, columns)
        else:
            messages = ({"role": "user", "content": _fill(str(self.preset.prompt), columns, where)},)
            completion = _fill(str(self.preset.completion), columns, where)
        if not completion.strip():
            raise PollardError(f"{where}: the completion is empty.")
        gold = _fill(self.recipe.answer, columns, where) if self.recipe.answer else completion
        return Example(messages, completion, gold, where)

    def _conversation(self, where: str, columns: dict[str, Any]) -> tuple[tuple[dict[str, str], ...], str]:
        messages = _column(str(self.recipe.messages), columns, where)
        well_formed = isinstance(messages, list) and len(messages) > 1
        well_formed = well_formed and all(
            isinstance(m, dict) and "role" in m and isinstance(m.get("content"), str) for m in messages
        )
        if not well_formed or messages[-1]["role"] != "assistant":
            raise PollardError(
                f"{where}: `{self.recipe.messages}` must be a list of {{role, content}} messages, each content a text, "
                "that ends with the assistant's."
            )
        turns = tuple({"role": m["role"], "content": m["content"]} for m in messages)
        return turns[:-1], turns[-1]["content"]


def _column(name: str, columns: dict[str, Any], where: str) -> Any:
    if name not in columns:
        raise PollardError(f"{where}: no field `{name}`. Fields there: {', '.join(columns) or 'none'}.")
    if columns[name] is None:
        raise PollardError(f"{where}: the field `{name}` is null.")
    return columns[name]


@dataclass(frozen=True)
class _Columns:
    """Lets `str.format_map` explain a field that a line does not have."""

    columns: dict[str, Any]
    where: str

    def __getitem__(self, name: str) -> Any:
        return _column(name, self.columns, self.where)


def _fill(template: str, columns: dict[str, Any], where: str) -> str:
    try:
        return template.format_map(_Columns(columns, where))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise PollardError(
            f"{where}: the template {template!r} cannot be filled ({what}): write {{column}}, and {{{{ for a brace."
        ) from None
