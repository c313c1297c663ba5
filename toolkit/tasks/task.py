"""A task: its examples in three splits, and its scorer."""

import random
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from string import ascii_uppercase
from typing import Any, Literal, Self

from rich.markup import escape

from toolkit.recipe.data import NearestRecipe, TaskRecipe
from toolkit.runtime.distributed import say
from toolkit.runtime.errors import PollardError, first_of
from toolkit.runtime.own_function import function_name
from toolkit.tasks.data_files import SUPPORTED_FILES, Source, is_local
from toolkit.tasks.example import Example
from toolkit.tasks.nearest import NearestExamples
from toolkit.tasks.presets import PRESETS, Preset
from toolkit.tasks.question_words import question_without_template
from toolkit.tasks.rows import ExampleReader
from toolkit.tasks.scorers import OwnScorer, scorer_of
from toolkit.tasks.sources import fingerprint_of_data, fingerprint_of_folder, read_files, read_hub, shared_code
from toolkit.tasks.templates import Row

Split = Literal["train", "dev", "test"]
Stored = Literal["train", "test"]  # splits with data of their own
DEV_SHARE = 5  # dev takes at most a fifth of the training data
MANY_QUESTIONS = 20  # among so many, the right choice does not stand at one place by chance


class Task:
    """Examples and scorer of `recipe.task`. Each split is read once, when it is first asked for.

    Raises PollardError for keys that are missing, unreadable files, empty splits and fields a line does not have.
    """

    def __init__(self, recipe: TaskRecipe) -> None:
        preset = PRESETS[recipe.name]
        own = {key: value for key, value in recipe.model_dump().items() if value is not None and key in Preset.__annotations__}
        if "dataset" in own:  # another data set: the preset's subset and splits mean nothing there
            own = {"subset": None, "train": "train", "test": "test", "sizes": {}} | own
        self.name = recipe.name
        self.nearest = 0  # how many solved examples are looked for anew for each question; `preset.shots` are the same for all
        if isinstance(recipe.shots, NearestRecipe):
            self.nearest, own["shots"] = recipe.shots.nearest, 0
        self.preset = Preset(**{**preset.__dict__, **own})
        self.recipe = recipe
        self._skipped: dict[str, int] = {}
        self.scorer = scorer_of(self.preset)
        self.stop = list(self.preset.stop)
        if not recipe.messages and not (self.preset.prompt and self.preset.completion):
            raise PollardError(
                'A custom task needs `task.prompt` and `task.completion` (templates such as "{question}"), or `task.messages`.',
                code="task.key-missing",
            )

    def __repr__(self) -> str:
        return f"Task({self.name}, judged by {self.scorer_name})"

    @property
    def scorer_name(self) -> str:
        return self.scorer.name if isinstance(self.scorer, OwnScorer) else str(self.preset.scorer)

    def with_scorer(self, function: Callable[..., Any]) -> Self:
        """The same task, judged by a function of (prediction, gold) or (prediction, gold, row); its test set is read again, for
        its gold answers are checked by the scorer. Raises PollardError for one that takes anything else, or is `async`."""
        other = copy(self)
        other.__dict__.pop("_test", None)  # was checked by the other scorer
        other.scorer = OwnScorer(function_name(function), function, has_gold=bool(self.preset.answer))
        return other

    def score(self, prediction: str, gold: str, row: Row | None = None) -> bool:
        """Whether an answer is right, by strict extraction. `row`: the line of data that the question comes from. Raises
        PollardError where the scorer does."""
        try:
            return self.scorer.is_right(prediction, gold, row)
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            raise PollardError(
                f"The scorer of task {self.name} fails on the answer {prediction!r} to {gold!r}: {what}.", code="scorer.raises"
            ) from error

    def sources(self, splits: Sequence[Stored] = ("train", "test")) -> dict[Stored, Source]:
        """Where train and test come from: files, or splits of the data set."""
        return {split: self._source(split) for split in splits}

    def fingerprint(self, split: Stored) -> Any:
        """A JSON value that identifies a split's data: the content of local files, else their names on the hub."""
        source = self._source(split)
        if self._names_files(split):
            return fingerprint_of_data(source)
        folder = str(self.preset.dataset)
        return [source, fingerprint_of_folder(folder)] if Path(folder).is_dir() else source

    def is_local(self, split: Stored) -> bool:
        """Whether a split lies on this machine, so that nothing is fetched to read it."""
        return self._names_files(split) or Path(str(self.preset.dataset)).is_dir()

    def _names_files(self, split: Stored) -> bool:
        source = self._source(split)
        return is_local(source) or (not self.preset.dataset and Path(str(source)).exists())

    def examples(self, split: Split) -> list[Example]:
        """All examples of a split, in the file's order; dev is a slice of the training data, and train the rest."""
        if split == "test":
            return self._test
        return self._train_and_dev[split]

    def known_size(self, split: Split) -> int | None:
        """How many examples a split of the preset's hub data set has, without fetching it; None where that is not known."""
        if split == "test":
            return self.preset.sizes.get(str(self.preset.test))
        everything = self.preset.sizes.get(str(self.preset.train))
        if everything is None:
            return None
        dev = self._dev_size(everything)
        return dev if split == "dev" else everything - dev - self.preset.shots

    def bad_lines(self, split: Split) -> int:
        """How many lines of the data a split comes from could not be used and are left out; known once it is read."""
        return self._skipped.get("test" if split == "test" else "train", 0)

    def _dev_size(self, everything: int) -> int:
        return min(self.recipe.dev_examples, everything // DEV_SHARE)

    @cached_property
    def _test(self) -> list[Example]:
        examples = self._read("test")
        self._check_golds(examples)
        return self.with_shots(examples)

    @cached_property
    def _carved(self) -> dict[str, list[Example]]:
        """The training data as shots, train and dev: the same whatever the recipe's seed, so that runs compare."""
        everything = self._read("train")
        chosen = set(random.Random("dev").sample(range(len(everything)), self._dev_size(len(everything))))
        train = [example for i, example in enumerate(everything) if i not in chosen]
        shots, count = self.preset.shots, len(train)
        if shots >= count:
            raise PollardError(
                f"task.shots is {shots}, and the training data of task {self.name} has {count} examples (without the dev slice): "
                "some must be left to train on.",
                code="task.shots",
            )
        shown = random.Random("shots").sample(range(count), shots)
        return {
            "shots": [train[i] for i in shown],
            "train": [example for i, example in enumerate(train) if i not in set(shown)],
            "dev": [example for i, example in enumerate(everything) if i in chosen],
        }

    def with_shots(self, examples: list[Example]) -> list[Example]:
        """The examples with the solved ones that stand before each in its prompt: one procedure for every split, and for
        questions that are in none."""
        if self.nearest:
            return [replace(example, shots=self._nearest_examples.of(example)) for example in examples]
        if not self.preset.shots:  # training data need not be there
            return examples
        shots = tuple(self._carved["shots"])
        return [replace(example, shots=shots) for example in examples]

    def question_of(self, example: Example) -> str:
        """The text of the last message, without the fixed words of the prompt template."""
        content = example.messages[-1]["content"]
        text = content if isinstance(content, str) else str(content)  # the result of a tool may come in parts
        return text if self.recipe.messages else question_without_template(text, str(self.preset.prompt))

    @cached_property
    def _nearest_examples(self) -> NearestExamples:
        return NearestExamples(self._carved["train"], self.nearest, self.question_of)

    @cached_property
    def _train_and_dev(self) -> dict[str, list[Example]]:
        return {split: self.with_shots(self._carved[split]) for split in ("train", "dev")}

    def _source(self, split: Stored) -> Source:
        source = getattr(self.preset, split)
        if source is None or not (is_local(source) or self.preset.dataset or Path(source).exists()):
            given = getattr(self.recipe, split)
            named = f" ({given!r} is neither)" if given else ""
            raise PollardError(
                f"Task {self.name} has no {split} data: give `task.{split}`, a data file ({SUPPORTED_FILES}), or a split of "
                f"`task.dataset`{named}.",
                code="task.no-data",
            )
        return source

    def _read(self, split: Stored) -> list[Example]:
        source = self._source(split)
        if self._names_files(split):
            lines = read_files(source)
        else:
            lines = read_hub(str(self.preset.dataset), self.preset.subset, str(source), self.recipe.revision)
        name = source if isinstance(source, str) else ", ".join(source)
        if not lines.lines:
            raise PollardError(f"{name} is empty: task {self.name} needs {split} examples.", code="data.empty")
        examples, faults = ExampleReader(lines, self.preset, self.recipe.messages).read()
        self._skipped[split] = len(faults)
        if faults:
            self._refuse_or_count(split, name, faults, len(lines.lines))
        if self.preset.choices and len(examples) >= MANY_QUESTIONS and len({example.right for example in examples}) == 1:
            letter = ascii_uppercase[examples[0].right]
            _say_once(
                f"  [bold]{letter} is right in all {len(examples):,} questions of {escape(name)}[/]: letters say nothing of what "
                "a model knows there. Put the choices in another order."
            )
        return examples

    def _refuse_or_count(self, split: str, name: str, faults: list[PollardError], number: int) -> None:
        """Raises PollardError with the first of the lines that cannot be used, or reports how many are left out."""
        messages = list(map(str, faults))
        count = f"{len(faults):,} of {number:,} lines in {name} cannot be used"
        if self.recipe.on_bad_lines == "skip" and len(faults) < number:
            some = "\n".join(f"    {line}" for line in first_of(messages, 3).splitlines())
            _say_once(f"  [bold]{escape(count)}[/] and are left out of {split} (task.on_bad_lines):\n{escape(some)}")
            return
        way_out = ", or leave them out with `task.on_bad_lines: skip`" if len(faults) < number else ""
        raise PollardError(f"{first_of(messages)}\n{count}. Mend them{way_out}.", code=shared_code(faults))

    def _check_golds(self, examples: list[Example]) -> None:
        """Raises PollardError, with the lines, for gold answers by which no answer could be right (`numeric` without a number),
        or every one, and for those that the scorer cannot read."""
        pairs = [(example.completion, example.gold) for example in examples]
        faults = self.scorer.gold_faults(pairs, [example.row for example in examples])
        messages = [
            f"{example.where}: scorer `{self.scorer_name}` {fault}."
            for example, fault in zip(examples, faults, strict=True)
            if fault
        ]
        if messages:
            raise PollardError(first_of(messages), code="scorer.gold")


@cache
def _say_once(text: str) -> None:
    """A notice about data that several tasks of a process may read."""
    say(text)
