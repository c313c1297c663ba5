"""Answers that a model draws to training prompts, to be trained on.

answers/<source>/about.json  answers/<source>/00000.jsonl  …

Prompts are taken in pieces, a file each, and every answer has random numbers of its own, so that neither batches nor the number
of ranks nor a kill changes what is drawn.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from toolkit.evaluation import Decoding, answer_text, batch_size_for, generate, sampled
from toolkit.recipe.schema import Recipe
from toolkit.recipe.sources import TrainingSourceRecipe
from toolkit.recovery.training_data import training_examples
from toolkit.runtime.errors import PollardError
from toolkit.runtime.files import JsonObject
from toolkit.runtime.shards import make_shards, missing_shards
from toolkit.tasks import DataCache, Example, encode_prompt, gold_of

PROMPTS = 64  # per piece: what a kill loses at most
SUFFIX = ".jsonl"
TOKEN_BYTES = 7  # of an answer on the disk: a number and a comma


class Answer(NamedTuple):
    """One that was drawn: tokens, up to the end token where it ended by itself."""

    tokens: list[int]
    ended: bool
    text: str


class Answered(NamedTuple):
    """A prompt, the example that it is of, and what was drawn for it."""

    prompt: list[int]
    example: Example
    answers: list[Answer]


Selection = Callable[[Sequence[Answered]], list[JsonObject]]
"""Of the answered prompts of a piece, what is kept of them: the lines of its file."""


@dataclass(frozen=True)
class Drawing:
    """What decides the answers to the prompts of one source."""

    recipe: Recipe
    source: TrainingSourceRecipe
    tokenizer: PreTrainedTokenizerBase
    data: DataCache
    questions: Sequence[Example] | None = None  # that are answered instead of the source's training examples
    first_sample: int = 0  # of those numbers that random numbers are made of: another for another drawing of the same prompts

    @cached_property
    def asked(self) -> list[tuple[list[int], Example]]:
        """The prompts that leave room for an answer. Raises PollardError where none does."""
        longest = self.recipe.finetuning.max_length
        examples = self.questions
        if examples is None:
            examples = training_examples(self.source, self.recipe, self.data).items
        asked = [(prompt, e) for e in examples if len(prompt := encode_prompt(self.tokenizer, e)) < longest]
        if not asked:
            raise PollardError(
                f"finetuning.data: {self.source.name} has no prompt left to answer: all are {longest} tokens or longer "
                "(finetuning.max_length), or repeat a question of the test set or the dev slice.",
                code="answers.no-prompts",
            )
        return asked

    def is_right(self, answered: Answered, answer: Answer) -> bool:
        """By the task's scorer."""
        task = self.data.task(self.source.task or self.recipe.task)
        return bool(task.score(answer.text, gold_of(self.tokenizer, answered.example), answered.example.row))

    def write(self, model: PreTrainedModel, folder: Path, fingerprint: str, select: Selection) -> list[JsonObject]:
        """`source.samples` answers to every prompt, of which `select` says what is written into `folder`: returns all lines, on
        every rank. Pieces that were finished under the same `fingerprint` are kept."""
        asked, evaluation = self.asked, self.recipe.evaluation
        settings = sampled(model, self.tokenizer, evaluation.max_new_tokens, self.source.temperature)
        rows = batch_size_for(evaluation.batch_size, model, [prompt for prompt, _ in asked], evaluation.max_new_tokens).number

        def make(piece: int, path: Path) -> None:
            mine = range(piece * PROMPTS, min((piece + 1) * PROMPTS, len(asked)))
            size = max(1, rows // self.source.samples)  # prompts per batch, each with all its samples
            batches = [mine[start : start + size] for start in range(0, len(mine), size)]
            answered = [each for batch in batches for each in self._answered(model, settings, batch, asked)]
            path.write_text("".join(json.dumps(line) + "\n" for line in select(answered)))

        about = {"fingerprint": fingerprint, "prompts_per_file": PROMPTS}
        missing = missing_shards(folder, about, math.ceil(len(asked) / PROMPTS), SUFFIX)
        make_shards(folder, missing, SUFFIX, make, "drawing answers")
        return [json.loads(line) for path in sorted(folder.glob(f"*{SUFFIX}")) for line in path.read_text().splitlines()]

    def _answered(
        self, model: PreTrainedModel, settings: GenerationConfig, batch: range, asked: Sequence[tuple[list[int], Example]]
    ) -> list[Answered]:
        drawing, samples, ends = Decoding(seed=self.recipe.seed), range(self.source.samples), settings.eos_token_id
        rows = [(i, sample) for i in batch for sample in samples]
        numbers = [drawing.random_numbers(i, self.first_sample + sample) for i, sample in rows]
        drawn = generate(model, [asked[i][0] for i, _ in rows], settings, numbers)
        found = [Answered(*asked[i], []) for i in batch]
        for (i, _), tokens in zip(rows, drawn, strict=True):
            text = answer_text(self.tokenizer, tokens, ends, asked[i][1])
            found[i - batch.start].answers.append(Answer(tokens, bool(tokens) and tokens[-1] in ends, text))
        return found
