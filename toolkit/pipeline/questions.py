"""New questions for training, which the original model writes after training examples (RetriKT, arXiv 2310.15594).

answers/<source>/questions/00000.jsonl    {"begun": "", "written": "Ann has 5 cups. …<|assistant|>"}, … 64 a file

Texts are numbered, and each has random numbers of its own, by which also its examples are drawn: neither batches nor the number
of ranks nor a kill changes what is written. Which of them are new questions is decided over all of them, in the order of their
numbers.
"""

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Self

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, StopStringCriteria

from toolkit.evaluation import batch_size_for, generate, sampled
from toolkit.moe.tokenizer import context_length
from toolkit.recipe.schema import Recipe
from toolkit.recipe.sources import TrainingSourceRecipe
from toolkit.recovery.training_data import held_out_questions, training_examples
from toolkit.runtime.distributed import on_main, say
from toolkit.runtime.errors import PollardError
from toolkit.runtime.files import JsonObject
from toolkit.runtime.shards import make_shards, missing_shards, shard_path
from toolkit.tasks import DataCache, Example, Opening, QuestionForm, Task, encode_prompt, words_in

TEXTS = 64  # per file: what a kill loses at most
TRIES = 5  # texts that are written at most, for every question that is asked for
TEMPERATURE = 1.0  # the model's own distribution: questions may be as varied as it can make them
SUFFIX = ".jsonl"


@dataclass
class NewQuestions:
    """What came of the texts, in the order of their numbers."""

    examples: list[Example] = field(default_factory=list)
    texts: int = 0  # up to the last question that was asked for
    malformed: int = 0  # not ended, of another form than the task's prompts, or too long
    repeated: int = 0  # of another one, or of an example that was looked at
    overlapping: int = 0  # with a question of the test set or the dev slice


@dataclass(frozen=True)
class QuestionWriting:
    """What decides the new questions of one source."""

    recipe: Recipe
    source: TrainingSourceRecipe
    tokenizer: PreTrainedTokenizerBase
    data: DataCache

    @cached_property
    def task(self) -> Task:
        return self.data.task(self.source.task or self.recipe.task)

    @cached_property
    def examples(self) -> list[Example]:
        """The training examples that may be looked at. Raises PollardError where there are none."""
        examples = training_examples(self.source, self.recipe, self.data).items
        if not examples:
            raise PollardError(
                f"finetuning.data: {self.source.name} has no training example to begin with: all repeat a question of the test "
                "set or the dev slice.",
                code="questions.no-examples",
            )
        return examples

    @cached_property
    def form(self) -> QuestionForm:
        return QuestionForm(self.task, self.tokenizer, self.examples)

    def write(self, model: PreTrainedModel, folder: Path, fingerprint: str) -> NewQuestions:
        """As many new questions as the source asks for, or as come out of TRIES times as many texts, the same on every rank.

        Raises PollardError where none comes out.
        """
        wanted = texts = int(self.source.questions or 0)
        writer = _TextWriter.of(self, model)
        while True:
            pieces = math.ceil(min(texts, writer.most) / TEXTS)
            missing = missing_shards(folder, {"fingerprint": fingerprint, "texts_per_file": TEXTS}, pieces, SUFFIX)
            make_shards(folder, missing, SUFFIX, writer.write, "writing questions")
            found = self._sifted(folder, pieces)
            if len(found.examples) >= wanted or found.texts >= writer.most or not found.examples:
                break
            lacking = wanted - len(found.examples)
            texts = found.texts + math.ceil(lacking * found.texts / len(found.examples))
        self._report(found, wanted)
        return found

    def opening(self, numbers: random.Random, room: int | None) -> Opening:
        """What the model goes on from, in at most `room` tokens where that many examples need no more."""
        shown = numbers.sample(self.examples, min(self.source.shown, len(self.examples)))
        if not shown:
            return self.form.opening([], numbers.choice(self.examples))
        opening = self.form.opening(shown)
        while shown and room is not None and len(opening.prompt) > room:
            shown = shown[1:]
            opening = self.form.opening(shown)
        return opening

    def _sifted(self, folder: Path, pieces: int) -> NewQuestions:
        paths = [shard_path(folder, piece, SUFFIX) for piece in range(pieces)]
        return on_main(lambda: self._sift([json.loads(line) for path in paths for line in path.read_text().splitlines()]))

    def _sift(self, texts: Sequence[JsonObject]) -> NewQuestions:
        """The new questions among texts in the order of their numbers, at most as many as are asked for."""
        found = NewQuestions()
        held, known = held_out_questions(self.recipe, self.data), {self._words(example) for example in self.examples}
        for text in texts:
            if len(found.examples) == self.source.questions:
                break
            found.texts += 1
            example = self.form.read(text["written"], text["begun"])
            example = self.task.with_shots([example])[0] if example else None
            if example is None or len(encode_prompt(self.tokenizer, example)) >= self.recipe.finetuning.max_length:
                found.malformed += 1
            elif self._words(example) in known:
                found.repeated += 1
            elif held.overlap(self.task.question_of(example)):
                found.overlapping += 1
            else:
                known.add(self._words(example))
                found.examples.append(example)
        return found

    def _words(self, example: Example) -> tuple[str, ...]:
        return words_in(self.task.question_of(example))

    def _report(self, found: NewQuestions, wanted: int) -> None:
        number = len(found.examples)
        say(
            f"  {self.source.name}: {number:,} new questions in {found.texts:,} texts; {found.malformed:,} of another form, "
            f"{found.repeated:,} repeated, {found.overlapping:,} overlapping with the test set or the dev slice"
        )
        if not number:
            raise PollardError(
                f"None of {found.texts:,} texts that the original wrote is a new question for task {self.task.name}: "
                f"{found.malformed:,} are of another form than its prompts, {found.repeated:,} repeat one, {found.overlapping:,} "
                "overlap with the test set or the dev slice. Say another finetuning.data shown (0: it goes on from the first "
                "words of an example), or leave `questions` out.",
                code="questions.none",
            )
        if number < wanted:
            say(f"  [bold]{number:,} of the {wanted:,} questions asked for[/]: no more texts are written than {TRIES} for each")


@dataclass(frozen=True)
class _TextWriter:
    """Writes a file of texts."""

    writing: QuestionWriting
    model: PreTrainedModel
    rows: int  # texts at a time
    room: int | None  # tokens of a prompt, as far as is known

    @classmethod
    def of(cls, writing: QuestionWriting, model: PreTrainedModel) -> Self:
        """Call it on every rank."""
        new, context = writing.form.max_new_tokens, context_length(model.config, writing.tokenizer)
        room = None if context is None else max(1, context.tokens - new)
        longest = sorted(writing.examples, key=lambda example: -len(example.question))[: writing.source.shown]
        prompts = [writing.form.opening(longest).prompt[:room]]
        return cls(writing, model, batch_size_for(writing.recipe.evaluation.batch_size, model, prompts, new).number, room)

    @property
    def most(self) -> int:
        """Texts that may be written."""
        return TRIES * int(self.writing.source.questions or 0)

    def write(self, piece: int, path: Path) -> None:
        lines: list[JsonObject] = []
        for start in range(piece * TEXTS, end := min((piece + 1) * TEXTS, self.most), self.rows):
            lines += self._texts(range(start, min(start + self.rows, end)))
        path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")

    def _texts(self, numbers: range) -> list[JsonObject]:
        writing, tokenizer = self.writing, self.writing.tokenizer
        settings = sampled(self.model, tokenizer, writing.form.max_new_tokens, TEMPERATURE)
        drawing = [random.Random(f"{writing.recipe.seed}/question/{number}") for number in numbers]
        openings = [writing.opening(each, self.room) for each in drawing]
        stop = StopStringCriteria(tokenizer, [writing.form.stop])

        def stopped(ids_BS: torch.Tensor) -> torch.Tensor:
            return stop(ids_BS, None)  # type: ignore[arg-type]

        written = generate(self.model, [opening.prompt for opening in openings], settings, drawing, stopped)
        texts = [str(tokenizer.decode(tokens, skip_special_tokens=False)) for tokens in written]
        return [{"begun": each.begun, "written": text} for each, text in zip(openings, texts, strict=True)]
