"""Does the data fit the model? Its context length, and the tokens that it has an embedding for, against what the run reads.

Sentences for people where some of it does not fit; a PollardError where the run could only fail.

Does the model's chat template show all that the data says? Asked of every task that a run reads, before it starts.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from transformers import PreTrainedTokenizerBase

from toolkit.moe.tokenizer import ContextLength, context_length, embedding_rows
from toolkit.pipeline.calibration_data import read_source, sources_of
from toolkit.pipeline.context import RunContext
from toolkit.pipeline.rounds import trains
from toolkit.recipe.data import TaskRecipe
from toolkit.recovery.training_data import training_sources
from toolkit.runtime.errors import PollardError
from toolkit.tasks import Encoded, Example, Split, Task, check_rendering, encode, encode_prompt, encode_texts
from toolkit.tasks.token_checks import check_vocabulary, context_fit


def limit_checks(context: RunContext) -> list[Callable[[], list[str]]]:
    """Each returns sentences about its own part, or raises PollardError: where the data has tokens without an embedding, and
    where all of what one stage reads is longer than the model's context."""
    recipe = context.recipe
    checks: list[Callable[[], list[str]]] = [_once(context, "vocabulary", partial(_vocabulary, context))]
    most = context_length(context.config, context.tokenizer)
    if most is None:
        return checks
    if recipe.calibration.max_length > most.tokens:
        checks.append(partial(_calibration, context, most))
    if trains(recipe) and recipe.finetuning.max_length > most.tokens:
        checks.append(partial(_training, context, most))
    return [*checks, partial(_evaluation, context, most)]


def _evaluation(context: RunContext, most: ContextLength) -> list[str]:
    settings = context.recipe.evaluation
    asked = context.task.examples(settings.split)[: settings.examples]
    prompts = [len(encode_prompt(context.tokenizer, example)) for example in asked]
    return prompt_notes(f"{settings.split} prompts", prompts, most, settings.max_new_tokens)


def prompt_notes(what: str, prompts: Sequence[int], context: ContextLength, new_tokens: int) -> list[str]:
    """Of prompts with so many tokens each, behind which at most `new_tokens` are written."""
    fit, notes = context_fit(prompts, context.tokens, new_tokens), []
    if fit.texts and fit.beyond == fit.texts:
        raise PollardError(
            f"All {fit.texts:,} {what} are longer than {context}: the shortest has {min(prompts):,}. Shorten them (task.prompt, "
            "fewer task.shots), or take a model with a longer context.",
            code="data.beyond-context",
        )
    if fit.beyond:
        notes.append(f"{fit.beyond:,} of {fit.texts:,} {what} do not fit {context}: no score says much about their answers.")
    if fit.without_room:
        notes.append(
            f"{fit.without_room:,} of {fit.texts:,} {what} fit {context}, but not with evaluation.max_new_tokens={new_tokens:,} "
            "behind them: a long answer would run over its end."
        )
    return notes


def _calibration(context: RunContext, most: ContextLength) -> list[str]:
    recipe = context.recipe
    sources = [read_source(source, recipe, context.tokenizer, context.data) for source in sources_of(recipe)]
    return _examples("calibration", "calibration", [e for source in sources for e in source.encoded], most)


def _training(context: RunContext, most: ContextLength) -> list[str]:
    recipe, tokenizer = context.recipe, context.tokenizer
    longest, found = recipe.finetuning.max_length, []
    for source in training_sources(recipe):
        if source.text:
            found += encode_texts(tokenizer, context.data.texts(source.text), longest)
        elif not source.self_generated:  # how long those answers will be nobody knows yet
            found += [encode(tokenizer, example) for example in context.data.task(source.task or recipe.task).examples("train")]
    return _examples("finetuning", "training", [e for e in found if len(e.input_ids) <= longest], most)


def _examples(section: str, kind: str, encoded: Sequence[Encoded], context: ContextLength) -> list[str]:
    """Of examples that `max_length` of a section lets through."""
    lengths = [len(e.input_ids) for e in encoded]
    fit = context_fit(lengths, context.tokens)
    if fit.texts and fit.beyond == fit.texts:
        raise PollardError(
            f"All {fit.texts:,} {kind} examples are longer than {context}: the shortest has {min(lengths):,}. Shorten them, or "
            "take a model with a longer context.",
            code="data.beyond-context",
        )
    if not fit.beyond:
        return []
    leave_out = f"{section}.max_length={context.tokens} leaves them out"
    return [f"{fit.beyond:,} of {fit.texts:,} {kind} examples do not fit {context}: {leave_out}."]


def _vocabulary(context: RunContext) -> list[str]:
    note = check_vocabulary(context.tokenizer, embedding_rows(context.config), _texts(context), context.recipe.model.path)
    return [note] if note else []


def _texts(context: RunContext) -> Iterator[tuple[str, list[int]]]:
    """Whatever the run reads, as tokens, and where it comes from."""
    recipe, tokenizer = context.recipe, context.tokenizer
    splits: dict[Split, None] = dict.fromkeys(["train", "dev", recipe.evaluation.split])
    examples: list[Example] = [e for split in splits for e in context.task.examples(split)]
    for source in (*(recipe.calibration.data or ()), *((recipe.finetuning.data or ()) if trains(recipe) else ())):
        if source.text:
            yield from ((source.text, tokenizer(text)["input_ids"]) for text in context.data.texts(source.text))
        elif source.task:
            examples += context.data.task(source.task).examples("train")
    yield from ((example.where, encode(tokenizer, example).input_ids) for example in examples)


def rendering_checks(context: RunContext) -> list[Callable[[], list[str]]]:
    """Each returns sentences about one split of a task, or raises PollardError as `check_rendering` does.

    Raises PollardError where the recipe's own task makes no sense.
    """
    recipe, tokenizer = context.recipe, context.tokenizer
    own: dict[Split, None] = dict.fromkeys(["train", "dev", recipe.evaluation.split])
    sources = [*(recipe.calibration.data or ()), *(recipe.finetuning.data or ())]
    others = {source.task.model_dump_json(): source.task for source in sources if source.task and source.task != recipe.task}
    return [
        *(_once(context, f"rendering of {split}", partial(_notes, tokenizer, context.task, split)) for split in own),
        *(partial(_notes_of, context, other) for other in others.values()),
    ]


def _once(context: RunContext, what: str, check: Callable[[], list[str]]) -> Callable[[], list[str]]:
    """The check, made once for all runs that a run has inside of it: they read the same data."""
    recipe = context.recipe
    data = (recipe.calibration.data or []) + (recipe.finetuning.data or [] if trains(recipe) else [])
    sources = [source.model_dump_json() for source in data]
    key = (what, recipe.model.path, recipe.evaluation.split, recipe.task.model_dump_json(), *sources)
    return lambda: context.once(key, check)


def _notes(tokenizer: PreTrainedTokenizerBase, task: Task, split: Split) -> list[str]:
    return [f"{task.name}, {split}: {note}." for note in check_rendering(tokenizer, task.examples(split))]


def _notes_of(context: RunContext, other: TaskRecipe) -> list[str]:
    return _notes(context.tokenizer, context.data.task(other), "train")
