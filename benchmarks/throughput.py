"""How fast pruning and calibration are that never hold the whole model, as ratios measured in one run:

    OMP_NUM_THREADS=1 python benchmarks/throughput.py

Pruning is compared with copying as many bytes as it keeps (both until they are on the disk, from a warm cache, without
verification); calibration layer by layer, from the files on, with calibration of the same model in memory. Each ratio is the
median over alternated repeats, with its range. Exit status 1 where one is below its target.
"""

import argparse
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

import toolkit
from toolkit.cuts.block_plan import BlockPlan
from toolkit.cuts.checkpoint import pruned_config
from toolkit.cuts.plan import Plan
from toolkit.cuts.writer import plan_prune, write_pruned
from toolkit.moe import find_blocks, load_config, load_model, meta_model

EXPERTS, TOP_K, KEEP = 8, 2, 4
TARGETS = {"pruning": 0.9, "calibration": 0.95}


def make(folder: Path, layers: int, hidden: int) -> None:
    """A Mixtral-shaped checkpoint of random float32 weights in several files."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "mixtral", vocab_size=1000, hidden_size=hidden, intermediate_size=2 * hidden, num_local_experts=EXPERTS,
        num_experts_per_tok=TOP_K, num_hidden_layers=layers, num_attention_heads=8, num_key_value_heads=8,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder, max_shard_size="400MB")


def batches_of(count: int, size: int, length: int) -> list[dict[str, torch.Tensor]]:
    ids = torch.randint(1000, (count, size, length), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": batch, "attention_mask": torch.ones_like(batch)} for batch in ids]


def plan_for(source: Path) -> Plan:
    """Every other expert of each block: no two rows that stay are neighbours."""
    kept = list(range(0, EXPERTS, EXPERTS // KEEP))
    blocks = {b.name: BlockPlan(experts=EXPERTS, kept=kept) for b in find_blocks(meta_model(load_config(str(source))))}
    return Plan.of_experts(model=str(source), criterion="every other", keep=KEEP, experts_per_token=TOP_K, blocks=blocks)


def prune(source: Path, plan: Plan, target: Path) -> None:
    job = plan_prune(source, plan)
    write_pruned(job, pruned_config(job), target, verify=lambda folder: None, facts={})


def copy(source: Path, target: Path) -> None:
    """`source`, file by file, until it is on the disk."""
    target.mkdir()
    for path in source.iterdir():
        shutil.copyfile(path, target / path.name)
        with (target / path.name).open("rb") as file:
            os.fsync(file.fileno())


def ratio(
    name: str,
    unit: str,
    amount: float,
    plain: Callable[[], Any],
    ours: Callable[[], Any],
    repeats: int,
    before: Callable[[], Any] = lambda: None,
) -> bool:
    """Prints the speed of `ours` over that of `plain`, after one run of each to warm up; whether it reaches its target.
    `before` each run something may have to be removed, off the clock."""
    seconds: dict[str, list[float]] = {"plain": [], "ours": []}
    for repeat in range(repeats + 1):
        for which, run in (("plain", plain), ("ours", ours)):
            before()
            started = time.perf_counter()
            run()
            if repeat:
                seconds[which].append(time.perf_counter() - started)
    ratios = [p / o for p, o in zip(seconds["plain"], seconds["ours"], strict=True)]
    found, speed = statistics.median(ratios), {which: amount / statistics.median(s) for which, s in seconds.items()}
    print(
        f"{name}: {found:.2f} ({min(ratios):.2f} to {max(ratios):.2f}) of {speed['plain']:,.2f} {unit}; "
        f"ours {speed['ours']:,.2f}; target {TARGETS[name]}",
        flush=True,
    )
    return found >= TARGETS[name]


def pruning(folder: Path, repeats: int) -> bool:
    source, kept, target = folder / "original", folder / "kept", folder / "target"
    plan = plan_for(source)
    prune(source, plan, kept)
    size = sum(file.stat().st_size for file in kept.iterdir())
    copying, ours = (lambda: copy(kept, target)), (lambda: prune(source, plan, target))
    return ratio("pruning", "GB/s copied", size / 1e9, copying, ours, repeats, lambda: shutil.rmtree(target, ignore_errors=True))


def calibration(folder: Path, repeats: int, count: int, length: int) -> bool:
    source, batches = str(folder / "original"), batches_of(count, 4, length)
    model = load_model(source)
    whole, layers = (lambda: toolkit.calibrate(model, batches)), (lambda: toolkit.calibrate(source, batches))
    return ratio("calibration", "tokens/s in memory", count * 4 * length, whole, layers, repeats)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", help="pruning, calibration (default: both)")
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--batches", type=int, default=8, help="of 4 sequences")
    parser.add_argument("--length", type=int, default=256, help="tokens of a sequence")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", help="on the disk to be measured (default: the temporary folder's)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        folder = Path(temporary)
        make(folder / "original", options.layers, options.hidden)
        size = sum(file.stat().st_size for file in (folder / "original").iterdir())
        print(
            f"{platform.machine()}, {torch.get_num_threads()} thread(s), torch {torch.__version__}, {options.repeats} repeats\n"
            f"Mixtral of {size / 1e9:.2f} GB: {options.layers} layers, hidden {options.hidden}, {EXPERTS} experts, {KEEP} kept"
        )
        reached = []
        if not options.what or "pruning" in options.what:
            reached.append(pruning(folder, options.repeats))
        if not options.what or "calibration" in options.what:
            reached.append(calibration(folder, options.repeats, options.batches, options.length))
    return 0 if all(reached) else 1


if __name__ == "__main__":
    sys.exit(main())
