"""Run a model layer by layer over all batches at once, while its own forward pass stays in charge.

How a forward pass is held
--------------------------
Streaming and progressive search need "layer 0 for every batch, then layer 1 for every batch", but a transformers model
only offers "all layers for one batch". Whatever a family hands from layer to layer beside the hidden states (residuals,
shared keys and values, a router's state) would have to be known to call its layers one by one. So the model's own
`forward` runs, unchanged, once per batch, each in a thread of its own, and is *held* wherever it calls a decoder layer:

    main thread (calibration)                        thread of batch 0            thread of batch 1
    ─────────────────────────                        ─────────────────            ─────────────────
    runner.start(batch 0) ─────────────────────────► embed, masks, …
      waits                                          calls layer 0: held ■
    runner.start(batch 1) ──────────────────────────────────────────────────────► embed, masks, …
      waits                                                                       calls layer 0: held ■
    runner.check(0)      every pass is held before layer 0
    load layer 0
      output = pass 0.output()    runs the real layer 0, in the main thread, on the arguments that batch 0 called it with
      pass 0.resume(output) ───────────────────────► layer 0 "returns"
        waits                                        calls layer 1: held ■
      pass 1.output(); pass 1.resume(…) ────────────────────────────────────────► layer 0 "returns"
        waits                                                                     calls layer 1: held ■
    drop layer 0, load layer 1, … until every pass has ended (`pass.call is None`)

Rules that follow from it:

- One thread runs at a time: `start` and `resume` return when the pass is held again, has ended, or has raised (the exception
  is raised in the main thread). No locks are needed, and hooks see one batch at a time.
- The layers' work is done in the main thread, so hooks, contexts and the experts implementation that are set there hold.
- `output` may be called several times before `resume` (progressive search: once for the inputs, once pruned).
- Nothing is replayed or guessed: the state of a family stays in its own stack frames. What a pass holds while it waits may
  be moved away (activation_offload.py) and comes back before its next layer.
- Logits are made where all passes have ended: each may keep what its base model returned (`keep_output`), and the model's own
  `forward` goes on from there (`base_model_returns`), in the main thread.
- Leaving the context aborts the passes that have not ended and gives the layers their `forward` back.

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

from toolkit.moe.activation_offload import ActivationOffload, OffloadedTensors
from toolkit.moe.blocks import MoEBlock, blocks_in
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
        raise PollardError(
            "This model's decoder layers do not stand in one list, so they cannot be run one at a time.",
            code="layers.no-single-list",
        )
    return path, layers


def decoder_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """`layers_of` for any model: of a dense one, the one list of its base model with as many modules as it has layers.

    Raises PollardError where there is no such list."""
    if blocks := blocks_in(model):
        return layers_of(model, blocks)
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    decoder: Any = model.get_decoder()  # without the towers of a multimodal model
    inside = {id(module) for module in (decoder or model).modules()}
    lists = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == count and id(m) in inside]
    if len(lists) != 1:
        raise PollardError(
            f"{model.config.model_type}: {len(lists)} lists of {count} modules: it cannot be told which are its decoder layers.",
            code="layers.no-single-list",
        )
    return lists[0]


def blocks_by_layer(blocks: Sequence[MoEBlock], layers: nn.ModuleList) -> list[list[MoEBlock]]:
    """The blocks of each layer; none in a dense one."""
    found = []
    for layer in layers:
        inside = {id(module) for module in layer.modules()}
        found.append([block for block in blocks if id(block.module) in inside])
    return found


def hidden_states_of(value: Any) -> torch.Tensor:
    """The hidden states [B, S, …] among what goes into a layer or comes out of it: families return tensors or tuples."""
    found = value
    while isinstance(found, tuple | list) and found:
        found = found[0]
    if not torch.is_tensor(found) or found.ndim < 3:
        raise PollardError(
            "This model's decoder layers do not hand on hidden states that can be compared: choose the layers by dev_loss, or "
            "name them (pruning.layers=[0, 1, …]), and leave pruning.refit out.",
            code="layers.no-hidden-states",
        )
    return found


class LayerCall(NamedTuple):
    """A call of a decoder layer, as the model made it."""

    layer: int
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


class ForwardPassAborted(BaseException):
    """Unwinds the stack of a forward pass that will not be finished."""


class ForwardPass(Thread):
    """One batch's forward pass; `call` is the layer call at which it is held, None once it has ended."""

    def __init__(self, runner: "LayerRunner", forward: Callable[[], object], keep_output: bool = False) -> None:
        super().__init__(daemon=True)
        self.runner, self.forward, self.context = runner, forward, copy_context()
        self.call: LayerCall | None = None
        self.keep_output, self._final_output = keep_output, None
        self.offloaded = OffloadedTensors(runner.offload)
        self._calls: SimpleQueue[Any] = SimpleQueue()
        self._outputs: SimpleQueue[Any] = SimpleQueue()
        try:
            self.start()
        except RuntimeError as error:
            raise PollardError(
                f"This system does not let a process have a thread for each batch (after {active_count()}: {error}). "
                "Make fewer, larger batches: calibration.batch_size.",
                code="layers.no-threads",
            ) from error
        self._wait_for_call()

    # Called by the main thread

    @torch.no_grad()
    def output(self) -> Any:
        """Runs the layer before which the pass is held, and returns its output; called twice, the layer runs twice."""
        assert self.call is not None
        self.offloaded.fetch()
        return self.runner.forwards[self.call.layer](*self.call.args, **self.call.kwargs)

    def resume(self, output: Any) -> None:
        """Returns `output` to the model as the layer's, and waits until the pass is held at the next layer, or has ended."""
        self.call = None
        self._outputs.put(output)
        self._wait_for_call()

    def offload(self) -> None:
        """Moves what the pass holds out of the way: another pass is next."""
        if self.call:
            self.offloaded.offload((self.call.args, self.call.kwargs))
        elif self.keep_output:
            self.offloaded.offload(self._final_output)

    def take_output(self) -> Any:
        """What the base model returned, of a pass that has ended and was to keep it; the pass keeps it no longer."""
        assert self.call is None and self.keep_output
        self.offloaded.fetch()
        output, self._final_output = self._final_output, None
        return output

    def abort(self) -> None:
        self._outputs.put(ForwardPassAborted)
        self.join()

    def _wait_for_call(self) -> None:
        found = self._calls.get()
        if isinstance(found, BaseException):
            raise found
        self.call = found
        self.offload()

    # Called by the pass's own thread

    def run(self) -> None:
        try:
            self.context.run(self._run)
        except ForwardPassAborted:
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
            torch.cuda.set_device(self.runner.cuda_device)
        output: Any = self.forward()
        if self.keep_output:
            self._final_output = output

    def wait_for_output(self, call: LayerCall) -> Any:
        self._calls.put(call)
        output = self._outputs.get()
        if output is ForwardPassAborted:
            raise ForwardPassAborted
        return output


class LayerRunner:
    """The decoder layers, whose `forward` is replaced by one that holds the calling forward pass."""

    def __init__(self, model: PreTrainedModel, layers: nn.ModuleList, offload: ActivationOffload) -> None:
        self.model, self.offload = model, offload
        self.forwards: list[Callable[..., Any]] = [layer.forward for layer in layers]
        self.passes: list[ForwardPass] = []
        self.cuda_device = torch.cuda.current_device() if torch.cuda.is_available() else None

    def start(self, batch: Mapping[str, torch.Tensor], keep_output: bool = False) -> ForwardPass:
        """Starts a forward pass of the base model over `input_ids` and `attention_mask` [B, S]; it is held before the first
        layer. `keep_output`: what the base model returns is kept until `take_output`, for logits (`base_model_returns`)."""
        ids, mask = batch["input_ids"], batch["attention_mask"]
        base: Any = self.model.base_model
        self.passes.append(ForwardPass(self, lambda: base(ids, attention_mask=mask, use_cache=False), keep_output))
        return self.passes[-1]

    def check(self, number: int | None, passes: Sequence[ForwardPass] | None = None) -> None:
        """Raises PollardError unless every pass (or all of `passes`) is held before layer `number`; None: has ended."""
        for forward_pass in self.passes if passes is None else passes:
            where = forward_pass.call.layer if forward_pass.call else None
            if where != number:
                wanted, found = ("the end" if at is None else f"layer {at}" for at in (number, where))
                raise PollardError(
                    f"{type(self.model).__name__} does not call its decoder layers in order ({wanted} was next, it wants "
                    f"{found}): this family cannot be run layer by layer. Load the whole model; toolkit.calibrate takes it, too, "
                    "without progressive mode.",
                    code="layers.out-of-order",
                )


def _holding_forward(number: int) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        forward_pass = current_thread()
        assert isinstance(forward_pass, ForwardPass)
        return forward_pass.wait_for_output(LayerCall(number, args, kwargs))

    return forward


@contextmanager
def one_layer_at_a_time(
    model: PreTrainedModel, layers: nn.ModuleList, offload: ActivationOffload | None = None
) -> Iterator[LayerRunner]:
    """Inside the context the model's forward passes are held before each of `layers`; `offload` limits where the tensors that
    they hold meanwhile are kept (without it they stay where they are)."""
    runner = LayerRunner(model, layers, offload or ActivationOffload())
    before = [vars(layer).get("forward") for layer in layers]  # accelerate sets one of its own
    threads = torch.get_num_threads()
    for number, layer in enumerate(layers):
        layer.forward = _holding_forward(number)
    try:
        yield runner
    finally:
        for forward_pass in runner.passes:
            forward_pass.abort()
        torch.set_num_threads(threads)
        for layer, forward in zip(layers, before, strict=True):
            del layer.forward
            if forward is not None:
                layer.forward = forward


@contextmanager
def base_model_returns(model: PreTrainedModel, output: Any) -> Iterator[None]:
    """Inside the context the base model returns `output` instead of running: a call of `model` then is what its own `forward`
    does behind the base model, such as the head, and the scaling and capping of logits."""
    base = model.base_model
    before = vars(base).get("forward")
    base.forward = lambda *args, **kwargs: output
    try:
        yield
    finally:
        del base.forward
        if before is not None:
            base.forward = before
