"""Seam loss: where layers are gone, the hidden states of the student are to be those of the original.

    the original's layers   0  1  2  3  4  5  6       kept: 0 1 4 5
    the student's           0  1        2  3          behind layer 1 a gap, and one at the end
                                      ▲        ▲
    compared                what layer 2 reads with what layer 4 of the original reads; what the last layer of each hands on

    mean over completion tokens and seams of  (1 - cos(s, t)) + (|s| / |t| - 1)^2        s of the student, t of the original

SLMRec, arXiv 2405.17890. The original's states lie in the teacher's cache (seam_columns.py). Where they are projections
there, the cosine is that of the projections; the lengths are those of the whole states.

Shape legend: B sequences, S positions, N completion tokens (each at the position that predicts it), H hidden size, D numbers
of a state in the cache: H, or 64.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.functional import cosine_similarity
from torch.utils.checkpoint import checkpoint

from toolkit.cuts.layers import LayersCut
from toolkit.cuts.plan import Plan
from toolkit.moe import hidden_states_of
from toolkit.recovery.seam_columns import SeamColumns, TeacherStates
from toolkit.runtime.errors import PollardError

TOKENS_AT_ONCE = 1024  # float32 copies of [tokens, H] are made of so many at a time


class Seam(NamedTuple):
    """A layer behind a gap, by its numbers in both models; the number of all layers stands for what the last one hands on."""

    student: int
    original: int


@dataclass(frozen=True)
class Seams:
    """Where layers are missing. `path`: of the list of decoder layers, by its name in `named_modules()`, in both models."""

    path: str
    layers: int  # of the original
    kept: tuple[int, ...]

    @property
    def places(self) -> list[Seam]:
        """A seam wherever the number jumps."""
        ends = [*self.kept, self.layers]
        return [Seam(number, after) for number, after in enumerate(ends) if after != (ends[number - 1] + 1 if number else 0)]

    @property
    def of_original(self) -> tuple[int, ...]:
        return tuple(seam.original for seam in self.places)

    @property
    def of_student(self) -> tuple[int, ...]:
        return tuple(seam.student for seam in self.places)

    def check_student(self, model: Any) -> None:
        """Raises PollardError where `model` is not what the plan leaves, or could not learn anything at its seams."""
        there = len(_layers(model, self.path))
        if there != len(self.kept):
            raise PollardError(
                f"The plan keeps {len(self.kept)} layers, and the pruned model has {there} in {self.path}: prune again "
                "(--fresh), or leave finetuning.distillation.hidden out.",
                code="seams.other-model",
            )
        if self.of_student == (0,) and not model.get_input_embeddings().weight.requires_grad:
            raise PollardError(
                f"The only gap of the plan is before layer {self.kept[0]}, the first that stays, where nothing but the "
                "embeddings could learn, and they are frozen: say finetuning.method=full, or leave "
                "finetuning.distillation.hidden out.",
                code="seams.nothing-before",
            )


def seams_of(plan: Plan) -> Seams:
    """Raises PollardError for a plan without a gap."""
    cut = plan.cut(LayersCut)
    if cut is None or len(cut.kept) == cut.layers:
        raise PollardError(
            "finetuning.distillation.hidden compares hidden states where layers are gone, and the plan keeps all of them: leave "
            "hidden out, or say pruning.layers.",
            code="seams.no-gap",
        )
    return Seams(cut.path, cut.layers, tuple(cut.kept))


def most_seams(layers: int, kept: int | Sequence[int]) -> int:
    """At most so many seams has a model with `kept` of `layers` layers (or these ones); for estimates."""
    if isinstance(kept, int):
        return min(layers - kept, kept + 1)
    return len(Seams("", layers, tuple(kept)).places)


def _layers(model: nn.Module, path: str) -> nn.ModuleList:
    layers = model.get_submodule(path)
    assert isinstance(layers, nn.ModuleList)
    return layers


@contextmanager
def observing_seams(
    model: nn.Module, path: str, numbers: Sequence[int], counted_BS: torch.Tensor, states: dict[int, torch.Tensor]
) -> Iterator[None]:
    """Inside the context a forward pass of `model` leaves in `states` the hidden states [N, H] that the layers `numbers` read, by
    number; under the number of all layers, what the last one hands on.

    `counted_BS`: of positions 1 … S-1 those of completion tokens; their states are those of the position before, which predicts
    them. Hooks stand around a layer's `forward`, and so outside of what gradient checkpointing runs twice.
    """
    layers = _layers(model, path)

    def record(number: int, found: Any) -> None:
        state_BSH = hidden_states_of(found).flatten(2)
        states[number] = state_BSH[:, :-1][counted_BS.to(state_BSH.device)]  # a copy: families add to the stream in place

    def before(number: int) -> Any:
        return lambda layer, args, kwargs: record(number, args[:1] or kwargs.get("hidden_states"))

    hooks = [layers[n].register_forward_pre_hook(before(n), with_kwargs=True) for n in numbers if n < len(layers)]
    if len(layers) in numbers:
        hooks.append(layers[-1].register_forward_hook(lambda layer, args, output: record(len(layers), output)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def seam_loss(
    student_NH: torch.Tensor, hidden_ND: torch.Tensor, length_N: torch.Tensor, projection_HD: torch.Tensor | None
) -> torch.Tensor:
    """(1 - cos(s, t)) + (|s| / |t| - 1)^2, summed over the N tokens of one seam."""
    student_NH = student_NH.float()
    compared_ND = student_NH if projection_HD is None else student_NH @ projection_HD
    direction_N = 1 - cosine_similarity(compared_ND, hidden_ND.float(), dim=-1)
    return (direction_N + (student_NH.norm(dim=-1) / length_N - 1) ** 2).sum()


class SeamObserver:
    """The student's part: watches one forward pass at the seams, and compares."""

    def __init__(self, model: Any, seams: Seams, columns: SeamColumns) -> None:
        """`model`: transformers' own, or PEFT's around it, which leaves the layers where they are."""
        self.model: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
        seams.check_student(self.model)
        self.seams, self.projection_HD = seams, columns.projection

    def watching(self, counted_BS: torch.Tensor, states: dict[int, torch.Tensor]) -> AbstractContextManager[None]:
        """As `observing_seams`."""
        return observing_seams(self.model, self.seams.path, self.seams.of_student, counted_BS, states)

    def loss(self, states: Mapping[int, torch.Tensor], teacher: TeacherStates) -> torch.Tensor:
        """Summed over the tokens, mean over the seams; float32 copies of a thousand tokens at a time are in memory."""
        found = []
        for number, hidden_ND, length_N in zip(
            self.seams.of_student, teacher.hidden_NGD.unbind(1), teacher.length_NG.unbind(1), strict=True
        ):
            student_NH = states[number]
            projection = None if self.projection_HD is None else self.projection_HD.to(student_NH.device)
            parts = zip(*(whole.split(TOKENS_AT_ONCE) for whole in (student_NH, hidden_ND, length_N)), strict=True)
            found += [checkpoint(seam_loss, *part, projection, use_reentrant=False) for part in parts]
        return torch.stack(found).sum() / len(self.seams.places)
