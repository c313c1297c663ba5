"""What the pruned model is trained on: the task's training split, or a mix without what overlaps with the test set.

finetuning:
  data: [{task: gsm8k, weight: 0.5}, {self_generated: true, weight: 0.5}]

What the student writes itself comes later, and apart: student_answers.py.
"""

import json
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from transformers import PreTrainedTokenizerBase

from toolkit.recipe.schema import Recipe
from toolkit.recipe.sources import TrainingSourceRecipe
from toolkit.runtime.distributed import on_main, say
from toolkit.runtime.errors import PollardError
from toolkit.tasks import (
    DataCache,
    Encoded,
    Example,
    HeldOut,
    QuestionForm,
    Task,
    check_new_questions,
    encode,
    encode_all,
    encode_texts,
    question_of,
)

T = TypeVar("T")


@dataclass(frozen=True)
class TrainingData:
    """Tokenized examples, source after source, and how many were left out."""

    encoded: list[Encoded]
    left_out: int  # longer than finetuning.max_length
    overlapping: int  # left out: they overlap with the test set or the dev slice
    bad_lines: int = 0  # lines that could not be used (task.on_bad_lines)
    repeating: int = 0  # kept although they repeat a question of the test set or the dev slice


class WithoutOverlap(NamedTuple, Generic[T]):
    """The items of a source that remain, and how many overlap with held-out questions."""

    items: list[T]
    dropped: int
    repeating: int  # kept although they repeat a held-out question


def training_sources(recipe: Recipe) -> list[TrainingSourceRecipe]:
    """The mix, or the task alone."""
    return recipe.finetuning.data or [TrainingSourceRecipe(task=recipe.task)]


def sources_without_student(recipe: Recipe) -> dict[int, TrainingSourceRecipe]:
    """By their numbers in the mix: what the original can be asked about before there is a student, and a control learns from."""
    return {number: source for number, source in enumerate(training_sources(recipe)) if not source.written_by_student}


def check_training_source(
    recipe: Recipe, source: TrainingSourceRecipe, tokenizer: PreTrainedTokenizerBase | None, cache: DataCache
) -> None:
    """Raises PollardError for a source that cannot be read and, with a tokenizer, for one without any example that is short
    enough."""
    if source.text:
        cache.texts(source.text)
        return
    task, longest = cache.task(source.task or recipe.task), recipe.finetuning.max_length
    examples = task.examples("train")
    if source.questions:
        check_new_questions(task, examples)
        if tokenizer is not None:
            QuestionForm(task, tokenizer, examples)  # raises where nothing tells a question's end
    if tokenizer is None or source.self_generated:
        return
    if not any(len(encode(tokenizer, example).input_ids) <= longest for example in examples):
        encode_all(tokenizer, examples, longest, "finetuning.max_length")  # raises, naming their lengths


def read_training_data(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, answers: Path, cache: DataCache | None = None
) -> TrainingData:
    """All but what the student writes, the same on every rank; `answers` is where the original's own answers lie (one folder
    per source, by number).

    Raises PollardError where a source has nothing left, and where own answers were not drawn.
    """
    numbered, cache = sources_without_student(recipe), cache or DataCache()
    sources = [*numbered.values()]
    parts = [_read_source(recipe, source, tokenizer, answers / str(number), cache) for number, source in numbered.items()]
    examples = [part.encoded for part in parts]
    if len(parts) > 1 and sources[0].weight is not None:
        names, weights = [source.name for source in sources], [float(source.weight or 0) for source in sources]
        examples = by_weight(names, weights, examples, recipe.seed)
    return TrainingData(
        encoded=[encoded for part in examples for encoded in part],
        left_out=sum(part.left_out for part in parts),
        overlapping=sum(part.overlapping for part in parts),
        bad_lines=sum(part.bad_lines for part in parts),
        repeating=sum(part.repeating for part in parts),
    )


def _read_source(
    recipe: Recipe, source: TrainingSourceRecipe, tokenizer: PreTrainedTokenizerBase, answers: Path, cache: DataCache
) -> TrainingData:
    longest = recipe.finetuning.max_length
    if source.self_generated:
        data = TrainingData(_own_answers(answers, longest), left_out=0, overlapping=0)
    elif source.text:
        texts, dropped, repeating = without_overlap(recipe, source, cache.texts(source.text), str, cache)
        encoded = [piece for piece in encode_texts(tokenizer, texts, longest) if len(piece.input_ids) > 1]
        data = TrainingData(_sample(encoded, source, recipe), 0, dropped, repeating=repeating)
    else:
        task = cache.task(source.task or recipe.task)
        examples, dropped, repeating = training_examples(source, recipe, cache)
        encoded, too_long = encode_all(tokenizer, examples, longest, "finetuning.max_length")
        data = TrainingData(encoded, too_long, dropped, task.bad_lines("train"), repeating)
    too_long = data.left_out
    say(
        f"  {source.name}: {len(data.encoded):,} examples"
        + f"; {too_long:,} longer than {longest} tokens left out" * bool(too_long)
    )
    if not data.encoded:
        raise PollardError(f"finetuning.data: {source.name} has no example left to train on.", code="recovery.no-examples")
    return data


def training_examples(source: TrainingSourceRecipe, recipe: Recipe, cache: DataCache) -> WithoutOverlap[Example]:
    """The examples of the source's task without those that overlap: a seeded sample of the number that the recipe asks for."""
    task = cache.task(source.task or recipe.task)
    found = without_overlap(recipe, source, task.examples("train"), lambda example: question_of(task, example), cache)
    return found._replace(items=_sample(found.items, source, recipe))


def without_overlap(
    recipe: Recipe, source: TrainingSourceRecipe, items: list[T], text_of: Callable[[T], str], cache: DataCache
) -> WithoutOverlap[T]:
    """The items that do not overlap with the task's test questions and dev slice; prints how many do.

    Of the task's own training split only exact repetitions are dropped: its questions may well be made like those of the
    test set. Without `finetuning.data` all of it stays, and the overlap is only printed.
    """
    task = cache.task(recipe.task)
    own = source.text is None and _origin(cache.task(source.task or recipe.task)) == _origin(task)

    def compare() -> list[str | None]:  # minutes for millions of texts: not on every rank
        held = held_out_questions(recipe, cache)
        return [held.overlap(text_of(item)) for item in items]

    found = on_main(compare)
    dropped_kinds = {"exact"} if own else {"exact", "partial"}
    counts = Counter(kind for kind in found if kind)
    if counts:
        say(
            f"  {source.name}: of {len(items):,} texts {counts['exact']:,} repeat a question of the test set or the dev slice, "
            f"{counts['partial']:,} share 13 words in a row with one: "
            + ("all stay" if recipe.finetuning.data is None else "the repetitions are left out" if own else "left out")
        )
    if recipe.finetuning.data is None:
        return WithoutOverlap(items, 0, counts["exact"])
    kept = [item for item, kind in zip(items, found, strict=True) if kind not in dropped_kinds]
    return WithoutOverlap(kept, sum(counts[kind] for kind in dropped_kinds), 0)


def held_out_questions(recipe: Recipe, cache: DataCache) -> HeldOut:
    """Those of the test set and of the dev slice."""
    task, splits = cache.task(recipe.task), ("test", "dev")
    return HeldOut(question_of(task, example) for split in splits for example in task.examples(split))  # type: ignore[arg-type]


def _origin(task: Task) -> tuple[object, ...]:
    return task.preset.dataset, task.preset.subset, task.preset.train


def _sample(items: list[T], source: TrainingSourceRecipe, recipe: Recipe) -> list[T]:
    number = source.examples or recipe.finetuning.examples
    return items if number is None else random.Random(recipe.seed).sample(items, min(number, len(items)))


def _own_answers(folder: Path, longest: int) -> list[Encoded]:
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        raise PollardError(
            f"The original model's own answers are missing in {folder}: run the recipe, which draws them.",
            code="recovery.no-own-answers",
        )
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return [Encoded(row["input_ids"], row["prompt_length"]) for row in rows if len(row["input_ids"]) <= longest]


def by_weight(names: Sequence[str], weights: Sequence[float], kept: Sequence[Sequence[T]], seed: int) -> list[list[T]]:
    """As many items of each source as its weight asks, none twice; the scarcest source limits their number."""
    total = min(len(part) * sum(weights) / weight for part, weight in zip(kept, weights, strict=True))
    chosen = []
    for name, part, weight in zip(names, kept, weights, strict=True):
        number = math.floor(total * weight / sum(weights) + 1e-9)
        if number == 0:
            raise PollardError(
                f"finetuning.data: the share of {name} is less than one example (the scarcest source allows "
                f"{total:.0f} in all): change the weights, or give it more examples.",
                code="recovery.share-too-small",
            )
        chosen.append(random.Random(seed).sample(part, number))
        say(f"  {name}: {number:,} of {len(part):,} by weight")
    return chosen
