"""Run a model layer by layer over all batches at once, while its own forward pass stays in charge.

Each batch's forward pass runs in a thread of its own and stands still wherever the model calls a decoder layer:

    batch 0   embed, masks ─┤layer 0├────────────┤layer 1├── … ── norm
    batch 1   embed, masks ─────────┤layer 0├────────────┤layer 1├── …

So a layer can be loaded, run for every batch, and dropped. Whatever a family hands from layer to layer beside the hidden
states (residuals, shared keys and values, a router's state) stays where the model keeps it, in that batch's own frames:
nothing is replayed or guessed, and no family needs code of its own. Only one thread runs at a time.

Shape legend: B sequences, S positions.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from queue import SimpleQueue
from threading import Thread, active_count, current_thread
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from toolkit.moe.activation_offload import ActivationOffload, OffloadedTensor
from toolkit.moe.blocks import MoEBlock
from toolkit.runtime.errors import PollardError


def layers_of(model: nn.Module, blocks: Sequence[MoEBlock]) -> tuple[str, nn.ModuleList]:
    """The path of the decoder layers, and the list itself. Raises PollardError where the blocks are not in one list."""
    modules = dict(model.named_modules())
    lists = set()
    for block in blocks:
        parts = block.name.split(".")
        paths = [".".join(parts[:n]) for n in range(1, len(parts))]
        lists |= {next((path for path in paths if isinstance(modules[path], nn.ModuleList)), "")}
    path = lists.pop()
    layers = modules[path]
    if lists or not isinstance(layers, nn.ModuleList):
        raise PollardError("This model's decoder layers do not stand in one list, so they cannot be run one at a time.")
    return path, layers


def blocks_by_layer(blocks: Sequence[MoEBlock], layers: nn.ModuleList) -> list[list[MoEBlock]]:
    """The blocks of each layer; none in a dense one."""
    found = []
    for layer in layers:
        inside = {id(module) for module in layer.modules()}
        found.append([block for block in blocks if id(block.module) in inside])
    return found


class Call(NamedTuple):
    """What the model wants of a layer."""

    layer: int
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


class Abandoned(BaseException):
    """Unwinds a forward pass that nobody will finish."""


class ForwardPass(Thread):
    """One batch's forward pass; `call` is what it waits for, None once it has ended."""

    def __init__(self, layers: "Layers", forward: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self.layers, self.forward, self.context = layers, forward, copy_context()
        self.call: Call | None = None
        self.spot = OffloadedTensor(layers.parking)
        self._calls: SimpleQueue[Any] = SimpleQueue()
        self._outputs: SimpleQueue[Any] = SimpleQueue()
        try:
            self.start()
        except RuntimeError as error:
            raise PollardError(
                f"This system does not let a process have a thread for each batch (after {active_count()}: {error}). "
                "Make fewer, larger batches: calibration.batch_size."
            ) from error
        self._listen()

    # The thread that owns the layers calls these

    @torch.no_grad()
    def output(self) -> Any:
        """The output of the layer that the pass stands before; asked twice, the layer runs twice."""
        assert self.call is not None
        self.spot.fetch()
        return self.layers.forwards[self.call.layer](*self.call.args, **self.call.kwargs)

    def go_on(self, output: Any) -> None:
        """Hands over the layer's output and waits until the pass stands before the next one, or has ended."""
        self.call = None
        self._outputs.put(output)
        self._listen()

    def rest(self) -> None:
        """Makes room: another pass is next."""
        if self.call:
            self.spot.park((self.call.args, self.call.kwargs))

    def abandon(self) -> None:
        self._outputs.put(Abandoned)
        self.join()

    def _listen(self) -> None:
        found = self._calls.get()
        if isinstance(found, BaseException):
            raise found
        self.call = found
        self.rest()

    # The pass's own thread

    def run(self) -> None:
        try:
            self.context.run(self._run)
        except Abandoned:
            return
        except BaseException as error:
            self._calls.put(error)
            return
        self._calls.put(None)

    @torch.no_grad()
    def _run(self) -> None:
        # What stands between the layers is little work; a pool of workers for each of hundreds of threads would not be
        torch.set_num_threads(1)
        if torch.cuda.is_available():
            torch.cuda.set_device(self.layers.cuda)
        self.forward()

    def wait_for(self, call: Call) -> Any:
        self._calls.put(call)
        output = self._outputs.get()
        if output is Abandoned:
            raise Abandoned
        return output


class Layers:
    """The decoder layers, whose place in the model is taken by doors at which forward passes wait."""

    def __init__(self, model: PreTrainedModel, layers: nn.ModuleList, parking: ActivationOffload) -> None:
        self.model, self.list, self.parking = model, layers, parking
        self.forwards: list[Callable[..., Any]] = [layer.forward for layer in layers]
        self.passes: list[ForwardPass] = []
        self.cuda = torch.cuda.current_device() if torch.cuda.is_available() else None

    def begin(self, batch: Mapping[str, torch.Tensor]) -> ForwardPass:
        """A forward pass of the base model (logits are not needed) over `input_ids` and `attention_mask` [B, S], as far as
        the first layer."""
        ids, mask = batch["input_ids"], batch["attention_mask"]
        self.passes.append(ForwardPass(self, lambda: self.model.base_model(ids, attention_mask=mask, use_cache=False)))
        return self.passes[-1]

    def check(self, number: int) -> None:
        """Raises PollardError unless every pass stands before layer `number`."""
        for one in self.passes:
            where = one.call.layer if one.call else "the end"
            if where != number:
                raise PollardError(
                    f"{type(self.model).__name__} does not call its decoder layers in order (layer {number} was next, it wants "
                    f"{where}): this family cannot be calibrated layer by layer. Load the model and call toolkit.calibrate "
                    "with it, without progressive mode."
                )


def _door(number: int) -> Callable[..., Any]:
    def wait(*args: Any, **kwargs: Any) -> Any:
        forward_pass = current_thread()
        assert isinstance(forward_pass, ForwardPass)
        return forward_pass.wait_for(Call(number, args, kwargs))

    return wait


@contextmanager
def one_layer_at_a_time(
    model: PreTrainedModel, layers: nn.ModuleList, parking: ActivationOffload | None = None
) -> Iterator[Layers]:
    """Inside the context the model's forward passes stand still before each of `layers`; what they hold while they wait
    stands in `parking` (where it is unless given)."""
    ours = Layers(model, layers, parking or ActivationOffload())
    before = [vars(layer).get("forward") for layer in layers]  # accelerate puts its own there
    threads = torch.get_num_threads()
    for number, layer in enumerate(layers):
        layer.forward = _door(number)
    try:
        yield ours
    finally:
        for one in ours.passes:
            one.abandon()
        torch.set_num_threads(threads)
        for layer, forward in zip(layers, before, strict=True):
            del layer.forward
            if forward is not None:
                layer.forward = forward
