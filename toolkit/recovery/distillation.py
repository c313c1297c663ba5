"""Learn from the original model's cached logits: a trainer with the distillation loss, and no teacher in memory.

    (1 - a) CE + a t^2 KL( teacher || student ),  both softmaxes at temperature t, over K logits and the rest as one
    + h seam loss,  where layers are gone and the recipe asks for it (seams.py)

Tokens that the student has written itself have no CE: of those only a t^2 KL counts. All sums are divided by the number of all
completion tokens, whoever wrote them.

Hinton et al., arXiv 1503.02531. With only the routers trainable this is router knowledge distillation (arXiv 2603.02217).
Shape legend: N completion tokens, V vocabulary, K cached logits, B sequences, S positions.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch.nn.functional import cross_entropy, kl_div
from torch.utils.checkpoint import checkpoint
from trl import SFTConfig

from toolkit.moe import logits_at
from toolkit.recipe.finetuning import DistillationRecipe
from toolkit.recovery.packing import IGNORED, Batch, PackingCollator
from toolkit.recovery.seam_columns import TeacherStates
from toolkit.recovery.seams import SeamObserver, Seams
from toolkit.recovery.student_answers import JoinedCaches
from toolkit.recovery.token_losses import Part, log_parts, mean_over_step
from toolkit.recovery.top_logits import TOKENS_AT_ONCE, TopAndTail
from toolkit.recovery.trainer import RecoveryTrainer
from toolkit.runtime.errors import PollardError

COLUMNS = ("teacher_index", "teacher_offset", "teacher_tail")
DIVERGENCE_ONLY = "divergence_only"  # the column that says which examples have no cross entropy, where some have none
SEAM_COLUMNS = ("teacher_hidden", "teacher_length")


def check_loss_alone(arguments: SFTConfig, key: str) -> None:
    """Raises PollardError for training arguments that ask for another loss than the one that `key` of the recipe says."""
    others = {
        "label_smoothing_factor": arguments.label_smoothing_factor != 0,
        "loss_type": arguments.loss_type != "nll",
        "router_aux_loss_coef": arguments.router_aux_loss_coef != 0,
    }
    for other in (other for other, is_set in others.items() if is_set):
        raise PollardError(
            f"finetuning.trainer.{other} is for another loss than that of {key}: leave it out, or {key}.",
            code="recovery.other-loss",
        )


def distillation_losses(
    logits_NV: torch.Tensor, target_N: torch.Tensor, teacher: TopAndTail, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross entropy with the targets, and KL(teacher ‖ student) at the temperature, each summed over the N tokens. A target that
    is IGNORED has no cross entropy."""
    logits_NV = logits_NV.float()
    student_NV = logits_NV / temperature
    whole_N1 = student_NV.logsumexp(-1, keepdim=True)
    index_NK = teacher.index_NK.long()
    student_NK = student_NV.gather(-1, index_NK) - whole_N1
    teacher_NK = teacher.offset_NK.float() / temperature
    if index_NK.shape[-1] < logits_NV.shape[-1]:  # else there is no rest
        rest_N1 = student_NV.scatter(-1, index_NK, -math.inf).logsumexp(-1, keepdim=True) - whole_N1
        student_NK = torch.cat([student_NK, rest_N1], -1)
        teacher_NK = torch.cat([teacher_NK, teacher.tail_N.unsqueeze(-1)], -1)
    cross = cross_entropy(logits_NV, target_N, ignore_index=IGNORED, reduction="sum")
    return cross, kl_div(student_NK, teacher_NK.softmax(-1), reduction="sum")


def distillation_losses_in_parts(
    logits_NV: torch.Tensor, target_N: torch.Tensor, teacher: TopAndTail, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """`distillation_losses` with float32 copies [N, V] of a thousand tokens at a time in memory, forward and backward."""
    parts = zip(*(whole.split(TOKENS_AT_ONCE) for whole in (logits_NV, target_N, *teacher)), strict=True)
    sums = [
        checkpoint(distillation_losses, logits, target, TopAndTail(*rows), temperature, use_reentrant=False)
        for logits, target, *rows in parts
    ]
    ce, kl = zip(*sums, strict=True)
    return torch.stack(ce).sum(), torch.stack(kl).sum()


class TeacherCollator:
    """A collator that adds the teacher's logits on the batch's completion tokens, example after example, and `with_states` its
    hidden states at the seams."""

    def __init__(self, collate: Callable[[list[Batch]], Batch], cache: JoinedCaches, with_states: bool = False) -> None:
        self.collate, self.cache, self.with_states = collate, cache, with_states

    def __call__(self, examples: list[Batch]) -> Batch:
        batch = self.collate(examples)
        if isinstance(self.collate, PackingCollator):
            examples = self.collate.in_rows(examples)
        if "example" in examples[0]:  # the dev slice has no teacher
            rows = zip(*(self.cache.rows(example["example"]) for example in examples), strict=True)
            index, offset, tail = map(torch.cat, rows)
            # As bits: DeepSpeed casts every floating point input to its own type
            batch |= zip(COLUMNS, (index, offset.view(torch.int16), tail.view(torch.int32)), strict=True)
            if self.with_states:
                states = zip(*(self.cache.states(example["example"]) for example in examples), strict=True)
                hidden, length = map(torch.cat, states)
                batch |= zip(SEAM_COLUMNS, (hidden.view(torch.int16), length.view(torch.int32)), strict=True)
        if DIVERGENCE_ONLY in examples[0]:
            predicted = [sum(label != IGNORED for label in example["labels"][1:]) for example in examples]
            only = torch.tensor([example[DIVERGENCE_ONLY] for example in examples])
            batch[DIVERGENCE_ONLY] = only.repeat_interleave(torch.tensor(predicted))
        return batch


class DistilledTrainer(RecoveryTrainer):
    """The trainer with the distillation loss; the dev loss stays the cross entropy.

    The training set has a column `example`: its number in the teacher's caches, and may have one `divergence_only`. Logs the
    parts of the loss, `cross_entropy`, `divergence` and, with `seams`, `seam`, each per completion token that it counts.
    """

    def __init__(
        self, *args: Any, cache: JoinedCaches, distillation: DistillationRecipe, seams: Seams | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.args.remove_unused_columns = False  # `example` must reach the collator
        self.distillation = distillation
        self.seams = SeamObserver(self.model, seams, cache.columns) if seams and cache.columns else None
        self.data_collator = TeacherCollator(self.data_collator, cache, with_states=self.seams is not None)

    def compute_loss(
        self,
        model: Any,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        if COLUMNS[0] not in inputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        index, offset, tail = (inputs.pop(name) for name in COLUMNS)
        teacher = TopAndTail(index, offset.view(torch.float16), tail.view(torch.float32))
        labels_BS = inputs.pop("labels")[:, 1:]
        counted_BS = labels_BS != IGNORED
        target_N = labels_BS[counted_BS]
        if (divergence_only_N := inputs.pop(DIVERGENCE_ONLY, None)) is not None:
            target_N = target_N.masked_fill(divergence_only_N, IGNORED)
        seam_columns = [inputs.pop(name) for name in SEAM_COLUMNS] if self.seams else []
        states: dict[int, torch.Tensor] = {}
        with self.seams.watching(counted_BS, states) if self.seams else nullcontext():
            logits_NV = logits_at(model, inputs, counted_BS)
        weight, temperature = self.distillation.weight, self.distillation.temperature
        cross, divergence = distillation_losses_in_parts(logits_NV, target_N, teacher, temperature)
        counted = counted_BS.sum()
        loss = (1 - weight) * cross + weight * temperature**2 * divergence
        parts = {"cross_entropy": Part(cross, (target_N != IGNORED).sum()), "divergence": Part(divergence, counted)}
        if self.seams:
            hidden, length = seam_columns
            teacher_states = TeacherStates(hidden.view(torch.bfloat16), length.view(torch.float32))
            parts["seam"] = Part(self.seams.loss(states, teacher_states), counted)
            loss = loss + self.distillation.hidden * parts["seam"].total
        log_parts(self, parts, inputs)
        return mean_over_step(self, Part(loss, counted), num_items_in_batch)
