"""What skipping experts saves, in the experts' operations and in time, as ratios measured in one run:

    OMP_NUM_THREADS=1 python benchmarks/skipping.py                          # or --experts 64 --active 8 --rule 0.3
    python benchmarks/skipping.py --hidden 4096 --width 14336 --layers 4     # on a GPU: Mixtral-8x7B's layers

A Mixtral-shaped model of random weights reads prompts (prefill), then writes one token at a time for batches of several
sizes (decode), without and with skipping in turn (A B A B …). Each ratio is the median over the repeats, with its range: above
1 skipping is faster. Random routers are undecided, but thresholds are quantiles: the share that skips is as asked. Every line
is printed as soon as it is measured; on a GPU the exit status is 1 where one is below its target.
"""

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from toolkit.calibration import skipping_thresholds
from toolkit.moe import counting_skips, find_blocks, skipping

TARGETS = {"prefill": 1.05, "decode": 1.0}  # on a GPU, with a quarter of the experts' work skipped


def model_parser(description: str | None) -> argparse.ArgumentParser:
    """Of the arguments that `make` takes, and how often to measure."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--active", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--implementation", help="transformers' own: eager, grouped_mm, batched_mm (its choice unless given)")
    return parser


def described(model: PreTrainedModel, given: argparse.Namespace) -> str:
    """The machine, and the model that `make` has made."""
    where = torch.cuda.get_device_name() if model.device.type == "cuda" else f"{platform.machine()}, CPU"
    return (
        f"{where}, {torch.get_num_threads()} thread(s), torch {torch.__version__}, {str(model.dtype).removeprefix('torch.')}, "
        f"{model.config._experts_implementation}, {given.repeats} repeats\n"
        f"Mixtral: {given.layers} layers, hidden {given.hidden}, width {given.width}, {given.experts} experts, "
        f"{given.active} active"
    )


def make(given: argparse.Namespace) -> PreTrainedModel:
    torch.manual_seed(0)
    gpu = torch.cuda.is_available()
    config = AutoConfig.for_model(
        "mixtral", vocab_size=1000, hidden_size=given.hidden, intermediate_size=given.width, num_local_experts=given.experts,
        num_experts_per_tok=given.active, num_hidden_layers=given.layers, num_attention_heads=8, num_key_value_heads=8,
    )  # fmt: skip
    with torch.device("cuda" if gpu else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16 if gpu else torch.float32).eval()
    for block in find_blocks(model):  # so that tokens differ in what they choose
        torch.nn.init.normal_(block.router.weight, std=1 / given.hidden**0.5)  # type: ignore[arg-type]
    if given.implementation:
        model.set_experts_implementation(given.implementation)
    return model


def tokens(model: PreTrainedModel, batch: int, length: int, seed: int) -> torch.Tensor:
    return torch.randint(1000, (batch, length), generator=torch.Generator().manual_seed(seed)).to(model.device)


def seconds(model: PreTrainedModel, run: Callable[[], Any]) -> tuple[float, float]:
    """By the clock, and of the CPU: the latter count where a machine is shared."""
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    started, cpu = time.perf_counter(), time.process_time()
    run()
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started, time.process_time() - cpu


def decode(model: PreTrainedModel, prompt: torch.Tensor, steps: int) -> Callable[[], None]:
    """Goes on for `steps` tokens behind a prompt that has been read already: with tokens drawn beforehand, since what random
    weights write goes round in circles."""
    cache, drawn = model(prompt, use_cache=True).past_key_values, tokens(model, len(prompt), steps, 4)

    def run() -> None:
        for step in range(steps):
            model(drawn[:, step : step + 1], past_key_values=cache, use_cache=True).logits.argmax(-1)
        cache.crop(-steps)

    return run


def compare(name: str, model: PreTrainedModel, thresholds: Any, run: Callable[[], Any], amount: int, repeats: int) -> bool:
    """Prints tokens/s without and with skipping, and the ratio; whether it is not below its target, where there is one."""
    found: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    for repeat in range(repeats + 1):  # the first warms up
        found[False].append(seconds(model, run))
        with skipping(model, thresholds):
            found[True].append(seconds(model, run))
        if not repeat:
            found = {False: [], True: []}
    pairs = list(zip(found[False], found[True], strict=True))
    ratios, cpu_ratios = ([before[which] / after[which] for before, after in pairs] for which in (0, 1))
    with skipping(model, thresholds), counting_skips(model) as counter:
        run()
    speed = [amount / statistics.median(clock for clock, _ in found[on]) for on in (False, True)]
    cpu = f"; CPU-seconds {statistics.median(cpu_ratios):.2f} ({min(cpu_ratios):.2f} to {max(cpu_ratios):.2f})"
    target = TARGETS[name.partition(",")[0]] if model.device.type == "cuda" else 0.0
    print(
        f"{name:<20} {speed[0]:>10,.0f} -> {speed[1]:>10,.0f} tokens/s: {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f}){f'; target {target}' if target else cpu}; "
        f"{counter.take().saved:.1%} of the experts skipped",
        flush=True,
    )
    return statistics.median(ratios) >= target


def expert_flops(model: PreTrainedModel, ids: torch.Tensor) -> int:
    """As torch counts them, which knows no grouped products."""
    names = {block.experts_name for block in find_blocks(model)}
    with FlopCounterMode(display=False) as counter:
        model(ids, use_cache=False)
    counts = {name.partition(".")[2]: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    return sum(counts[name] for name in names)


@torch.no_grad()
def main() -> int:
    parser = model_parser(__doc__)
    parser.add_argument("--rule", default="median", help="median, or a share")
    parser.add_argument("--prompts", type=int, nargs="*", default=[8], help="read at once")
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 8, 32], help="sizes to decode with")
    parser.add_argument("--length", type=int, default=128, help="tokens of a prompt")
    parser.add_argument("--steps", type=int, default=32, help="tokens written")
    given = parser.parse_args()
    model = make(given)
    batches = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in tokens(model, 16, given.length, 0).split(4)]
    thresholds = skipping_thresholds(model, batches, "median" if given.rule == "median" else float(given.rule))
    print(f"{described(model, given)}, skipping: {given.rule}")
    kept, ids = model.config._experts_implementation, tokens(model, 4, given.length, 1)
    model.set_experts_implementation("eager")
    whole = expert_flops(model, ids)
    with skipping(model, thresholds), counting_skips(model) as counter:
        less = expert_flops(model, ids)
    model.set_experts_implementation(kept)
    saved = f"{less / whole:.4f}; {counter.take().saved:.2%} of the experts skipped"
    print(f"{'experts, operations':<20} {whole / 1e9:>10,.2f} -> {less / 1e9:>10,.2f} GFLOP: {saved}")
    reached = []
    for count in given.prompts:
        read = partial(model, tokens(model, count, given.length, 2), use_cache=False)
        reached.append(compare(f"prefill, {count} prompts", model, thresholds, read, count * given.length, given.repeats))
    for batch in given.batches:
        run = decode(model, tokens(model, batch, given.length, 3), given.steps)
        reached.append(compare(f"decode, batch {batch}", model, thresholds, run, batch * given.steps, given.repeats))
    return 0 if all(reached) else 1


if __name__ == "__main__":
    sys.exit(main())
