"""How much data a recipe reads: counted and tokenized where data and tokenizer are on this machine, else bounded.

Nothing is fetched. Of hub data the number of examples is what the recipe or the task's preset says, and every example
counts as `max_length` tokens: an upper bound.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from transformers import PreTrainedTokenizerBase

from toolkit.estimate import DataSize, DataSizes, StudentSizes
from toolkit.moe import load_tokenizer
from toolkit.recipe.data import TaskRecipe
from toolkit.recipe.schema import Recipe
from toolkit.recipe.sources import TrainingSourceRecipe
from toolkit.recovery.training_data import training_sources
from toolkit.runtime.errors import PollardError
from toolkit.tasks import Example, Task, encode, encode_prompt
from toolkit.tasks.new_questions import ROOM

SAMPLE = 256  # examples that are tokenized, to estimate the lengths of all

TokenLengths = Callable[[PreTrainedTokenizerBase, Example], tuple[int, int]]  # tokens of an example and of its completion


def data_sizes(recipe: Recipe, task_of: Callable[[TaskRecipe], Task] = Task) -> DataSizes:
    """What each stage of the recipe reads. Raises PollardError for local data that cannot be read."""
    return _Counter(recipe, local_tokenizer(recipe.model.path), task_of).all_sizes()


@dataclass(frozen=True)
class _Counter:
    """Counts the data of one recipe."""

    recipe: Recipe
    tokenizer: PreTrainedTokenizerBase | None
    task_of: Callable[[TaskRecipe], Task]

    def all_sizes(self) -> DataSizes:
        evaluation, sources = self.recipe.evaluation, training_sources(self.recipe)
        others = [source for source in sources if not source.written_by_student]
        prompts = [self._answered_prompts(source) for source in others if source.self_generated]
        questions = self._examples(self.recipe.task, evaluation.split, _prompt_lengths, self.recipe.finetuning.max_length)
        return DataSizes(
            calibration=self._calibration(),
            training=self._mixed_training(sources),
            evaluation=questions.limited(evaluation.examples),
            answers=mixed_size(prompts, [None] * len(prompts)) if prompts else None,
            questions=self._questions([source for source in sources if source.questions]),
            student=self._student(others),
        )

    def _student(self, others: Sequence[TrainingSourceRecipe]) -> StudentSizes | None:
        """`others`: the sources that the student does not write."""
        written = self.recipe.finetuning.student_sources
        if not written:
            return None
        prompts = [self._answered_prompts(source) for source in written]
        nothing = DataSize(0, 0.0, 0, True, 0.0)
        return StudentSizes(
            others=self._mixed_training(others) if others else nothing,
            prompts=mixed_size(prompts, [None] * len(prompts)),
            written=self._mixed_training(written),
        )

    def _calibration(self) -> DataSize:
        settings = self.recipe.calibration
        if settings.data:
            number = sum(source.examples or settings.examples for source in settings.data)
            return DataSize(number, settings.max_length, settings.max_length, False)
        return self._examples(self.recipe.task, "train", _lengths, settings.max_length).limited(settings.examples)

    def _mixed_training(self, sources: Sequence[TrainingSourceRecipe]) -> DataSize:
        return mixed_size([self._training(source) for source in sources], [source.weight for source in sources])

    def _training(self, source: TrainingSourceRecipe) -> DataSize:
        """One source of the training data."""
        settings = self.recipe.finetuning
        longest, limit = settings.max_length, source.examples or settings.examples
        if source.text:  # into how many pieces it is cut is not known without reading it
            return DataSize(limit, longest, longest, False)
        if source.self_generated:  # an upper bound: all answers are right, or the student's, all different
            prompts, new = self._answered_prompts(source), self.recipe.evaluation.max_new_tokens
            prompts = replace(prompts, examples=source.questions or prompts.examples)  # of a new question's answers one is kept
            mean, most = min(prompts.mean + new, longest), min(prompts.longest + new, longest)
            return DataSize(prompts.examples, mean, most, False, new)
        return self._examples(source.task or self.recipe.task, "train", _lengths, longest).limited(limit)

    def _answered_prompts(self, source: TrainingSourceRecipe) -> DataSize:
        """The prompts that the original model or the student answers, each once per sample. New ones: as long as the others."""
        settings = self.recipe.finetuning
        prompts = self._examples(source.task or self.recipe.task, "train", _prompt_lengths, settings.max_length)
        if source.questions:
            return replace(prompts, examples=source.questions).times(source.samples)
        return prompts.limited(source.examples or settings.examples).times(source.samples)

    def _questions(self, sources: Sequence[TrainingSourceRecipe]) -> DataSize | None:
        """What the original goes on from to write questions, where each of its texts is a new one."""
        longest, parts = self.recipe.finetuning.max_length, []
        for source in sources:
            example = self._examples(source.task or self.recipe.task, "train", _lengths, longest)
            shown = max(1, source.shown)  # of one example, the first words
            parts.append(DataSize(source.questions, shown * example.mean, shown * example.longest, False, ROOM * example.longest))
        return mixed_size(parts, [None] * len(parts)) if parts else None

    def _examples(
        self, recipe: TaskRecipe, split: Literal["train", "dev", "test"], lengths_of: TokenLengths, max_length: int
    ) -> DataSize:
        """One split of a task; examples longer than `max_length` tokens are left out, as the stages leave them out."""
        task = self.task_of(recipe)
        stored: Literal["train", "test"] = "test" if split == "test" else "train"  # dev is carved from train
        if not task.is_local(stored):
            return DataSize(task.known_size(split), max_length, max_length, False)
        examples = task.examples(split)
        if self.tokenizer is None:
            return DataSize(len(examples), max_length, max_length, False)
        sample = random.Random(0).sample(examples, min(SAMPLE, len(examples)))
        lengths = [lengths_of(self.tokenizer, example) for example in sample]
        fitting = [(whole, completion) for whole, completion in lengths if whole <= max_length]
        if not fitting:
            return DataSize(len(examples), max_length, max_length, False)
        whole, completion = zip(*fitting, strict=True)
        number = round(len(examples) * len(fitting) / len(sample))
        return DataSize(number, sum(whole) / len(fitting), max(whole), True, sum(completion) / len(fitting))


def mixed_size(parts: Sequence[DataSize], weights: Sequence[float | None]) -> DataSize:
    """The size of a mix: with weights, of every part its share, as many examples as the scarcest part allows (as
    toolkit/recovery/training_data.py mixes them)."""
    if len(parts) == 1:
        return parts[0]
    longest, measured = max(part.longest for part in parts), all(part.measured for part in parts)
    numbers = [part.examples for part in parts if part.examples is not None]
    if len(numbers) < len(parts):
        completion = max(part.completion_tokens for part in parts)
        return DataSize(None, max(part.mean for part in parts), longest, measured, completion)
    shares = [float(weight) for weight in weights if weight]
    if shares:
        total = min(number * sum(shares) / share for number, share in zip(numbers, shares, strict=True))
        numbers = [math.floor(total * share / sum(shares) + 1e-9) for share in shares]
    examples = sum(numbers)
    mean, completion = (
        sum(number * size for number, size in zip(numbers, sizes, strict=True)) / max(examples, 1)
        for sizes in ([part.mean for part in parts], [part.completion_tokens for part in parts])
    )
    return DataSize(examples, mean, longest, measured, completion)


def _lengths(tokenizer: PreTrainedTokenizerBase, example: Example) -> tuple[int, int]:
    encoded = encode(tokenizer, example)
    return len(encoded.input_ids), len(encoded.input_ids) - encoded.prompt_length


def _prompt_lengths(tokenizer: PreTrainedTokenizerBase, example: Example) -> tuple[int, int]:
    return len(encode_prompt(tokenizer, example)), 0


def local_tokenizer(path: str) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a checkpoint folder; None where there is none (a lone config.json is enough to plan with)."""
    if not Path(path).is_dir():
        return None
    try:
        return load_tokenizer(path)
    except PollardError:
        return None
