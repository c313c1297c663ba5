"""What the original model is observed on: the task's training examples, or a mix of tasks and plain texts.

calibration:
  data: [{task: gsm8k, examples: 256}, {text: notes.jsonl, examples: 128}]
  self_generated: true
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from toolkit.calibration import CalibrationSource
from toolkit.evaluation import answer_text, batch_size_for, generate_shard, greedy
from toolkit.evaluation.decoding import as_list
from toolkit.evaluation.shared_prefix import CommonPrefix
from toolkit.moe import StreamedModel
from toolkit.moe.placement import shard_batches
from toolkit.recipe.refit import RefitRecipe
from toolkit.recipe.schema import Recipe
from toolkit.recipe.sources import SourceRecipe
from toolkit.runtime.distributed import gather, say
from toolkit.runtime.errors import PollardError
from toolkit.tasks import DataCache, Encoded, Example, Task, encode_all, encode_prompt, encode_texts, gold_of, padded_batches


@dataclass(frozen=True)
class Source:
    """One source, read and tokenized."""

    name: str
    encoded: list[Encoded]
    weight: float
    note: str  # what is missing, for people
    left_out: int = 0  # too long
    bad_lines: int = 0  # that could not be used (task.on_bad_lines)
    not_kept: int = 0  # the model's own answers that were not right, or too long


def sources_of(recipe: Recipe) -> list[SourceRecipe]:
    """The mix, or the recipe's task alone."""
    return recipe.calibration.data or [SourceRecipe(task=recipe.task)]


def refit_recipe(recipe: Recipe) -> Recipe:
    """The same recipe as if calibration read what refit reads: the same sources, perhaps other numbers of examples."""
    refit = recipe.pruning.refit
    number = (refit.examples if isinstance(refit, RefitRecipe) else None) or recipe.calibration.examples
    return recipe.model_copy(update={"calibration": recipe.calibration.model_copy(update={"examples": number})})


def check_source(source: SourceRecipe, data: DataCache) -> None:
    """Raises PollardError for a source that cannot be read."""
    if source.task:
        data.task(source.task).examples("train")
    else:
        data.texts(str(source.text))


def check_self_generated(recipe: Recipe) -> None:
    """Raises PollardError where own answers have nothing to answer."""
    if recipe.calibration.self_generated and not any(source.task for source in sources_of(recipe)):
        raise PollardError(
            "calibration.self_generated has the model answer a task's prompts, but calibration.data holds only plain text: "
            "add a task to it, or leave self_generated out.",
            code="calibration.nothing-to-answer",
        )


def read_source(
    source: SourceRecipe,
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    data: DataCache,
    model: PreTrainedModel | None = None,
) -> Source:
    """A seeded sample of the source; with a `model`, its own right answers instead of a task's completions. Raises
    PollardError where none of its examples is short enough."""
    settings = recipe.calibration
    number, draw = source.examples or settings.examples, random.Random(recipe.seed)
    if source.task is None:
        pieces = encode_texts(tokenizer, data.texts(str(source.text)), settings.max_length)
        chosen = draw.sample(pieces, min(number, len(pieces)))
        return Source(source.name, chosen, source.weight or len(chosen), "")
    task = data.task(source.task)
    examples = task.examples("train")
    asked = draw.sample(examples, min(number, len(examples)))
    if model is None:
        encoded, too_long = encode_all(tokenizer, asked, settings.max_length, "calibration.max_length")
        note = f"; {too_long:,} longer than {settings.max_length} tokens left out" if too_long else ""
        return Source(source.name, encoded, source.weight or len(encoded), note, too_long, task.bad_lines("train"))
    encoded = right_answers(model, tokenizer, task, asked, recipe)
    note = f"; the model's own answers, {len(encoded):,} of {len(asked):,} kept: right, within {settings.max_length} tokens"
    not_kept, bad_lines = len(asked) - len(encoded), task.bad_lines("train")
    return Source(source.name, encoded, source.weight or len(encoded), note, bad_lines=bad_lines, not_kept=not_kept)


def read_sources(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, data: DataCache, model: PreTrainedModel | StreamedModel | None = None
) -> list[Source]:
    """All sources of the recipe, each reported in a line; `model` answers the prompts itself where the recipe says so (a loaded
    one can)."""
    answering = model if isinstance(model, PreTrainedModel) and recipe.calibration.self_generated else None
    sources = [read_source(source, recipe, tokenizer, data, answering) for source in sources_of(recipe)]
    for source in sources:
        named = f"{source.name}: " if len(sources) > 1 else ""
        tokens = sum(len(e.input_ids) for e in source.encoded)
        say(f"  {named}{len(source.encoded):,} examples, {tokens:,} tokens{source.note}")
    return sources


def batches_of_sources(
    sources: Sequence[Source], recipe: Recipe, model: PreTrainedModel | StreamedModel, pad: int
) -> list[CalibrationSource]:
    """This rank's batches of every source."""
    size = recipe.calibration.batch_size
    return [
        CalibrationSource(source.name, shard_batches(model, padded_batches(source.encoded, size, pad)), source.weight)
        for source in sources
    ]


def right_answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task, asked: Sequence[Example], recipe: Recipe
) -> list[Encoded]:
    """The model's greedy answers to the examples' prompts, those that the task's scorer finds right, in their order.

    Raises PollardError where none is.
    """
    longest = recipe.calibration.max_length
    pairs = [(encode_prompt(tokenizer, example), example) for example in asked]
    pairs = [(prompt, example) for prompt, example in pairs if len(prompt) < longest]
    settings = greedy(model, tokenizer, recipe.evaluation.max_new_tokens)
    prompts, mine = [prompt for prompt, _ in pairs], []
    size = batch_size_for(recipe.evaluation.batch_size, model, prompts, recipe.evaluation.max_new_tokens)
    for i, answer in generate_shard(model, prompts, size.number, settings, common=CommonPrefix.of(prompts)):
        prompt, example = pairs[i]
        text = answer_text(tokenizer, answer, as_list(settings.eos_token_id), example)
        if task.score(text, gold_of(tokenizer, example), example.row) and len(prompt) + len(answer) <= longest:
            mine.append((i, Encoded(prompt + answer, len(prompt))))
    kept = [encoded for _, encoded in sorted(found for part in gather(mine) for found in part)]
    if not kept:
        raise PollardError(
            f"The original model answered none of {len(asked):,} training prompts of {task.name} rightly within "
            f"{recipe.evaluation.max_new_tokens} new tokens: observe it on the data's own completions "
            "(calibration.self_generated=false), or raise evaluation.max_new_tokens.",
            code="calibration.no-right-answer",
        )
    return kept
