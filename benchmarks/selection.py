"""What observing and the exact search cost, as ratios measured in one run:

    OMP_NUM_THREADS=1 python benchmarks/selection.py

Same model, same tokens, one process; each ratio is the median over alternated repeats, with its range. Both contestants
run from the model's forward pass to the chosen sets, and must choose the same.
"""

import itertools
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from toolkit.calibration import StatisticsObserver, calibrate, observe
from toolkit.calibration.channel_gradients import observe_gradients
from toolkit.calibration.channels import ChannelObserver
from toolkit.moe import channel_groups, find_blocks, restricted

REPEATS = 5
HIDDEN, WIDTH, EXPERTS, TOP_K, KEEP = 512, 1024, 8, 2, 4
Batches = list[Mapping[str, torch.Tensor]]


def mixtral(layers: int) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "mixtral", vocab_size=1000, hidden_size=HIDDEN, intermediate_size=WIDTH, num_local_experts=EXPERTS,
        num_experts_per_tok=TOP_K, num_hidden_layers=layers, num_attention_heads=8, num_key_value_heads=8,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def batches_of(count: int, size: int, length: int) -> Batches:
    ids = torch.randint(1000, (count, size, length), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": batch, "attention_mask": torch.ones_like(batch)} for batch in ids]


@torch.no_grad()
def forward(model: PreTrainedModel, batches: Batches) -> None:
    for batch in batches:
        model.base_model(batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)


@torch.no_grad()
def observed(model: PreTrainedModel, batches: Batches) -> None:
    observe(model, batches, [StatisticsObserver(find_blocks(model))])


@torch.no_grad()
def observed_with_channels(model: PreTrainedModel, batches: Batches) -> None:
    observe(model, batches, [StatisticsObserver(find_blocks(model)), ChannelObserver(channel_groups(model, WIDTH))])


def with_gradients(model: PreTrainedModel, batches: Batches) -> None:
    observe_gradients(model, batches, channel_groups(model, WIDTH))


@torch.no_grad()
def again_for_every_subset(model: PreTrainedModel, batches: Batches) -> list[list[int]]:
    """The published way: the block's inputs and outputs once, then the block over each subset, with routing redone."""
    chosen = []
    for block in find_blocks(model):
        inputs: list[torch.Tensor] = []
        outputs: list[torch.Tensor] = []
        handles = [
            block.module.register_forward_pre_hook(lambda module, args, seen=inputs: seen.append(args[0])),
            block.module.register_forward_hook(lambda module, args, out, seen=outputs: seen.append(out)),
        ]
        forward(model, batches)
        for handle in handles:
            handle.remove()
        losses = {}
        for kept in itertools.combinations(range(EXPERTS), KEEP):
            with restricted(block, list(kept)):
                pairs = zip(inputs, outputs, strict=True)
                losses[kept] = sum(float(torch.linalg.vector_norm(y - block.module(x))) for x, y in pairs)
        chosen.append(list(min(losses, key=lambda kept: losses[kept])))
    return chosen


def once_for_all(model: PreTrainedModel, batches: Batches) -> list[list[int]]:
    found = calibrate(model, batches, reconstruction="layerwise").about.reconstruction["layerwise"]
    return [block.keep[KEEP].kept for block in found.values()]


def ratio(name: str, slow: Callable[[], Any], fast: Callable[[], Any]) -> None:
    """Prints slow/fast: both once to warm up (their answers must agree), then alternated."""
    if slow() != fast():
        raise SystemExit(f"{name}: the two do not agree")
    seconds: dict[str, list[float]] = {"slow": [], "fast": []}
    for _ in range(REPEATS):
        for which, run in (("slow", slow), ("fast", fast)):
            started = time.perf_counter()
            run()
            seconds[which].append(time.perf_counter() - started)
    ratios = [s / f for s, f in zip(seconds["slow"], seconds["fast"], strict=True)]
    middle = {which: statistics.median(values) for which, values in seconds.items()}
    print(
        f"{name}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}); "
        f"{middle['slow']:.2f} s against {middle['fast']:.2f} s",
        flush=True,
    )


def main() -> None:
    print(f"{platform.machine()}, {torch.get_num_threads()} thread(s), torch {torch.__version__}, float32, {REPEATS} repeats")
    model, batches = mixtral(layers=4), batches_of(count=4, size=4, length=128)
    print(f"Mixtral, hidden {HIDDEN}, width {WIDTH}, {EXPERTS} experts top {TOP_K}; 4 layers, 4 x 4 x 128 tokens")
    ratio("observing / bare forward", lambda: observed(model, batches), lambda: forward(model, batches))
    ratio(
        "observing with channels / bare forward", lambda: observed_with_channels(model, batches), lambda: forward(model, batches)
    )
    ratio("gradients of channels / bare forward", lambda: with_gradients(model, batches), lambda: forward(model, batches))
    model, batches = mixtral(layers=1), batches_of(count=2, size=4, length=128)
    print("1 layer, 2 x 4 x 128 tokens; 70 subsets of 4")
    ratio(
        "block again for every subset / exact search",
        lambda: again_for_every_subset(model, batches),
        lambda: once_for_all(model, batches),
    )


if __name__ == "__main__":
    main()
