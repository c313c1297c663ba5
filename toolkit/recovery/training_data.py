"""What the pruned model learns from: the task's training split, or a mix without what its test set asks.

finetuning:
  data: [{task: gsm8k, weight: 0.5}, {self_generated: true, weight: 0.5}]
"""

import json
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from transformers import PreTrainedTokenizerBase

from toolkit.recipe.data import TrainingSourceRecipe
from toolkit.recipe.schema import Recipe
from toolkit.runtime.distributed import on_main, say
from toolkit.runtime.errors import PollardError
from toolkit.tasks import DataCache, Encoded, Example, HeldOut, Task, encode, encode_all, encode_texts, question_of

T = TypeVar("T")


@dataclass(frozen=True)
class TrainingData:
    """Tokenized examples, source after source, and how many were left out: too long, or overlapping with held-out ones."""

    encoded: list[Encoded]
    left_out: int
    overlapping: int
    bad_lines: int = 0  # that could not be used (task.on_bad_lines)
    repeating: int = 0  # that stay although they repeat a question of the test set or the dev slice


def training_sources(recipe: Recipe) -> list[TrainingSourceRecipe]:
    """The mix, or the task alone."""
    return recipe.finetuning.data or [TrainingSourceRecipe(task=recipe.task)]


def check_training_source(
    recipe: Recipe, source: TrainingSourceRecipe, tokenizer: PreTrainedTokenizerBase | None, data: DataCache
) -> None:
    """Raises PollardError for a source that cannot be read, and for one of whose examples none is short enough (which only a
    tokenizer tells)."""
    if source.text:
        data.texts(source.text)
        return
    examples, longest = data.task(source.task or recipe.task).examples("train"), recipe.finetuning.max_length
    if tokenizer is None or source.self_generated:
        return
    if not any(len(encode(tokenizer, example).input_ids) <= longest for example in examples):
        encode_all(tokenizer, examples, longest, "finetuning.max_length")  # tells how long they are


def read_training_data(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, answers: Path, data: DataCache | None = None
) -> TrainingData:
    """The same on every rank; `answers` is where the model's own answers lie (one folder per source, by number).

    Raises PollardError where a source has nothing left, and where own answers were not drawn.
    """
    longest, kept, left_out, overlapping, bad_lines = recipe.finetuning.max_length, [], 0, 0, 0
    repeating, data = 0, data or DataCache()
    sources = training_sources(recipe)
    for number, source in enumerate(sources):
        too_long, dropped, staying = 0, Counter[str](), 0
        if source.self_generated:
            encoded = _own_answers(answers / str(number), longest)
        elif source.text:
            texts, dropped, staying = without_overlap(recipe, source, data.texts(source.text), str, data)
            encoded = [piece for piece in encode_texts(tokenizer, texts, longest) if len(piece.input_ids) > 1]
            encoded = _sample(encoded, source, recipe)
        else:
            examples, dropped, staying, bad = training_examples(source, recipe, data)
            bad_lines += bad
            encoded, too_long = encode_all(tokenizer, examples, longest, "finetuning.max_length")
        say(
            f"  {source.name}: {len(encoded):,} examples"
            + f"; {too_long:,} longer than {longest} tokens left out" * bool(too_long)
        )
        if not encoded:
            raise PollardError(f"finetuning.data: {source.name} has no example left to train on.")
        kept.append(encoded)
        left_out, overlapping, repeating = left_out + too_long, overlapping + dropped.total(), repeating + staying
    if len(kept) > 1 and sources[0].weight is not None:
        kept = _by_weight(sources, kept, recipe.seed)
    return TrainingData([encoded for part in kept for encoded in part], left_out, overlapping, bad_lines, repeating)


def training_examples(
    source: TrainingSourceRecipe, recipe: Recipe, data: DataCache
) -> tuple[list[Example], Counter[str], int, int]:
    """A task's training examples, without those that overlap, and by kind how many did; a seeded sample of the number asked.
    How many repeat a held-out question and stay, and how many lines of its data could not be used."""
    task = data.task(source.task or recipe.task)
    examples, dropped, staying = without_overlap(
        recipe, source, task.examples("train"), lambda example: question_of(task, example), data
    )
    return _sample(examples, source, recipe), dropped, staying, task.bad_lines("train")


def without_overlap(
    recipe: Recipe, source: TrainingSourceRecipe, items: list[T], text_of: Callable[[T], str], data: DataCache
) -> tuple[list[T], Counter[str], int]:
    """The items that do not overlap with the task's test questions and dev slice, by kind how many do, and how many repeat one
    and stay; all of it is said.

    Of the task's own training split only exact repetitions go: its questions may well be made like those of the test
    set. Without `finetuning.data` it stays as it is, and what a mix would leave out is only said.
    """
    task = data.task(recipe.task)
    own = source.text is None and _origin(data.task(source.task or recipe.task)) == _origin(task)

    def compare() -> list[str | None]:  # minutes for millions of texts: not on every rank
        held = HeldOut(question_of(task, example) for split in ("test", "dev") for example in task.examples(split))
        return [held.overlap(text_of(item)) for item in items]

    found = on_main(compare)
    leaves = {"exact"} if own else {"exact", "partial"}
    counts = Counter(kind for kind in found if kind)
    if counts:
        say(
            f"  {source.name}: of {len(items):,} texts {counts['exact']:,} repeat a question of the test set or the dev slice, "
            f"{counts['partial']:,} share 13 words in a row with one: "
            + ("all stay" if recipe.finetuning.data is None else "the repetitions are left out" if own else "left out")
        )
    if recipe.finetuning.data is None:
        return items, Counter(), counts["exact"]
    kept = [item for item, kind in zip(items, found, strict=True) if kind not in leaves]
    return kept, Counter({kind: counts[kind] for kind in leaves}), 0


def _origin(task: Task) -> tuple[object, ...]:
    return task.preset.dataset, task.preset.subset, task.preset.train


def _sample(items: list[T], source: TrainingSourceRecipe, recipe: Recipe) -> list[T]:
    number = source.examples or recipe.finetuning.examples
    return items if number is None else random.Random(recipe.seed).sample(items, min(number, len(items)))


def _own_answers(folder: Path, longest: int) -> list[Encoded]:
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        raise PollardError(f"The original model's own answers are missing in {folder}: run the recipe, which draws them.")
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return [Encoded(row["input_ids"], row["prompt_length"]) for row in rows if len(row["input_ids"]) <= longest]


def _by_weight(sources: Sequence[TrainingSourceRecipe], kept: list[list[Encoded]], seed: int) -> list[list[Encoded]]:
    """Of every source its share of the examples; as many as the scarcest source allows, none twice."""
    weights = [float(source.weight or 0) for source in sources]
    total = min(len(part) * sum(weights) / weight for part, weight in zip(kept, weights, strict=True))
    chosen = []
    for source, part, weight in zip(sources, kept, weights, strict=True):
        number = math.floor(total * weight / sum(weights) + 1e-9)
        if number == 0:
            raise PollardError(
                f"finetuning.data: the share of {source.name} is less than one example (the scarcest source allows "
                f"{total:.0f} in all): change the weights, or give it more examples."
            )
        chosen.append(random.Random(seed).sample(part, number))
        say(f"  {source.name}: {number:,} of {len(part):,} by weight")
    return chosen
