"""The stages in which the original model teaches: it writes training data, and says what it thinks of every token."""

from typing import Any, NamedTuple

from transformers import PreTrainedModel

from toolkit.moe import load_tokenizer
from toolkit.moe.placement import with_model
from toolkit.pipeline.run_directory import RunDirectory
from toolkit.pipeline.stages.calibration_data import identity_of_sources
from toolkit.pipeline.stages.own_answers import draw_answers
from toolkit.recipe.schema import Recipe
from toolkit.recovery.teacher import cache_logits
from toolkit.recovery.training_data import read_training_data, training_sources
from toolkit.runtime.distributed import say
from toolkit.runtime.files import fingerprint_of

EACH_ITS_OWN = "every rank asks the original about examples of its own"  # so a model in parts on all ranks cannot serve


class Taught(NamedTuple):
    """Fingerprints of what recovery learns from; None for a stage that the recipe does not need."""

    data: str
    answers: str | None
    teacher: str | None


def fingerprints(recipe: Recipe, model: str, train_data: str, test_data: Any) -> Taught:
    """From those of the original model and of the task's own two files."""
    finetuning, mix = recipe.finetuning, training_sources(recipe)
    # A mix leaves out what overlaps with the test set, so that belongs to it, too
    others = [identity_of_sources(recipe, mix), test_data] if finetuning.data else []
    data = fingerprint_of(train_data, others, finetuning.max_length, finetuning.examples, recipe.seed)
    answers = teacher = None
    if any(source.self_generated for source in mix):
        answers = fingerprint_of(model, data, recipe.evaluation.max_new_tokens, recipe.model.dtype)
    if finetuning.teacher:
        teacher = fingerprint_of(model, data, answers, finetuning.distillation.temperature)
    return Taught(data, answers, teacher)


def answers_stage(recipe: Recipe, run: RunDirectory, fingerprint: str) -> dict[str, Any]:
    """Training prompts -> the original model's own right answers."""
    tokenizer = load_tokenizer(recipe.model.path, recipe.model.revision)

    def answer(model: PreTrainedModel) -> dict[str, Any]:
        return draw_answers(model, tokenizer, recipe, run.answers, fingerprint)

    return with_model(recipe, recipe.model.path, recipe.model.revision, answer, EACH_ITS_OWN)


def teacher_stage(recipe: Recipe, run: RunDirectory, fingerprint: str) -> dict[str, Any]:
    """Training data -> the original model's logits on its completion tokens."""
    tokenizer = load_tokenizer(recipe.model.path, recipe.model.revision)
    training = read_training_data(recipe, tokenizer, run.answers)
    temperature, batch_size = recipe.finetuning.distillation.temperature, recipe.calibration.batch_size

    def ask(model: PreTrainedModel) -> dict[str, Any]:
        pad = int(tokenizer.pad_token_id)
        return cache_logits(model, training.encoded, run.teacher, temperature, batch_size, pad, fingerprint)._asdict()

    facts = with_model(recipe, recipe.model.path, recipe.model.revision, ask, EACH_ITS_OWN)
    say(f"  {facts['tokens']:,} tokens of {facts['examples']:,} examples in {run.teacher}")
    return facts
