"""Nothing that observing and the exact search do batch by batch asks the device for a number: on a GPU each such question waits
until all work before it is done."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from conftest import tiny_model
from honest import batches_of
from torch.utils._python_dispatch import TorchDispatchMode

from toolkit.calibration import StatisticsObserver
from toolkit.calibration.observer import Observer
from toolkit.calibration.passes import ObservedSource, layerwise_pass, observe
from toolkit.calibration.reconstruction import LayerwiseSearch, ProgressiveSearch
from toolkit.moe import find_blocks

ASKING = {"nonzero", "_local_scalar_dense", "masked_select", "_unique2", "bincount", "equal", "is_nonzero"}


class Waited(AssertionError):
    pass


class WithoutWaiting(TorchDispatchMode):
    """Refuses operations whose result, or its shape, the host must know."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        if name in ASKING or any(torch.is_tensor(i) and i.dtype == torch.bool for i in indices):
            raise Waited(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("asking", [lambda x: x[x > 0], lambda x: x.nonzero(), lambda x: float(x.sum()), lambda x: bool(x.any())])
def test_the_mode_notices(asking: Any) -> None:
    with WithoutWaiting(), pytest.raises(Waited):
        asking(torch.arange(3.0))


class Inside:
    """The mode, for as long as a block's experts and whoever observes them are at work; not in the first `batches`, which decide
    how a block is searched."""

    def __init__(self, model: Any, batches: int) -> None:
        self.batches, self.mode, self.calls = batches, WithoutWaiting(), 0
        for block in find_blocks(model):
            block.experts.register_forward_pre_hook(lambda *_: self.enter())
            block.experts.register_forward_hook(lambda *_: self.leave())
        self.blocks = len(find_blocks(model))

    def enter(self) -> None:
        self.calls += 1
        if self.calls > self.batches * self.blocks:
            self.mode.__enter__()

    def leave(self) -> None:
        if self.calls > self.batches * self.blocks:
            self.mode.__exit__(None, None, None)


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_statistics_and_the_layerwise_search_ask_nothing(name: str) -> None:
    model = tiny_model(name)
    model.set_experts_implementation("grouped_mm")  # what runs on a GPU
    blocks = find_blocks(model)
    observers: list[Observer] = [StatisticsObserver(blocks), LayerwiseSearch(blocks)]
    inside = Inside(model, 1)
    observe(model, batches_of(3), observers)
    assert inside.calls == 3 * len(blocks)


def test_the_progressive_search_asks_nothing() -> None:
    model = tiny_model("mixtral", num_hidden_layers=1)
    model.set_experts_implementation("grouped_mm")
    inside = Inside(model, 2)  # of the first batch both passes
    layerwise_pass(model, [ObservedSource(batches_of(3), [StatisticsObserver(find_blocks(model))])], ProgressiveSearch(4))
    assert inside.calls >= 6
