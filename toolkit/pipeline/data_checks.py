"""Does the data fit the model? Its context length, and the tokens that it has an embedding for, against what the run reads.

Sentences for people where some of it does not fit; a PollardError where the run could only fail.

Does the model's chat template show all that the data says? Asked of every task that a run reads, before it starts.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerBase

from toolkit.moe.tokenizer import ContextLength, context_length, embedding_rows
from toolkit.pipeline.stages.calibration_data import read_source, sources_of
from toolkit.recipe.data import TaskRecipe
from toolkit.recipe.schema import Recipe
from toolkit.recovery.training_data import training_sources
from toolkit.runtime.errors import PollardError
from toolkit.tasks import Encoded, Example, Split, Task, check_rendering, encode, encode_prompt, encode_texts, read_texts
from toolkit.tasks.token_checks import check_vocabulary, context_fit


def limit_checks(recipe: Recipe, config: Any, tokenizer: PreTrainedTokenizerBase) -> list[Callable[[], list[str]]]:
    """Each returns sentences about its own part, or raises PollardError: where the data has tokens without an embedding, and
    where all of what one stage reads is longer than the model's context."""
    checks: list[Callable[[], list[str]]] = [partial(_vocabulary, recipe, config, tokenizer)]
    context = context_length(config, tokenizer)
    if context is None:
        return checks
    if recipe.calibration.max_length > context.tokens:
        checks.append(partial(_calibration, recipe, tokenizer, context))
    if trains(recipe) and recipe.finetuning.max_length > context.tokens:
        checks.append(partial(_training, recipe, tokenizer, context))
    return [*checks, partial(_evaluation, recipe, tokenizer, context)]


def _evaluation(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, context: ContextLength) -> list[str]:
    settings = recipe.evaluation
    asked = Task(recipe.task).examples(settings.split)[: settings.examples]
    prompts = [len(encode_prompt(tokenizer, example)) for example in asked]
    return prompt_notes(f"{settings.split} prompts", prompts, context, settings.max_new_tokens)


def prompt_notes(what: str, prompts: Sequence[int], context: ContextLength, new_tokens: int) -> list[str]:
    """Of prompts with so many tokens each, behind which at most `new_tokens` are written."""
    fit, notes = context_fit(prompts, context.tokens, new_tokens), []
    if fit.texts and fit.beyond == fit.texts:
        raise PollardError(
            f"All {fit.texts:,} {what} are longer than {context}: the shortest has {min(prompts):,}. Shorten them (task.prompt, "
            "fewer task.shots), or take a model with a longer context."
        )
    if fit.beyond:
        notes.append(f"{fit.beyond:,} of {fit.texts:,} {what} do not fit {context}: no score says much about their answers.")
    if fit.without_room:
        notes.append(
            f"{fit.without_room:,} of {fit.texts:,} {what} fit {context}, but not with evaluation.max_new_tokens={new_tokens:,} "
            "behind them: a long answer would run over its end."
        )
    return notes


def _calibration(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, context: ContextLength) -> list[str]:
    watched = [e for source in sources_of(recipe) for e in read_source(source, recipe, tokenizer).encoded]
    return _examples("calibration", "calibration", watched, context)


def _training(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, context: ContextLength) -> list[str]:
    longest, found = recipe.finetuning.max_length, []
    for source in training_sources(recipe):
        if source.text:
            found += encode_texts(tokenizer, read_texts(source.text), longest)
        elif not source.self_generated:  # how long those answers will be nobody knows yet
            found += [encode(tokenizer, example) for example in Task(source.task or recipe.task).examples("train")]
    return _examples("finetuning", "training", [e for e in found if len(e.input_ids) <= longest], context)


def _examples(section: str, kind: str, encoded: Sequence[Encoded], context: ContextLength) -> list[str]:
    """Of examples that `max_length` of a section lets through."""
    lengths = [len(e.input_ids) for e in encoded]
    fit = context_fit(lengths, context.tokens)
    if fit.texts and fit.beyond == fit.texts:
        raise PollardError(
            f"All {fit.texts:,} {kind} examples are longer than {context}: the shortest has {min(lengths):,}. Shorten them, or "
            "take a model with a longer context."
        )
    if not fit.beyond:
        return []
    leave_out = f"{section}.max_length={context.tokens} leaves them out"
    return [f"{fit.beyond:,} of {fit.texts:,} {kind} examples do not fit {context}: {leave_out}."]


def _vocabulary(recipe: Recipe, config: Any, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    note = check_vocabulary(tokenizer, embedding_rows(config), _texts(recipe, tokenizer), recipe.model.path)
    return [note] if note else []


def _texts(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[str, list[int]]]:
    """Whatever the run reads, as tokens, and where it comes from."""
    splits: dict[Split, None] = dict.fromkeys(["train", "dev", recipe.evaluation.split])
    examples: list[Example] = [e for split in splits for e in Task(recipe.task).examples(split)]
    for source in (*(recipe.calibration.data or ()), *((recipe.finetuning.data or ()) if trains(recipe) else ())):
        if source.text:
            yield from ((source.text, tokenizer(text)["input_ids"]) for text in read_texts(source.text))
        elif source.task:
            examples += Task(source.task).examples("train")
    yield from ((example.where, encode(tokenizer, example).input_ids) for example in examples)


def trains(recipe: Recipe) -> bool:
    """Whether the recipe fine-tunes anything."""
    return "recovered" in recipe.evaluation.models or recipe.control or bool(recipe.pruning.schedule)


def rendering_checks(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> list[Callable[[], list[str]]]:
    """Each returns sentences about one split of a task, or raises PollardError as `check_rendering` does.

    Raises PollardError where the recipe's own task makes no sense.
    """
    task = Task(recipe.task)  # one for all its splits: its files are read once
    own: dict[Split, None] = dict.fromkeys(["train", "dev", recipe.evaluation.split])
    others = [*(recipe.calibration.data or ()), *(recipe.finetuning.data or ())]
    tasks = {source.task.model_dump_json(): source.task for source in others if source.task and source.task != recipe.task}
    return [
        *(partial(_notes, tokenizer, task, split) for split in own),
        *(partial(_notes_of, tokenizer, other) for other in tasks.values()),
    ]


def _notes(tokenizer: PreTrainedTokenizerBase, task: Task, split: Split) -> list[str]:
    return [f"{task.name}, {split}: {note}." for note in check_rendering(tokenizer, task.examples(split))]


def _notes_of(tokenizer: PreTrainedTokenizerBase, other: TaskRecipe) -> list[str]:
    return _notes(tokenizer, Task(other), "train")
