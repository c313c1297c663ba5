"""Training data that the original model writes: its own sampled answers to training prompts, the right ones.

Rejection-sampling fine-tuning (arXiv 2308.01825). Prompts are taken in pieces, and every answer has random numbers of its
own, so that neither batches nor the number of ranks nor a kill changes what is drawn.
"""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from toolkit.estimate import DataSize, Machine, StageEstimate
from toolkit.evaluation import Decoding, answer_text, batch_size_for, generate, sampled
from toolkit.moe.placement import with_model
from toolkit.pipeline.outlook import examples_or_all
from toolkit.pipeline.recipe_changes import DECIDING
from toolkit.pipeline.recipe_on_machine import RecipeOnMachine
from toolkit.pipeline.rounds import trains
from toolkit.pipeline.stage import Facts, Stage
from toolkit.recipe.data import TrainingSourceRecipe
from toolkit.recipe.roles import Role
from toolkit.recipe.schema import Recipe
from toolkit.recovery.training_data import training_examples, training_sources
from toolkit.runtime.distributed import on_main, say
from toolkit.runtime.errors import PollardError
from toolkit.runtime.shards import make_shards, missing_shards
from toolkit.tasks import DataCache, encode_prompt, gold_of

TOKEN_BYTES = 7  # of an answer on the disk: a number and a comma
PROMPTS = 64  # per piece: what a kill loses at most
SUFFIX = ".jsonl"
EACH_RANK_ITS_OWN = "every rank asks the original about examples of its own"
"""Why a model in parts on all ranks cannot serve."""


@dataclass(frozen=True)
class AnswerFacts(Facts):
    drawn: int
    kept: int


class Answers(Stage):
    """Training prompts -> answers/: the original model's own right answers."""

    kind = "answers"
    batch_section = "evaluation"
    sections = DECIDING[Role.CONTROL]
    output = "answers"
    resumes = ("answers",)
    remaking = "the original answers again, where a training needs it"

    def is_asked_for(self) -> bool:
        context = self.context
        return context.teaching is None and trains(context.recipe) and context.fingerprints.teaching.answers is not None

    def purpose(self) -> str:
        return "have the original model answer training prompts"

    def fingerprint(self) -> str:
        return str(self.context.fingerprints.teaching.answers)

    def estimate(self, machine: Machine) -> StageEstimate:
        """At most: all answers are right."""
        sizes, prompts = RecipeOnMachine(self.context, machine), self._prompts()
        tokens = (prompts.examples or 0) * (prompts.mean + self.context.recipe.evaluation.max_new_tokens)
        found = sizes.generation(self.name, sizes.original(), prompts, whole=True)
        return replace(found, disk=round(TOKEN_BYTES * tokens))

    def outlook(self) -> str:
        new = self.context.recipe.evaluation.max_new_tokens
        return f"{examples_or_all(self._prompts().examples)} answers drawn, at most {new:,} new tokens each"

    def _prompts(self) -> DataSize:
        prompts = self.context.data_sizes.answers
        assert prompts is not None, "the recipe trains on no answers of the original's own"
        return prompts

    def run(self) -> AnswerFacts:
        recipe, tokenizer, folder = self.context.recipe, self.context.tokenizer, self.context.directory.answers

        def answer(model: PreTrainedModel) -> AnswerFacts:
            return draw_answers(model, tokenizer, recipe, folder, self.fingerprint(), self.context.data)

        return with_model(recipe, *self.context.checkpoint(Role.ORIGINAL), answer, EACH_RANK_ITS_OWN)


def draw_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
    folder: Path,
    fingerprint: str,
    data: DataCache | None = None,
) -> AnswerFacts:
    """Writes `folder`/<number of the source>/00000.jsonl, … : `input_ids` and `prompt_length` of every right answer.

    Returns how many were drawn and kept. Raises PollardError where a source has no right answer.
    """
    data, facts = data or DataCache(), AnswerFacts(0, 0)
    for number, source in enumerate(training_sources(recipe)):
        if source.self_generated:
            drawn, kept = _draw(model, tokenizer, recipe, source, folder / str(number), fingerprint, data)
            facts = AnswerFacts(facts.drawn + drawn, facts.kept + kept)
    return facts


def _draw(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
    source: TrainingSourceRecipe,
    folder: Path,
    fingerprint: str,
    data: DataCache,
) -> tuple[int, int]:
    task, longest = data.task(source.task or recipe.task), recipe.finetuning.max_length
    examples = training_examples(source, recipe, data).items
    asked = [(prompt, e) for e in examples if len(prompt := encode_prompt(tokenizer, e)) < longest]
    if not asked:
        raise PollardError(
            f"finetuning.data: {source.name} has no prompt left to answer: all are {longest} tokens or longer "
            "(finetuning.max_length), or repeat a question of the test set or the dev slice.",
            code="answers.no-prompts",
        )
    settings = sampled(model, tokenizer, recipe.evaluation.max_new_tokens, source.temperature)
    ends, drawing = settings.eos_token_id, Decoding(seed=recipe.seed)
    rows_at_once = batch_size_for(recipe.evaluation.batch_size, model, [p for p, _ in asked], recipe.evaluation.max_new_tokens)
    size = max(1, rows_at_once.number // source.samples)  # prompts per batch, each with all its samples

    def make(piece: int, path: Path) -> None:
        lines = []
        mine = range(piece * PROMPTS, min((piece + 1) * PROMPTS, len(asked)))
        for start in range(0, len(mine), size):
            rows = [(i, sample) for i in mine[start : start + size] for sample in range(source.samples)]
            answers = generate(model, [asked[i][0] for i, _ in rows], settings, [drawing.random_numbers(*row) for row in rows])
            right = {}  # in the order drawn, equal ones once
            for (i, _), answer in zip(rows, answers, strict=True):
                prompt, example = asked[i]
                text, gold = answer_text(tokenizer, answer, ends, example), gold_of(tokenizer, example)
                ended = bool(answer) and answer[-1] in ends
                if ended and len(prompt) + len(answer) <= longest and task.score(text, gold):
                    right[(*prompt, *answer)] = len(prompt)
            lines += [json.dumps({"input_ids": ids, "prompt_length": length}) + "\n" for ids, length in right.items()]
        path.write_text("".join(lines))

    count = math.ceil(len(asked) / PROMPTS)
    missing = missing_shards(folder, {"fingerprint": fingerprint, "prompts_per_file": PROMPTS}, count, SUFFIX)
    make_shards(folder, missing, SUFFIX, make, "drawing answers")
    kept = on_main(lambda: sum(len(path.read_text().splitlines()) for path in folder.glob(f"*{SUFFIX}")))
    drawn = len(asked) * source.samples
    say(f"  {source.name}: {kept:,} of {drawn:,} answers to {len(asked):,} prompts kept: right, ended, no two the same")
    if not kept:
        raise PollardError(
            f"None of the original model's {drawn:,} answers to training prompts of {task.name} is right and ends within "
            f"{recipe.evaluation.max_new_tokens} new tokens: leave self_generated out, draw more samples, or raise "
            "evaluation.max_new_tokens.",
            code="answers.none-right",
        )
    return drawn, kept
