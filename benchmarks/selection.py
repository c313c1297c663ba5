"""What observing and the exact search cost, as ratios measured in one run:

    OMP_NUM_THREADS=1 python benchmarks/selection.py                              # all parts, minutes
    OMP_NUM_THREADS=1 python benchmarks/selection.py search --hidden 256 --width 512 --layers 4
    python benchmarks/selection.py --device cuda --dtype bfloat16 --hidden 4096 --width 14336 --layers 1

Same model, same tokens, one process; each ratio is the median over alternated repeats, with its range, of the processor's
seconds and of the clock's. `search`: contestants run from the model's forward pass to the chosen sets, and must choose the same.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import combinations
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from toolkit.calibration import StatisticsObserver, calibrate, observe
from toolkit.calibration.channel_gradients import observe_gradients
from toolkit.calibration.channels import ChannelObserver
from toolkit.moe import MoEBlock, channel_groups, expert_width, find_blocks, restricted

EXPERTS, TOP_K, VOCABULARY = 8, 2, 1000
PARTS = ("observing", "search")
Batches = list[Mapping[str, torch.Tensor]]
Chosen = list[list[int]]


class Seconds(NamedTuple):
    cpu: float
    wall: float


def mixtral(given: argparse.Namespace) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "mixtral", vocab_size=VOCABULARY, hidden_size=given.hidden, intermediate_size=given.width, num_local_experts=EXPERTS,
        num_experts_per_tok=TOP_K, num_hidden_layers=given.layers, num_attention_heads=8, num_key_value_heads=8,
    )  # fmt: skip
    with torch.device(given.device):
        return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, given.dtype)).eval()


def batches_of(given: argparse.Namespace) -> Batches:
    ids = torch.randint(VOCABULARY, (given.sequences, given.length), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": batch, "attention_mask": torch.ones_like(batch)} for batch in ids.split(given.batch_size)]


@torch.no_grad()
def forward(model: PreTrainedModel, batches: Batches) -> None:
    for batch in batches:
        inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
        model.base_model(inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)


@torch.no_grad()
def observed(model: PreTrainedModel, batches: Batches) -> None:
    observe(model, batches, [StatisticsObserver(find_blocks(model))])


@torch.no_grad()
def observed_with_channels(model: PreTrainedModel, batches: Batches) -> None:
    groups = channel_groups(model, expert_width(model))
    observe(model, batches, [StatisticsObserver(find_blocks(model)), ChannelObserver(groups)])


def with_gradients(model: PreTrainedModel, batches: Batches) -> None:
    observe_gradients(model, batches, channel_groups(model, expert_width(model)))


class PublishedBlock(nn.Module):
    """A Mixtral block that computes, caches and enumerates as NAEE's published code does (arXiv 2402.14800; its own code for
    transformers 4.36): an expert is three matrices of its own, which share the block's weights here; the tokens of each are
    looked for and gathered by lists; every subset runs the block again on every batch; differences are taken in float64."""

    def __init__(self, block: MoEBlock, keep: int) -> None:
        super().__init__()
        experts: Any = block.experts
        self.router: Any = block.router
        self.act, self.keep = experts.act_fn, keep
        self.matrices = [(*gate_up.chunk(2), down) for gate_up, down in zip(experts.gate_up_proj, experts.down_proj, strict=True)]
        self.dropped: tuple[int, ...] = ()
        self.caching = True
        self.inputs: list[torch.Tensor] = []
        self.outputs: list[torch.Tensor] = []

    def expert(self, number: int, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        gate, up, down = self.matrices[number]
        inner = self.act(functional.linear(hidden, gate)) * functional.linear(hidden, up)
        return weight * functional.linear(inner, down)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden = hidden_states.view(-1, hidden_states.shape[-1])
        logits = functional.linear(hidden, self.router.weight)
        for expert in self.dropped:
            logits[:, expert] = -float("inf")
        weights, chosen = functional.softmax(logits, dim=1, dtype=torch.float).topk(TOP_K, dim=-1)
        weights = (weights / weights.sum(dim=-1, keepdim=True)).to(hidden.dtype)
        output = torch.zeros_like(hidden)
        mask = functional.one_hot(chosen, num_classes=EXPERTS).permute(2, 1, 0)
        for number in range(EXPERTS):
            place, token = torch.where(mask[number])
            if token.shape[0] == 0:
                continue
            tokens, places = token.tolist(), place.tolist()
            current = hidden[None, tokens].reshape(-1, hidden.shape[1])
            output.index_add_(0, token, self.expert(number, current, weights[tokens, places, None]).to(hidden.dtype))
        if self.caching:
            self.inputs.append(hidden)
            self.outputs.append(output)
        return output.reshape(hidden_states.shape)

    def enumerated(self) -> list[int]:
        self.caching = False
        losses = {}
        for dropped in combinations(range(EXPERTS), EXPERTS - self.keep):
            self.dropped, losses[dropped] = dropped, 0.0
            for hidden, output in zip(self.inputs, self.outputs, strict=True):
                again = self(hidden.unsqueeze(0)).squeeze(0)
                losses[dropped] += torch.norm(output.double() - again.double()).item()
        least = min(losses, key=lambda dropped: losses[dropped])
        return [expert for expert in range(EXPERTS) if expert not in least]


@contextmanager
def published_blocks(model: PreTrainedModel, keep: int) -> Iterator[list[PublishedBlock]]:
    """The blocks of `model` replaced by these inside the context."""
    layers: Any = model.base_model.layers
    before, blocks = [layer.mlp for layer in layers], [PublishedBlock(block, keep) for block in find_blocks(model)]
    for layer, block in zip(layers, blocks, strict=True):
        layer.mlp = block
    try:
        yield blocks
    finally:
        for layer, module in zip(layers, before, strict=True):
            layer.mlp = module


@torch.no_grad()
def as_published(model: PreTrainedModel, batches: Batches, keep: int) -> Chosen:
    with published_blocks(model, keep) as blocks:
        for batch in batches:
            model(**{name: tensor.to(model.device) for name, tensor in batch.items()}, use_cache=False)
        return [block.enumerated() for block in blocks]


@torch.no_grad()
def again_for_every_subset(model: PreTrainedModel, batches: Batches, keep: int) -> Chosen:
    """The same enumeration with transformers' own block of today, which computes all experts in one grouped product."""
    blocks = find_blocks(model)
    cached: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {block.name: [] for block in blocks}
    handles = [
        block.module.register_forward_hook(lambda module, args, out, name=block.name: cached[name].append((args[0], out)))
        for block in blocks
    ]
    forward(model, batches)
    for handle in handles:
        handle.remove()
    chosen = []
    for block in blocks:
        losses = {}
        for kept in combinations(range(EXPERTS), keep):
            with restricted(block, list(kept)):
                losses[kept] = sum(torch.norm((y - block.module(x)).double()).item() for x, y in cached[block.name])
        chosen.append(list(min(losses, key=lambda kept: losses[kept])))
    return chosen


def once_for_all(model: PreTrainedModel, batches: Batches, keep: int) -> Chosen:
    found = calibrate(model, batches, reconstruction="layerwise").about.reconstruction["layerwise"]
    return [block.keep[keep].kept for block in found.values()]


def timed(run: Callable[[], Any]) -> tuple[Any, Seconds]:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    wall, cpu = time.perf_counter(), time.process_time()
    result = run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, Seconds(time.process_time() - cpu, time.perf_counter() - wall)


def ratio(name: str, slow: Callable[[], Any], fast: Callable[[], Any], repeats: int) -> float:
    """Prints slow/fast over alternated repeats, whose answers must agree; returns the median of CPU seconds' ratios."""
    measured: list[tuple[Seconds, Seconds]] = []
    for _ in range(repeats):
        (theirs, slow_seconds), (ours, fast_seconds) = timed(slow), timed(fast)
        if theirs != ours:
            raise SystemExit(f"{name}: the two do not agree")
        measured.append((slow_seconds, fast_seconds))
    print(f"{name}:", flush=True)
    medians = []
    for kind, what in enumerate(("CPU-seconds", "wall")):
        ratios = [slow_seconds[kind] / fast_seconds[kind] for slow_seconds, fast_seconds in measured]
        medians.append(statistics.median(ratios))
        middle = [statistics.median(pair[side][kind] for pair in measured) for side in (0, 1)]
        print(
            f"  {what:<12} {medians[-1]:6.2f} ({min(ratios):.2f} to {max(ratios):.2f}); "
            f"{middle[0]:.2f} s against {middle[1]:.2f} s",
            flush=True,
        )
    return medians[0]


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all unless given")
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=8, help="the published code's default")
    parser.add_argument("--keep", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--published-only", action="store_true", help="without transformers' own block as a third contestant")
    options = parser.parse_args(given)
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    if not TOP_K <= options.keep < EXPERTS:
        parser.error(f"--keep is {options.keep}: give {TOP_K}…{EXPERTS - 1}")
    return options


def main(given: list[str] | None = None) -> None:
    options = arguments(given)
    keep, repeats = options.keep, options.repeats
    where = torch.cuda.get_device_name() if options.device.startswith("cuda") else platform.machine()
    print(
        f"{time.strftime('%Y-%m-%d')}, {where}, {torch.get_num_threads()} thread(s), torch {torch.__version__}, {options.dtype}"
    )
    shape = f"hidden {options.hidden}, width {options.width}, {EXPERTS} experts top {TOP_K}, {options.layers} layer(s)"
    print(f"Mixtral, {shape}; {options.sequences} x {options.length} tokens, {options.batch_size} sequences at a time")
    print(f"{repeats} alternated repeats: median (smallest to largest)")
    model, batches = mixtral(options), batches_of(options)
    once_for_all(model, batches, keep)  # warms up what both use
    if "observing" in (options.parts or PARTS):

        def bare() -> None:
            forward(model, batches)

        ratio("observing / bare forward", lambda: observed(model, batches), bare, repeats)
        ratio("observing with channels / bare forward", lambda: observed_with_channels(model, batches), bare, repeats)
        ratio("gradients of channels / bare forward", lambda: with_gradients(model, batches), bare, repeats)
    if "search" in (options.parts or PARTS):

        def exact() -> Chosen:
            return once_for_all(model, batches, keep)

        subsets = len(list(combinations(range(EXPERTS), keep)))
        print(f"{EXPERTS} -> {keep}, {subsets} subsets, from the forward pass to the chosen sets")
        ratio("published enumeration / exact search", lambda: as_published(model, batches, keep), exact, repeats)
        if not options.published_only:
            ratio("transformers' block for every subset / exact search",
                  lambda: again_for_every_subset(model, batches, keep), exact, repeats)  # fmt: skip


if __name__ == "__main__":
    main()
