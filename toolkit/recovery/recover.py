"""Fine-tune the pruned checkpoint (or, as control, the original) on the task's training split: TRL under DeepSpeed."""

import gc
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from trl import SFTTrainer

from toolkit.cuts.checkpoint import check_whole, complete_checkpoint, write_checkpoint
from toolkit.moe import checkpoint_folder, is_partitioned, load_tokenizer, write_partitioned
from toolkit.moe.tokenizer import longer_than_context
from toolkit.pipeline.run_directory import RunDirectory
from toolkit.recipe.schema import Recipe
from toolkit.recovery.checkpoints import kept, last_checkpoint
from toolkit.recovery.distillation import IGNORED, DistilledTrainer
from toolkit.recovery.methods import ADAPTED, trainable_model
from toolkit.recovery.roles import TrainedRole, Training, training_of
from toolkit.recovery.settings import sft_config
from toolkit.recovery.teacher import TeacherCache
from toolkit.recovery.trainer import RecoveryTrainer, close_trackers, prepare, tensorboard_in
from toolkit.recovery.training_data import TrainingData, read_training_data
from toolkit.runtime.distributed import is_main, on_main, say
from toolkit.runtime.errors import PollardError
from toolkit.runtime.files import explain_full_disk, fingerprint_of, fingerprint_of_source
from toolkit.runtime.signed_folders import check_target, remove_own, whole_folder
from toolkit.runtime.zero import build_communication
from toolkit.tasks import Encoded, Example, Task, encode_all


def recover(
    recipe: Recipe,
    root: str = "runs",
    role: TrainedRole = "recovered",
    fingerprint: str | None = None,
    accuracy: Callable[[PreTrainedModel], float] | None = None,
) -> dict[str, Any]:
    """Trains `pruned/` of the recipe's run directory into `recovered/` (role control: the original into `control/`); call it
    on every rank, under the launcher. Goes on from the last checkpoint of a training with the same `fingerprint`.

    `accuracy` measures a model on the dev slice, on every rank: what `select_by: dev_accuracy` selects by.
    With `finetuning.teacher`, the teacher's cache must lie in the run directory, and with own answers those (the pipeline
    makes both). Returns what happened: steps, examples, how many were left out and why, first and last loss, the step whose
    checkpoint became the result. The loss counts completion tokens only. Writes training_log.jsonl beside the checkpoint.
    Raises PollardError for settings that SFTConfig refuses, a machine without a compiler, a disk without room, beforehand or
    at work, checkpoints of another number of ranks, a loss that is no number, and a checkpoint that did not come out whole.
    """
    build_communication()
    run = RunDirectory(recipe.name, root)
    training = training_of(recipe, run, role)
    for folder in (training.target, training.adapter):
        on_main(lambda folder=folder: check_target(folder, overwrite=True))  # type: ignore[misc]
    if recipe.finetuning.select_by == "dev_accuracy" and accuracy is None:
        raise PollardError("finetuning.select_by is dev_accuracy: give recover() a function of the model that measures it.")
    fingerprint = fingerprint or _identity(recipe, training)
    begun = last_checkpoint(training.checkpoints, fingerprint)
    set_seed(recipe.seed)
    # Before the model: under ZeRO-3 the existence of these makes loading partition it
    arguments = sft_config(recipe, training.checkpoints)
    if "run_name" not in recipe.finetuning.trainer:
        arguments.run_name = str(training.target)  # for trackers: one run per training, also of rounds and the control
    try:
        task, tokenizer = Task(recipe.task), load_tokenizer(training.source, training.revision)
        learnt = read_training_data(recipe, tokenizer, run.answers)
        train_data = Dataset.from_list([{"example": i, **_row(e)} for i, e in enumerate(learnt.encoded)])
        dev_data = None
        if not task.examples("dev"):
            arguments.eval_strategy = "no"
        if arguments.eval_strategy != "no":
            dev_data, _ = _dataset("dev", tokenizer, task.examples("dev"), recipe.finetuning.max_length)
        model = trainable_model(recipe, arguments, training.source, training.revision)
        make_trainer = _trainer_class(recipe, model, run, learnt)
        with tensorboard_in(run.path / "tensorboard" / role):
            trainer = make_trainer(model, arguments, train_dataset=train_data, eval_dataset=dev_data, processing_class=tokenizer)
        continued = prepare(trainer, recipe, training, fingerprint, begun, accuracy)
        with explain_full_disk(run.path, lambda: kept(training.checkpoints)):  # what trackers write, too
            trainer.train(resume_from_checkpoint=continued)
        on_main(lambda: remove_own(training.adapter))  # of another method
        with explain_full_disk(training.target, lambda: kept(training.checkpoints)):
            _save(recipe, trainer, model, training)
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        chosen = trainer.state.best_global_step if recipe.finetuning.select_by != "last" else None
        return {
            "steps": trainer.state.global_step,
            "selected_step": chosen or trainer.state.global_step,
            "examples": len(train_data),
            "left_out": learnt.left_out,
            "beyond_context": longer_than_context(model.config, tokenizer, (len(e.input_ids) for e in learnt.encoded)),
            "overlapping": learnt.overlapping,
            "repeating": learnt.repeating,
            "bad_lines": learnt.bad_lines,
            "first_loss": losses[0] if losses else None,
            "last_loss": losses[-1] if losses else None,
        }
    finally:
        close_trackers(arguments)
        unset_hf_deepspeed_config()  # or the next model to be loaded would be partitioned too
        trainer = model = None  # type: ignore[assignment]
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _identity(recipe: Recipe, training: Training) -> str:
    """For a call by hand: what decides the training."""
    how = recipe.finetuning.model_dump(), recipe.task.model_dump(), recipe.seed, recipe.model.dtype
    return fingerprint_of(fingerprint_of_source(training.source), *how)


def _trainer_class(
    recipe: Recipe, model: PreTrainedModel, run: RunDirectory, learnt: TrainingData
) -> Callable[..., RecoveryTrainer]:
    """The trainer, or the one that learns from the teacher's cache, which must be there."""
    settings = recipe.finetuning
    if settings.teacher is None:
        return RecoveryTrainer
    vocabulary = int(model.config.get_text_config().vocab_size)
    cache = TeacherCache(run.teacher, learnt.encoded, settings.distillation.temperature, vocabulary)
    return partial(DistilledTrainer, cache=cache, distillation=settings.distillation)


def _dataset(split: str, tokenizer: PreTrainedTokenizerBase, examples: list[Example], max_length: int) -> tuple[Dataset, int]:
    encoded, too_long = encode_all(tokenizer, examples, max_length, "finetuning.max_length")
    say(f"  {len(encoded):,} {split} examples" + f"; {too_long:,} longer than {max_length} tokens left out" * bool(too_long))
    return Dataset.from_list([_row(e) for e in encoded]), too_long


def _row(encoded: Encoded) -> dict[str, list[int]]:
    counts = zip(encoded.input_ids, encoded.completion_mask, strict=True)
    return {"input_ids": encoded.input_ids, "labels": [token if counted else IGNORED for token, counted in counts]}


def _save(recipe: Recipe, trainer: SFTTrainer, model: Any, training: Training) -> None:
    """A stock checkpoint under every ZeRO stage, with the configuration of the model it began as, checked before it is named."""
    if recipe.finetuning.method in ADAPTED:
        from toolkit.recovery.adapters import save_merged

        save_merged(recipe, trainer.args, model, training)
        return
    needed = sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in model.parameters())  # tied ones once
    if is_partitioned(model):
        with whole_folder(training.target, training.facts) if is_main() else nullcontext(training.target) as folder:
            write_partitioned(model, folder)
            unset_hf_deepspeed_config()  # or ZeRO-3 would partition what is opened to look at it
            on_main(lambda: _complete(model, folder, training, needed))
        return
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)

    def write() -> None:
        tied = getattr(model, "all_tied_weights_keys", {})  # stored once, as in every stock checkpoint
        with whole_folder(training.target, training.facts) as folder:
            write_checkpoint(model, folder, {name: tensor for name, tensor in weights.items() if name not in tied})
            _complete(model, folder, training, needed)

    on_main(write)


def _complete(model: PreTrainedModel, folder: Path, training: Training, needed: int) -> None:
    """All of the checkpoint it began as but the weights."""
    check_whole(folder, needed)
    model.config.architectures = [type(model).__name__]  # as save_pretrained says
    complete_checkpoint(checkpoint_folder(training.source, training.revision), folder, model.config, model.dtype)
