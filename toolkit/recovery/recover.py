"""Fine-tune the pruned checkpoint (or, as control, the original) on the task's training split: TRL under DeepSpeed."""

import gc
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, TypedDict

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from trl import SFTConfig

from toolkit.cuts.plan import Plan
from toolkit.moe import load_tokenizer
from toolkit.moe.tokenizer import longer_than_context
from toolkit.recipe.roles import Role
from toolkit.recipe.schema import Recipe
from toolkit.recovery.checkpoints import last_checkpoint, resume_advice
from toolkit.recovery.distillation import DIVERGENCE_ONLY, DistilledTrainer
from toolkit.recovery.method import Training, training_of
from toolkit.recovery.methods import METHODS, trainable_model
from toolkit.recovery.own_loss import OwnLoss, OwnLossTrainer
from toolkit.recovery.packing import IGNORED, padding_shares
from toolkit.recovery.seams import Seams, seams_of
from toolkit.recovery.settings import sft_config
from toolkit.recovery.student_answers import JoinedCaches, MixedData, mixed_data, read_student_answers
from toolkit.recovery.teacher import TeacherCache
from toolkit.recovery.trackers import close_trackers, tensorboard_in
from toolkit.recovery.trainer import RecoveryTrainer, prepare_trainer
from toolkit.recovery.training_data import read_training_data
from toolkit.recovery.zeros import hold_zeros
from toolkit.runtime.distributed import on_main, say
from toolkit.runtime.errors import PollardError
from toolkit.runtime.files import explain_full_disk, fingerprint_of, fingerprint_of_source
from toolkit.runtime.own_function import function_identity
from toolkit.runtime.run_paths import RunPaths
from toolkit.runtime.signed_folders import check_target, remove_own
from toolkit.runtime.zero import start_deepspeed
from toolkit.tasks import DataCache, Encoded, encode_all


class RecoveryFacts(TypedDict):
    """What happened in a training."""

    steps: int
    selected_step: int  # whose checkpoint became the result
    examples: int
    left_out: int  # longer than finetuning.max_length
    beyond_context: int  # longer than the model's context
    overlapping: int  # left out: they overlap with held-out questions
    repeating: int  # kept although they repeat a held-out question
    bad_lines: int
    first_loss: float | None
    last_loss: float | None


def recover(
    recipe: Recipe,
    root: str = "runs",
    role: Role | Literal["recovered", "control"] = Role.RECOVERED,
    fingerprint: str | None = None,
    accuracy: Callable[[PreTrainedModel], float] | None = None,
    cache: DataCache | None = None,
    student_round: int | None = None,
) -> RecoveryFacts:
    """Trains `pruned/` of the recipe's run directory into `recovered/` (role control: the original into `control/`). Call it
    on every rank, under the launcher. Resumes from the last checkpoint of a training with the same `fingerprint`.

    `accuracy` measures a model on the dev slice, on every rank: what `select_by: dev_accuracy` selects by. `cache` may hold
    data that has been read already. With `finetuning.teacher` the teacher's cache must lie in the run directory, with
    `distillation.hidden` the plan, and with `self_generated` the answers (the pipeline makes them); `student_round` says which
    training on the student's own answers this is, of several (default: the last). The loss counts completion tokens only. Writes
    training_log.jsonl beside the checkpoint.

    Raises PollardError for settings that SFTConfig refuses, a `finetuning.loss` that fails, a disk without room, beforehand or
    at work, checkpoints of another number of ranks, a loss that is not finite, and a checkpoint that is not complete.
    """
    start_deepspeed()
    cache = cache or DataCache()
    run = RunPaths(recipe.name, root)
    training = training_of(recipe, run, Role(role), student_round)
    for folder in (training.target, training.adapter):
        on_main(lambda folder=folder: check_target(folder, overwrite=True))  # type: ignore[misc]
    if recipe.finetuning.select_by == "dev_accuracy" and accuracy is None:
        raise PollardError(
            "finetuning.select_by is dev_accuracy: give recover() a function of the model that measures it.",
            code="recovery.no-accuracy",
        )
    fingerprint = fingerprint or _fingerprint(recipe, training)
    resumable = last_checkpoint(training.checkpoints, fingerprint)
    set_seed(recipe.seed)
    # Before the model: under ZeRO-3 the existence of these makes loading partition it
    arguments = sft_config(recipe, training.checkpoints)
    if "run_name" not in recipe.finetuning.trainer:
        arguments.run_name = str(training.target)  # for trackers: one run per training, also of rounds and the control
    try:
        tokenizer = load_tokenizer(training.source, training.revision)
        data = read_training_data(recipe, tokenizer, run.answers, cache)
        own = run.student_round(student_round or recipe.finetuning.student_rounds)
        written = [] if role == Role.CONTROL else read_student_answers(recipe, own.answers)
        mixed = mixed_data(recipe, data, written)
        train_data = Dataset.from_list(_rows(mixed))
        dev_data = _dev_data(recipe, arguments, tokenizer, cache)
        if recipe.finetuning.packing:
            shares = padding_shares([len(row.encoded.input_ids) for row in mixed.rows], arguments.per_device_train_batch_size)
            say(f"  packed: about {shares.packed:.0%} of what is computed is padding, instead of {shares.padded:.0%}")
        model = trainable_model(recipe, arguments, training.source, training.revision)
        zeros = hold_zeros(recipe, METHODS[recipe.finetuning.method], model, training.source)
        seams = seams_of(Plan.load(run.plan)) if recipe.finetuning.distillation.hidden and role != Role.CONTROL else None
        make_trainer = _trainer_class(recipe, model, [(run.teacher, data.encoded), (own.teacher, written)], seams)
        with tensorboard_in(run.path / "tensorboard" / training.checkpoints.name):
            trainer = make_trainer(model, arguments, train_dataset=train_data, eval_dataset=dev_data, processing_class=tokenizer)
        checkpoint = prepare_trainer(trainer, recipe, training, fingerprint, resumable, accuracy)
        with explain_full_disk(run.path, lambda: resume_advice(training.checkpoints)):  # also what trackers write
            trainer.train(resume_from_checkpoint=checkpoint)
        if zeros:
            zeros.check(model)
        on_main(lambda: remove_own(training.adapter))  # of another method
        with explain_full_disk(training.target, lambda: resume_advice(training.checkpoints)):
            METHODS[recipe.finetuning.method].save(recipe, trainer, model, training)
        lengths = (len(row.encoded.input_ids) for row in mixed.rows)
        return _facts(recipe, trainer, mixed, longer_than_context(model.config, tokenizer, lengths))
    finally:
        close_trackers(arguments)
        unset_hf_deepspeed_config()  # or the next model to be loaded would be partitioned too
        trainer = model = None  # type: ignore[assignment]
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _facts(recipe: Recipe, trainer: RecoveryTrainer, mixed: MixedData, beyond_context: int) -> RecoveryFacts:
    data = mixed.shared
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    selected = trainer.state.best_global_step if recipe.finetuning.select_by != "last" else None
    return RecoveryFacts(
        steps=trainer.state.global_step,
        selected_step=selected or trainer.state.global_step,
        examples=len(mixed.numbers),
        left_out=data.left_out,
        beyond_context=beyond_context,
        overlapping=data.overlapping,
        repeating=data.repeating,
        bad_lines=data.bad_lines,
        first_loss=losses[0] if losses else None,
        last_loss=losses[-1] if losses else None,
    )


def _fingerprint(recipe: Recipe, training: Training) -> str:
    """Of everything that decides the training, for a call without the pipeline."""
    settings = recipe.finetuning.model_dump(), recipe.task.model_dump(), recipe.seed, recipe.model.dtype
    return fingerprint_of(fingerprint_of_source(training.source), *settings, *function_identity(recipe.finetuning.loss))


def _trainer_class(
    recipe: Recipe, model: PreTrainedModel, cached: Sequence[tuple[Path, Sequence[Encoded]]], seams: Seams | None
) -> Callable[..., RecoveryTrainer]:
    """RecoveryTrainer, OwnLossTrainer where the recipe names a loss, or with a teacher DistilledTrainer on the teacher's caches,
    which must exist: `cached` are their folders and what they hold, where it is anything. The control, which has all layers, has
    no seams."""
    settings = recipe.finetuning
    if settings.loss:
        say(f"  the loss is {settings.loss}")
        return partial(OwnLossTrainer, own_loss=OwnLoss(settings.loss), packing=settings.packing)
    if settings.teacher is None:
        return partial(RecoveryTrainer, packing=settings.packing)
    vocabulary = int(model.config.get_text_config().vocab_size)
    some = [(folder, encoded) for folder, encoded in cached if encoded]
    caches = [TeacherCache(folder, encoded, settings.distillation.temperature, vocabulary, seams) for folder, encoded in some]
    joined = JoinedCaches(caches, [len(encoded) for _, encoded in some])
    learn = settings.distillation
    return partial(DistilledTrainer, cache=joined, distillation=learn, seams=seams, packing=settings.packing)


def _dev_data(recipe: Recipe, arguments: SFTConfig, tokenizer: PreTrainedTokenizerBase, cache: DataCache) -> Dataset | None:
    """The dev slice, for the dev loss; where there is none, nothing is measured."""
    examples, longest = cache.task(recipe.task).examples("dev"), recipe.finetuning.max_length
    if not examples:
        arguments.eval_strategy = "no"
    if arguments.eval_strategy == "no":
        return None
    encoded, too_long = encode_all(tokenizer, examples, longest, "finetuning.max_length")
    say(f"  {len(encoded):,} dev examples" + f"; {too_long:,} longer than {longest} tokens left out" * bool(too_long))
    return Dataset.from_list([_row(e) for e in encoded])


def _rows(mixed: MixedData) -> list[dict[str, object]]:
    """Of the training set. The column for examples without cross entropy is there where the student has written some."""
    only = [{DIVERGENCE_ONLY: row.divergence_only} if mixed.student else {} for row in mixed.rows]
    return [{"example": row.example, **_row(row.encoded), **more} for row, more in zip(mixed.rows, only, strict=True)]


def _row(encoded: Encoded) -> dict[str, list[int]]:
    counts = zip(encoded.input_ids, encoded.completion_mask, strict=True)
    return {"input_ids": encoded.input_ids, "labels": [token if counted else IGNORED for token, counted in counts]}
