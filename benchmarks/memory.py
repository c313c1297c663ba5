"""Peak memory of calibration, pruning and refit on a checkpoint larger than they may need, at two depths:

    OMP_NUM_THREADS=1 python benchmarks/memory.py

Writes Mixtral-shaped checkpoints of random float32 weights (one file per layer), with some layers and with twice as many,
and does each piece of work in a process of its own. Its memory is RssAnon above what the imports take: pages of mapped
files do not count, for they are the system's to drop. Bounds:

    calibration   embeddings + 2 decoder layers + activations + 1 GB
    pruning       the largest file + 0.5 GB
    refit         embeddings + 2 decoder layers of the original and of the pruned model + activations + one Gram matrix + 1 GB

The exit status is 1 where one is broken.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from safetensors.torch import save_file

import toolkit
from toolkit.cuts.block_plan import BlockPlan
from toolkit.cuts.plan import Plan
from toolkit.moe import find_blocks, load_config, meta_model
from toolkit.recovery.refit import refit_checkpoint
from toolkit.recovery.refit.tokens import GROUP_CHANNELS

EXPERTS, TOP_K, HEADS = 8, 2, 8
KEPT = [0, 2, 5, 7]
BYTES, GB = 4, 10**9
SAMPLES_PER_SECOND = 200


class Size(NamedTuple):
    """Of the model, and of what it is calibrated on: `batches` of 2 sequences."""

    layers: int
    hidden: int
    width: int
    vocabulary: int
    batches: int
    length: int

    def layer(self, experts: int = EXPERTS) -> int:
        """Bytes of one decoder layer."""
        norms_and_router = (2 + experts) * self.hidden
        return BYTES * (4 * self.hidden**2 + 3 * experts * self.hidden * self.width + norms_and_router)

    @property
    def embeddings(self) -> int:
        return BYTES * self.vocabulary * self.hidden

    @property
    def activations(self) -> int:
        """The hidden states of all tokens, and one batch on its way through its experts."""
        batch = 2 * self.length
        inside = 3 * self.hidden + 3 * self.width  # input, output and weighted output; gate, up and their product
        return BYTES * (self.batches * batch * self.hidden + batch * TOP_K * inside)

    @property
    def refit_activations(self) -> int:
        """The same for two models; and of every token what the experts get, what the stream lacks, and its target."""
        return 2 * self.activations + 3 * BYTES * self.batches * 2 * self.length * self.hidden

    @property
    def gram(self) -> int:
        """Bytes of the largest matrix of refit: as many experts as one group of channels holds."""
        experts = min(len(KEPT), max(1, GROUP_CHANNELS // self.width))
        return 8 * (experts * self.width) ** 2


def write_checkpoint(folder: Path, size: Size) -> None:
    config = transformers.AutoConfig.for_model(
        "mixtral", vocab_size=size.vocabulary, hidden_size=size.hidden, intermediate_size=size.width, num_local_experts=EXPERTS,
        num_experts_per_tok=TOP_K, num_hidden_layers=size.layers, num_attention_heads=HEADS, num_key_value_heads=HEADS,
        tie_word_embeddings=False, dtype="float32", architectures=["MixtralForCausalLM"],
    )  # fmt: skip
    config.save_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    where: dict[str, str] = {}

    def write(file: str, shapes: dict[str, tuple[int, ...]]) -> None:
        save_file({name: torch.randn(shape, generator=generator) * 0.02 for name, shape in shapes.items()}, folder / file)
        where.update(dict.fromkeys(shapes, file))

    h, i = size.hidden, size.width
    for layer in range(size.layers):
        path = f"model.layers.{layer}"
        attention = {f"{path}.self_attn.{name}_proj.weight": (h, h) for name in "qkvo"}
        norms = {f"{path}.{name}_layernorm.weight": (h,) for name in ("input", "post_attention")}
        block = f"{path}.block_sparse_moe"
        experts = {
            f"{block}.experts.{expert}.{name}.weight": shape
            for expert in range(EXPERTS)
            for name, shape in {"w1": (i, h), "w2": (h, i), "w3": (i, h)}.items()
        }
        write(f"layer-{layer:03}.safetensors", {**attention, **norms, f"{block}.gate.weight": (EXPERTS, h), **experts})
    ends: dict[str, tuple[int, ...]] = {f"{name}.weight": (size.vocabulary, h) for name in ("model.embed_tokens", "lm_head")}
    write("ends.safetensors", {**ends, "model.norm.weight": (h,)})
    index = {"metadata": {"total_size": sum(file.stat().st_size for file in folder.glob("*.safetensors"))}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def batches_of(size: Size) -> list[dict[str, torch.Tensor]]:
    ids = torch.randint(size.vocabulary, (size.batches, 2, size.length), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": batch, "attention_mask": torch.ones_like(batch)} for batch in ids]


def calibrate(folder: str, size: Size) -> None:
    toolkit.calibrate(folder, batches_of(size))


def prune(folder: str, size: Size) -> None:
    blocks = {block.name: BlockPlan(experts=EXPERTS, kept=KEPT) for block in find_blocks(meta_model(load_config(folder)))}
    plan = Plan.of_experts(model=folder, criterion="by hand", keep=len(KEPT), experts_per_token=TOP_K, blocks=blocks)
    toolkit.prune(folder, plan, Path(folder).with_name("pruned"))


def refit(folder: str, size: Size) -> None:
    """Of what `prune` has left."""
    refit_checkpoint(folder, Path(folder).with_name("pruned"), Path(folder).with_name("refitted"), batches_of(size))


WORK: dict[str, Callable[[str, Size], None]] = {"calibration": calibrate, "pruning": prune, "refit": refit}


def anonymous() -> int:
    """This process's RssAnon, in bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("RssAnon:")[1].split()[0])


def measure(work: str, folder: str, size: Size) -> dict[str, float]:
    """In this process: the seconds that the work takes, and the most that it adds to what the imports take."""
    before, started = anonymous(), time.perf_counter()
    peak = peak_during(lambda: WORK[work](folder, size), anonymous, SAMPLES_PER_SECOND)
    return {"peak": peak - before, "seconds": time.perf_counter() - started}


def peak_during(work: Callable[[], object], held: Callable[[], int], per_second: int) -> int:
    """The most bytes that were `held` while `work` ran, sampled."""
    peak, done = 0, threading.Event()

    def sample() -> None:
        nonlocal peak
        while not done.wait(1 / per_second):
            peak = max(peak, held())

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        work()
    finally:
        done.set()
        sampler.join()
    return peak


def bounds(folder: Path, size: Size) -> dict[str, int]:
    largest = max(file.stat().st_size for file in folder.glob("*.safetensors"))
    return {
        "calibration": size.embeddings + 2 * size.layer() + size.activations + GB,
        "pruning": largest + GB // 2,
        "refit": size.embeddings + 2 * (size.layer() + size.layer(len(KEPT))) + size.refit_activations + size.gram + GB,
    }


def show(work: str, size: Size, checkpoint: int, found: dict[str, float], bound: int) -> bool:
    """Prints one line; whether the bound holds."""
    holds = found["peak"] <= bound
    print(
        f"{work:<12} {size.layers:>3} layers  checkpoint {checkpoint / GB:6.2f} GB  peak {found['peak'] / GB:6.3f} GB  "
        f"bound {bound / GB:6.3f} GB  {found['seconds']:6.1f} s{'' if holds else '  BROKEN'}",
        flush=True,
    )
    return holds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8, help="and twice as many")
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--width", type=int, default=3584, help="of an expert")
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--batches", type=int, default=8, help="of two sequences")
    parser.add_argument("--length", type=int, default=128, help="tokens per sequence")
    parser.add_argument("--folder", help="where the checkpoints are written, and removed again (default: a temporary one)")
    parser.add_argument("--measure", nargs=2, metavar=("WORK", "CHECKPOINT"), help="one piece of work, in this process")
    options: Any = parser.parse_args()
    size = Size(options.layers, options.hidden, options.width, options.vocabulary, options.batches, options.length)
    if options.measure:
        print(json.dumps(measure(*options.measure, size)))
        return
    held = True
    for layers in (size.layers, 2 * size.layers):
        deep = size._replace(layers=layers)
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            path = Path(folder) / "checkpoint"
            path.mkdir()
            write_checkpoint(path, deep)
            for work in WORK:
                arguments = [f"--{name}={value}" for name, value in deep._asdict().items()]
                command = [sys.executable, __file__, *arguments, "--measure", work, str(path)]
                out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                checkpoint = sum(file.stat().st_size for file in path.glob("*.safetensors"))
                found = json.loads(out.splitlines()[-1])
                held &= show(work, deep, checkpoint, found, bounds(path, deep)[work])
    if not held:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
