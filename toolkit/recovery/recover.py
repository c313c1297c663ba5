"""Fine-tune the pruned checkpoint on the task's training split: TRL's SFTTrainer under DeepSpeed, on every rank."""

import gc
import json
import random
import shutil
import time
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, set_seed
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.trainer_callback import PrinterCallback
from trl import SFTTrainer

from toolkit.distributed import is_main, on_main, say
from toolkit.errors import PollardError
from toolkit.files import whole_folder, write_text
from toolkit.moe import copy_companions, load_tokenizer, tensor_shapes, write_checkpoint
from toolkit.recipe import Recipe
from toolkit.recovery.extension import build_communication
from toolkit.recovery.methods import ADAPTED, trainable_model
from toolkit.recovery.settings import sft_config
from toolkit.run_directory import RunDirectory
from toolkit.tasks import Encoded, Example, Task, encode_all

IGNORED = -100  # the label that does not count in the loss


def recover(recipe: Recipe, root: str = "runs") -> dict[str, Any]:
    """Trains `pruned/` of the recipe's run directory into `recovered/`; call it on every rank, under the launcher.

    Returns what happened: steps, examples, how many were left out for their length, first and last loss. The loss counts
    completion tokens only. Writes training_log.jsonl beside the checkpoint. Raises PollardError for settings that
    SFTConfig refuses, a machine without a compiler, and a checkpoint that did not come out whole.
    """
    build_communication()
    run = RunDirectory(recipe.name, root)
    set_seed(recipe.seed)
    arguments = sft_config(recipe, run.checkpoints)  # first: under ZeRO-3 its existence makes loading partition the model
    try:
        task, tokenizer = Task(recipe.task), load_tokenizer(str(run.pruned))
        examples = task.examples("train")
        if recipe.finetuning.examples is not None:
            examples = random.Random(recipe.seed).sample(examples, min(recipe.finetuning.examples, len(examples)))
        train_data, too_long = _dataset("train", tokenizer, examples, recipe.finetuning.max_length)
        dev_data = None
        if not task.examples("dev"):
            arguments.eval_strategy = "no"
        if arguments.eval_strategy != "no":
            dev_data, _ = _dataset("dev", tokenizer, task.examples("dev"), recipe.finetuning.max_length)
        model = trainable_model(recipe, arguments, str(run.pruned))
        trainer = SFTTrainer(model, arguments, train_dataset=train_data, eval_dataset=dev_data, processing_class=tokenizer)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(ProgressLines())
        trainer.train()
        on_main(lambda: shutil.rmtree(run.adapter, ignore_errors=True))  # of another method
        if recipe.finetuning.method in ADAPTED:
            from toolkit.recovery.adapters import save_merged

            save_merged(recipe, arguments, model, str(run.pruned), run.recovered, run.adapter)
            on_main(lambda: shutil.rmtree(run.checkpoints, ignore_errors=True))
        else:
            _save(trainer, model, run)
        history = trainer.state.log_history
        on_main(lambda: write_text(run.training_log, "".join(json.dumps(entry) + "\n" for entry in history)))
        losses = [entry["loss"] for entry in history if "loss" in entry]
        return {
            "steps": trainer.state.global_step,
            "examples": len(train_data),
            "left_out": too_long,
            "first_loss": losses[0] if losses else None,
            "last_loss": losses[-1] if losses else None,
        }
    finally:
        unset_hf_deepspeed_config()  # or the next model to be loaded would be partitioned too
        trainer = model = None  # type: ignore[assignment]
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _dataset(split: str, tokenizer: PreTrainedTokenizerBase, examples: list[Example], max_length: int) -> tuple[Dataset, int]:
    encoded, too_long = encode_all(tokenizer, examples, max_length)
    say(f"  {len(encoded):,} {split} examples" + f"; {too_long:,} longer than {max_length} tokens left out" * bool(too_long))
    rows = [{"input_ids": e.input_ids, "labels": _labels(e)} for e in encoded]
    return Dataset.from_list(rows), too_long


def _labels(encoded: Encoded) -> list[int]:
    return [token if counts else IGNORED for token, counts in zip(encoded.input_ids, encoded.completion_mask, strict=True)]


def _save(trainer: SFTTrainer, model: PreTrainedModel, run: RunDirectory) -> None:
    """A stock checkpoint under every ZeRO stage, with the pruned model's own configuration, checked before it is named."""
    for key, value in _pruned_config(run).items():  # TRL switches the balancing loss off in the model's configuration
        setattr(model.config.get_text_config(), key, value)
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)  # every rank takes part: ZeRO-3 gathers here

    def write() -> None:
        tied = getattr(model, "all_tied_weights_keys", {})  # stored once, as in every stock checkpoint
        with whole_folder(run.recovered) as folder:
            write_checkpoint(model, folder, {name: tensor for name, tensor in weights.items() if name not in tied})
            copy_companions(str(run.pruned), folder)
            if tensor_shapes(folder) != tensor_shapes(run.pruned):
                raise PollardError(
                    "The recovered checkpoint lacks tensors of the pruned one. "
                    "Is `stage3_gather_16bit_weights_on_model_save` set in the DeepSpeed configuration?"
                )
        shutil.rmtree(run.checkpoints, ignore_errors=True)

    on_main(write)


def _pruned_config(run: RunDirectory) -> dict[str, Any]:
    config = json.loads((run.pruned / "config.json").read_text())
    return {key: config[key] for key in ("router_aux_loss_coef", "output_router_logits") if key in config}


class ProgressLines(TrainerCallback):
    """One line per logged step: where it stands, what the loss is, how long it will take."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.started = time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        logs = logs or {}
        name = "loss" if "loss" in logs else "eval_loss"
        if name not in logs or not is_main():
            return
        per_step = (time.monotonic() - self.started) / max(state.global_step, 1)
        left = per_step * (state.max_steps - state.global_step)
        label = "loss" if name == "loss" else "dev loss"
        step = f"step {state.global_step:>5}/{state.max_steps}"
        say(f"  {step}  {label} {logs[name]:.4f}  {per_step:.2f} s/step, {left / 60:.1f} min left")
