"""Calibration, the exact search and pruning on a model of Mixtral-8x7B's shape with random weights, timed.

    python benchmarks/mixtral_shape.py                         # as many of the 32 layers as fit, 128 x 2,048 tokens

As many layers as fit are made on the GPU; every layer does the same work, so the table also says what all 32 would take
(the published search took 90 minutes for 8 -> 4 alone, arXiv 2402.14800). Random weights route evenly: no expert is idle,
which is the most work there can be. Without a GPU it runs in float32, and is there to be tried with tiny sizes.
"""

import argparse
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from toolkit.calibration import calibrate
from toolkit.cuts.apply import apply_plan
from toolkit.cuts.checkpoint import write_checkpoint
from toolkit.cuts.plan import Plan
from toolkit.moe import checkpoint_bytes, weight_bytes
from toolkit.selection import select

LAYERS, EXPERTS = 32, 8
KEEPS = (6, 4)
ROOM = 0.85  # of the GPU's memory for weights; the rest is for activations
T = TypeVar("T")


def shape(given: argparse.Namespace, layers: int) -> Any:
    """Mixtral-8x7B as published, unless made smaller."""
    return AutoConfig.for_model(
        "mixtral", hidden_size=given.hidden, intermediate_size=given.width, num_hidden_layers=layers,
        num_attention_heads=max(1, given.hidden // 128), num_key_value_heads=max(1, given.hidden // 512),
        max_position_embeddings=max(given.length, 2048), dtype=torch.bfloat16 if torch.cuda.is_available() else torch.float32,
    )  # fmt: skip


def layers_that_fit(given: argparse.Namespace) -> int:
    if not torch.cuda.is_available():
        return LAYERS
    one, two = (weight_bytes(shape(given, layers)) for layers in (1, 2))
    free = ROOM * torch.cuda.mem_get_info()[0]
    return max(1, min(LAYERS, int((free - one) // (two - one)) + 1))


def random_model(config: Any) -> PreTrainedModel:
    """Made where it will run, in its own dtype: never in the host's memory."""
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        return AutoModelForCausalLM.from_config(config, dtype=config.dtype).eval()


def batches_of(given: argparse.Namespace, vocabulary: int) -> list[Mapping[str, torch.Tensor]]:
    ids = torch.randint(vocabulary, (given.sequences, given.length), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in ids.split(given.batch_size)]


def timed(what: Callable[[], T]) -> tuple[T, float]:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    result = what()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, time.perf_counter() - started


def pruned(model: PreTrainedModel, plan: Plan) -> int:
    """Cuts the model and writes it; returns its bytes. Where the disk is too small for it, only cuts."""
    apply_plan(model, plan)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    if shutil.disk_usage(tempfile.gettempdir()).free < 1.1 * size:
        print(f"The disk has no room for {size / 2**30:.1f} GiB: the pruned model is cut, but not written.")
        return size
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(model, Path(folder))
        return checkpoint_bytes(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, help="as many as fit unless given")
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--width", type=int, default=14336)
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--batch-size", type=int, default=4)
    given = parser.parse_args()
    layers = given.layers or layers_that_fit(given)
    config = shape(given, layers)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({platform.machine()})"
    print(f"{time.strftime('%Y-%m-%d')}, {device}, torch {torch.__version__}, {str(config.dtype).removeprefix('torch.')}")
    print(f"Mixtral, {layers} of {LAYERS} layers, hidden {given.hidden}, width {given.width}, {EXPERTS} experts top 2")
    tokens = f"{given.sequences} x {given.length:,} = {given.sequences * given.length:,} tokens"
    print(f"{tokens}, {given.batch_size} sequences at a time")
    model = random_model(config)
    batches = batches_of(given, config.vocab_size)
    calibrate(model, batches[:1], reconstruction=True)  # kernels are compiled and memory is reserved by the first batch
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    print(f"\n{'':<42}{'seconds':>9}{f'x {LAYERS}/{layers} layers':>18}")

    def told(name: str, seconds: float) -> None:
        print(f"{name:<42}{seconds:>9.2f}{seconds * LAYERS / layers:>18.1f}", flush=True)

    _, seconds = timed(lambda: calibrate(model, batches))
    told("statistics of every criterion alone", seconds)
    statistics, seconds = timed(lambda: calibrate(model, batches, reconstruction=True))
    told("statistics, and every subset's loss", seconds)
    plans, choosing = timed(lambda: {keep: select(statistics, "reconstruction", keep) for keep in KEEPS})
    told(f"choosing 8 -> {' and '.join(map(str, KEEPS))}", choosing)
    size, cutting = timed(lambda: pruned(model, plans[KEEPS[-1]]))
    told(f"cutting to {KEEPS[-1]}, writing {size / 2**30:,.1f} GiB", cutting)
    told("calibration, exact selection and pruning", seconds + choosing + cutting)
    if torch.cuda.is_available():
        print(f"\nPeak GPU memory: {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")


if __name__ == "__main__":
    main()
