"""Refit layer after layer: original and cut model run side by side over all batches, each on its own hidden states.

For every layer of the cut model the original runs on to the layer before the one that comes next in the cut model, so that what
dropped layers did is part of the target. Then the cut model's layer runs, is solved (layer.py), and runs again with its new
weights; where its output has not come nearer to the target on held-out tokens, the old weights stay.

    original   0 ─► 1 ─► 2 ─► 3 ─►          target of the cut model's layer 1 (the original's 2): the stream behind 3
    cut        0 ──────► 2 ─────►

Shape legend: B sequences, S positions, T = B * S tokens, R of them (those that count), H hidden size.
"""

import zlib
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import nn
from transformers import PreTrainedModel

from toolkit.moe import (
    ActivationOffload,
    Batch,
    ForwardPass,
    StreamedModel,
    blocks_by_layer,
    blocks_in,
    decoder_layers,
    hidden_states_of,
    one_layer_at_a_time,
    split_mask,
)
from toolkit.moe.layers import LayerRunner
from toolkit.moe.residual_writers import (
    ExpertsWriter,
    ResidualWriter,
    residual_gain,
    writer_calls,
    writers_in,
)
from toolkit.recovery.refit.layer import solve_layer
from toolkit.recovery.refit.results import BlockRefit, RefitResult, Target
from toolkit.recovery.refit.tokens import LayerTokens, held_out_error
from toolkit.runtime.distributed import gather, sum_over_ranks
from toolkit.runtime.errors import PollardError
from toolkit.runtime.progress import progress

HOST = torch.device("cpu")  # where the inputs of all tokens wait; their channels are made on the device, some at a time
HELD_OUT = 5  # one sequence of so many
COMPLETION_WEIGHT = 4.0


class LayerStore(Protocol):
    """Where finished layers are kept, so that a refit that was interrupted goes on from them. Every rank calls both."""

    def load(self, number: int, layer: nn.Module) -> BlockRefit | None:
        """Puts the weights of a finished layer into `layer`; None where it is not finished."""

    def save(self, number: int, refit: BlockRefit, layer: nn.Module) -> None: ...


class RefitModel:
    """A model that is run layer by layer: loaded, or streamed from its checkpoint. `stored_dtype`: to which weights that change
    are rounded; unless given, the model's."""

    def __init__(self, model: PreTrainedModel | StreamedModel, stored_dtype: torch.dtype | None = None) -> None:
        self.streamed = model if isinstance(model, StreamedModel) else None
        self.whole: PreTrainedModel = model.model if isinstance(model, StreamedModel) else model.eval()
        self.device, self.stored_dtype = torch.device(model.device), stored_dtype or self.whole.dtype
        self.path, self.layers = decoder_layers(self.whole)
        self.blocks = blocks_by_layer(blocks_in(self.whole), self.layers)
        self.hidden_size = int(self.whole.config.get_text_config().hidden_size)

    def layer(self, number: int) -> AbstractContextManager[object]:
        """Inside, the layer's weights are there."""
        return self.streamed.layer(self.layers[number]) if self.streamed else nullcontext()

    def held(self) -> AbstractContextManager[LayerRunner]:
        offload = None
        if self.streamed:
            offload = ActivationOffload(self.device, (*self.whole.parameters(), *self.whole.buffers()))
        return one_layer_at_a_time(self.whole, self.layers, offload)


@dataclass
class _Turn:
    """One batch."""

    original: ForwardPass
    cut: ForwardPass
    rows: torch.Tensor  # [R], the tokens that count, of the batch's T
    held_out_R: torch.Tensor
    completion_R: torch.Tensor  # all, where the batch does not say
    target_RH: torch.Tensor = field(default_factory=lambda: torch.empty(0))


@dataclass
class _Layer:
    """One layer of the cut model: what of it is refit, and to what."""

    number: int
    name: str
    writers: Sequence[tuple[ResidualWriter, float]]  # with their gains
    target: Target


@torch.no_grad()
def refit_layers(
    original: RefitModel,
    cut: RefitModel,
    batches: Sequence[Batch],
    kept: Sequence[int],
    store: LayerStore | None = None,
) -> RefitResult:
    """Refits every layer of `cut`, in place. `kept`: the layers of the original that `cut` has. Every rank calls it, with its own
    batches.

    Raises PollardError where there are too few sequences, where no layer adds what can be refit, and for numbers that are not
    finite.
    """
    blocks = []
    with original.held() as original_runner, cut.held() as cut_runner:
        turns = [_start(batch, original_runner, cut_runner, original.device) for batch in batches]
        counts = _count(turns)
        reached = 0
        for number in progress(range(len(cut.layers)), "refitting, layer by layer"):
            original_runner.check(reached)
            cut_runner.check(number)
            last = kept[number + 1] - 1 if number + 1 < len(kept) else len(original.layers) - 1
            with cut.layer(number):
                finished = store.load(number, cut.layers[number]) if store else None
                layer = None if finished else _find_writers(cut, number, turns)
                for at in range(reached, last + 1):
                    with original.layer(at):
                        _run_original(original, turns, layer, at, kept[number], last)
                if layer and layer.writers:
                    finished = _refit_layer(cut, layer, turns)
                    if store:
                        store.save(number, finished, cut.layers[number])
                if finished:
                    blocks.append(finished)
                for turn in turns:
                    turn.cut.resume(turn.cut.output())
            reached = last + 1
    if not blocks:
        raise PollardError(
            "No layer of this model adds what its experts write to the residual stream in a way that least squares can refit. "
            "Leave pruning.refit out.",
            code="refit.no-linear-path",
        )
    return RefitResult(*counts, blocks)


def _start(batch: Batch, original: LayerRunner, cut: LayerRunner, device: torch.device) -> _Turn:
    inputs, observed = split_mask(batch, device)
    held_out_B = torch.tensor(
        [_is_held_out(ids[mask.bool()]) for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)]
    )
    rows = observed.real.nonzero().flatten()
    held_out_T = held_out_B.to(device).repeat_interleave(inputs["input_ids"].shape[1])
    return _Turn(original.start(inputs), cut.start(inputs), rows, held_out_T[rows], observed.completion[rows])


def _is_held_out(token_ids: torch.Tensor) -> bool:
    """One sequence of HELD_OUT, whatever batch and rank it is in."""
    return zlib.crc32(token_ids.int().cpu().numpy().tobytes()) % HELD_OUT == 0


def _count(turns: Sequence[_Turn]) -> tuple[int, int]:
    """Tokens that weights are fitted to, and held-out ones, of all ranks. Raises PollardError where there are none of either."""
    held_out = sum(gather(sum(int(turn.held_out_R.sum()) for turn in turns)))
    fitted = sum(gather(sum(len(turn.rows) for turn in turns))) - held_out
    if not (fitted and held_out):
        raise PollardError(
            f"Refit fits the weights to {HELD_OUT - 1} of {HELD_OUT} examples and chooses by the others: {fitted:,} and "
            f"{held_out:,} tokens are too few for that. Give more examples (pruning.refit.examples; while shapes are measured, "
            "pruning.fit.refit.examples).",
            code="refit.too-few-examples",
        )
    return fitted, held_out


def _find_writers(cut: RefitModel, number: int, turns: Sequence[_Turn]) -> _Layer:
    """What writes linearly into the residual stream, seen in this rank's first batch; where the experts do not, they are refit to
    the original block's own output."""
    name = f"{cut.path}.{number}"
    candidates = writers_in(name, cut.layers[number], cut.blocks[number], cut.hidden_size)
    gains: list[float | None] = [None] * len(candidates)
    if turns:
        first = turns[0].cut
        with writer_calls(cut.whole, candidates) as calls:
            output_TH = _flat(first.output())
            gains = [residual_gain(writer, calls, lambda: _flat(first.output()), output_TH) for writer in candidates]
    gains = next(found for found in gather(gains if turns else None) if found is not None)
    writers = [(writer, gain) for writer, gain in zip(candidates, gains, strict=True) if gain]
    if writers or not cut.blocks[number]:
        return _Layer(number, name, writers, "residual")
    return _Layer(number, name, [(writer, 1.0) for writer in candidates if isinstance(writer, ExpertsWriter)][:1], "output")


def _run_original(original: RefitModel, turns: Sequence[_Turn], layer: _Layer | None, at: int, own: int, last: int) -> None:
    """The original's layer `at` over all batches; leaves the targets of `layer`, whose own one is `own`."""
    own_output = layer is not None and layer.target == "output" and at == own
    recorded = [ExpertsWriter(block) for block in original.blocks[at][:1]] if own_output else []
    for turn in turns:
        with writer_calls(original.whole, recorded) as calls:
            output = turn.original.output()
        if own_output:
            turn.target_RH = calls.calls[recorded[0].name][0].output_TH[turn.rows]
        elif layer and layer.target == "residual" and at == last:
            turn.target_RH = _flat(output)[turn.rows]  # a copy: families add to their residual stream in place
        turn.original.resume(output)


def _refit_layer(cut: RefitModel, layer: _Layer, turns: Sequence[_Turn]) -> BlockRefit:
    writers = [writer for writer, _ in layer.writers]
    batches, asked = [], torch.zeros((), dtype=torch.float64, device=cut.device)
    for turn in turns:
        with writer_calls(cut.whole, writers) as calls:
            output = _flat(turn.cut.output())
        turn.cut.offload()
        calls_of = {writer.name: calls.calls[writer.name][0] for writer in writers}
        written_RH = sum(gain * calls_of[writer.name].output_TH[turn.rows].float() for writer, gain in layer.writers)
        now_RH = output[turn.rows] if layer.target == "residual" else calls_of[writers[0].name].output_TH[turn.rows]
        lacking_RH = _wide(turn.target_RH) - _wide(now_RH)
        scale_R = _scale(turn, layer)
        asked += ((lacking_RH + written_RH) * scale_R.unsqueeze(1))[turn.held_out_R].double().square().sum()
        inputs = {name: call.inputs.rows(turn.rows)._replace(scale_R=scale_R).to(HOST) for name, call in calls_of.items()}
        batches.append(LayerTokens(inputs, (lacking_RH * scale_R.unsqueeze(1)).to(HOST), turn.held_out_R.to(HOST)))
    before = held_out_error(batches, cut.device)
    parameters = [cut.whole.get_parameter(name).data for writer in writers for name in writer.names]
    kept_weights = [parameter.clone() for parameter in parameters]
    solved = solve_layer(layer.writers, batches, cut.device, cut.stored_dtype)
    del batches
    after = _measured_error(cut, layer, turns)
    if not after <= before:
        for parameter, weight in zip(parameters, kept_weights, strict=True):
            parameter.copy_(weight)
        solved, after = solved.undone(), before
    sum_over_ranks(asked)
    channels = sum(writer.units * writer.width for writer in writers)
    scale = float(asked) or 1.0
    names = [name for writer in writers for name in (writer.names if any(solved.steps) else [writer.name])]
    return BlockRefit(layer.name, names, layer.target, channels, solved.penalties, before / scale, after / scale, solved.steps)


def _measured_error(cut: RefitModel, layer: _Layer, turns: Sequence[_Turn]) -> float:
    """The held-out squared error of the layer as its weights are now, over all ranks: what is not quite linear shows here."""
    writers = [writer for writer, _ in layer.writers]
    batches = []
    for turn in turns:
        with writer_calls(cut.whole, writers if layer.target == "output" else ()) as calls:
            output = _flat(turn.cut.output())
        turn.cut.offload()
        now_TH = output if layer.target == "residual" else calls.calls[writers[0].name][0].output_TH
        held = turn.held_out_R
        lacking_RH = _wide(turn.target_RH[held]) - _wide(now_TH[turn.rows[held]])
        batches.append(LayerTokens({}, lacking_RH * _scale(turn, layer)[held].unsqueeze(1), held[held]))
    return held_out_error(batches, cut.device)


def _scale(turn: _Turn, layer: _Layer) -> torch.Tensor:
    """[R], by which a token's error is multiplied before it is squared. The norms that read the stream divide by its size, so
    errors count relative to that: without it a few tokens of large states would be all that counts. Tokens of the answers count
    COMPLETION_WEIGHT times as much as those of the prompts."""
    target_RH = _wide(turn.target_RH)
    weight_R = torch.where(turn.completion_R, COMPLETION_WEIGHT, 1.0).to(target_RH)
    if layer.target == "residual":
        weight_R = weight_R / target_RH.square().mean(1).clamp_min(torch.finfo(torch.float32).tiny)
    return weight_R.sqrt()


def _flat(output: object) -> torch.Tensor:
    """The hidden states of a layer's output, [T, H]."""
    return hidden_states_of(output).flatten(0, 1)


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
