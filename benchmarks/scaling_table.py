"""What large models would take, by `pollard estimate`'s own numbers: python benchmarks/scaling_table.py > docs/scaling.md

The models are their published configurations (benchmarks/scaling/*/config.json): no weights, no network, no GPU.
"""

import contextlib
import io
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import scaling_fit

from toolkit.cli.estimate_table import gib, lacking
from toolkit.estimate import Estimate, Machine, StageEstimate, resolve_machine
from toolkit.estimate.refit import WIDE_SHARE
from toolkit.pipeline.advice import advise
from toolkit.pipeline.estimator import Estimator
from toolkit.recipe.file import load_recipe
from toolkit.recipe.schema import Recipe
from toolkit.runtime.formatting import MISSING, amount

MODELS = {"mixtral-8x7b": "Mixtral-8x7B", "qwen3-235b-a22b": "Qwen3-235B-A22B", "deepseek-v3": "DeepSeek-V3"}
REFIT_MODELS = {"mixtral-8x7b": "Mixtral-8x7B", "qwen3-30b-a3b": "Qwen3-30B-A3B", "deepseek-v3": "DeepSeek-V3"}
GPU, RAM = "h100", "2T"  # 80 GiB each; RAM per node of up to eight
# 128 examples per step everywhere: GPUs -> nodes, ZeRO, examples per micro-batch, micro-batches per step
MACHINES = {1: (1, "3-offload", 2, 64), 8: (1, "3", 2, 8), 64: (8, "3", 2, 1)}
HEAD = """# At scale, on paper

What [recipes/math.yaml](../recipes/math.yaml) (GSM8K, half of the experts kept, three epochs) would take of large models on
1, 8 and 64 GPUs: H100 with 80 GiB, nodes of eight with 2 TiB of RAM. **Nothing on this page has been run at this size.**
These are the numbers of `pollard estimate`, from the published configurations alone; what they rest on is checked on small
models (memory within 15 %: tests/estimate), and the hours rest on assumptions that nothing here checks.

This page is written by `python benchmarks/scaling_table.py > docs/scaling.md`, and a test keeps it in step. For your own:

    pollard estimate recipes/math.yaml --nodes 8 --gpus 8 --gpu h100 --cpu-memory 2T finetuning.zero=3

## How it is counted

- Parameters: of the model built on the meta device, cut by the code that prunes.
- Forward: 2 operations per active parameter and token; backward 4; with gradient checkpointing 2 more. Attention's own
  products (a few percent at 1,024 tokens) are left out.
- Every example counts as `max_length` = 1,024 tokens. GSM8K's are shorter, so hours are upper bounds in that.
- Hours: {assumptions}.
- Fine-tuning: bfloat16 weights and gradients, a float32 master copy and AdamW's two float32 states (16 bytes per parameter
  together), partitioned by ZeRO-3 or, on one GPU, held in RAM; gradient checkpointing; 128 examples per step.
- With offload (one GPU) the optimizer runs on the CPU and everything crosses PCIe: the hours count neither, and are too few.
- Calibration holds two decoder layers at a time, and pruning checks one MoE block: neither grows with the number of layers.
  A model is evaluated with its layers spread over the GPUs of one node where one GPU is too small, and in parts over all
  ranks (ZeRO-3) where a node is; hours do not count what is sent between GPUs then.
- DeepSeek-V3 is published in FP8; training needs numbers that can be trained, so its bfloat16 copy is counted.

GPU GiB is per GPU at the fullest moment, GPU-hours are over all GPUs. Bold: does not fit.
"""


REFIT = """## Refit beside fine-tuning

The same recipe with `pruning.refit: true` ([Refit](refit.md)): 512 examples go once through the original and three times
through the pruned model; each layer's systems of equations are solved, and its experts' projections take their steps. That
is a quarter to four tenths of fine-tuning's operations, with one layer of each model in memory (two while the next arrives:
of DeepSeek-V3 too much for this GPU as well). But most of them are in float32 and float64, counted at a {wide}th of a GPU's
bfloat16 speed (H100, A100; cards for games are slower), and rank 0 alone solves the systems, on its GPU, while the others
wait: in hours of the clock, on so many GPUs of one node, it takes longer than fine-tuning where that fits. On one GPU
fine-tuning is offloaded, and its hours are too few.

| model | GPUs | refit: FLOP | GPU GiB | host GiB | hours | fine-tuning: FLOP | GPU GiB | host GiB | hours |
|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|
"""


def recipe_for(name: str, gpus: int, refit: bool = False) -> Recipe:
    _, zero, micro_batch, accumulation = MACHINES[gpus]
    trainer = f"per_device_train_batch_size={micro_batch} gradient_accumulation_steps={accumulation}"
    overrides = [f"finetuning.trainer.{setting}" for setting in trainer.split()]
    overrides += [f"model={ROOT / 'benchmarks' / 'scaling' / name}", "pruning.keep=0.5", f"finetuning.zero={zero}"]
    overrides += ["pruning.refit=true"] * refit
    return load_recipe(ROOT / "recipes" / "math.yaml", overrides)


def section(name: str) -> str:
    """One model's table, and what follows from it."""
    shared, found, lines = Estimator(resolve_machine(gpu=GPU)), {}, []
    for gpus, (nodes, *_) in MACHINES.items():
        estimator = shared.on(resolve_machine(gpus // nodes, nodes, GPU, cpu_memory=RAM))
        found[gpus] = estimator.estimate(recipe_for(name, gpus))
        lines.append(_verdict(estimator, recipe_for(name, gpus), found[gpus], gpus))
    one = found[1]
    facts = (
        f"{amount(one.parameters[0])} parameters, {amount(one.active[0])} active; pruned from {one.experts[0]} to "
        f"{one.experts[1]} experts per block {amount(one.parameters[1])}, {amount(one.active[1])} active. "
        f"Written to disk: {gib(one.disk)} GiB."
    )
    columns = [f"{gpus} GPU{'s' * (gpus > 1)}: GPU GiB | host GiB | GPU-hours" for gpus in MACHINES]
    table = [f"| stage | FLOP | {' | '.join(columns)} |", "|---|" + "---:|" * (1 + 3 * len(MACHINES))]
    for number, stage in enumerate(one.stages):
        cells = [cell for gpus in MACHINES for cell in _cells(found[gpus].stages[number], found[gpus].machine, gpus)]
        flops = f"{stage.flops:.1e}" if stage.flops else MISSING
        table.append(f"| {stage.name} | {flops} | {' | '.join(cells)} |")
    return "\n".join([f"## {MODELS[name]}", "", facts, "", *table, "", *lines, ""])


def refit_rows(name: str) -> str:
    """A row for each machine: what refit takes of a model, and what fine-tuning the same pruned model does."""
    shared, rows = Estimator(resolve_machine(gpu=GPU)), ""
    for gpus in (1, 8):
        estimator, recipe = shared.on(resolve_machine(gpus, 1, GPU, cpu_memory=RAM)), recipe_for(name, gpus, refit=True)
        found = [estimator.stage(recipe, stage).estimate(estimator.machine) for stage in ("refit", "recover")]
        cells = [cell for estimate in found if estimate for cell in _refit_cells(estimate, estimator.machine)]
        rows += f"| {REFIT_MODELS[name]} | {gpus} | {' | '.join(cells)} |\n"
    return rows


def refit_head() -> str:
    return REFIT.format(wide=round(1 / WIDE_SHARE))


def _refit_cells(stage: StageEstimate, machine: Machine) -> list[str]:
    return [f"{stage.flops:.1e}" if stage.flops else MISSING, *_cells(stage, machine, gpus=1)]  # hours of the clock


def _cells(stage: StageEstimate, machine: Machine, gpus: int) -> list[str]:
    lacks = stage.lacks(machine)
    memory = [
        f"**{gib(size)}**" if where in lacks else gib(size)
        for where, size in (("GPU", stage.gpu_bytes), ("host", stage.host_bytes))
    ]
    return [*memory, MISSING if stage.seconds is None else f"{gpus * stage.seconds / 3600:,.1f}"]


def _verdict(estimator: Estimator, recipe: Recipe, estimate: Estimate, gpus: int) -> str:
    where = f"- On {gpus} GPU{'s' * (gpus > 1)} "
    if not estimate.lacking:
        return where + "every stage fits."
    fits = [stage.name for stage in estimate.stages if stage.name not in estimate.lacking]
    advice, needed = advise(estimator, recipe, estimate), []
    for name, changes in advice.per_stage.items():
        needed.append(
            f"{name} (change: `{changes[0]}`)"
            if changes
            else f"{name} (too large whatever the recipe's other keys: more memory, or fewer experts)"
        )
    rest = f"; that does not suffice: {lacking(advice.estimate)}" if advice.estimate.lacking else ", all of it fits"
    return where + f"{', '.join(fits)} fit. Not: {'; '.join(needed)}. With `{advice.combined}`{rest}."


def fit_machine() -> Machine:
    return resolve_machine(8, 1, GPU, cpu_memory=RAM)


def head() -> str:
    time, disk = "", ""
    for assumption in Estimator(resolve_machine(gpu=GPU)).assumptions():
        time = assumption.removeprefix("time: ") if assumption.startswith("time: ") else time
        disk = assumption.removeprefix("disk: ") if assumption.startswith("disk: ") else disk
    return HEAD.format(assumptions=f"{time}; disk {disk}")


def page() -> str:
    parts = [head(), *(section(name) for name in MODELS), refit_head() + "".join(map(refit_rows, REFIT_MODELS))]
    return "\n".join([*parts, scaling_fit.section(fit_machine())])


if __name__ == "__main__":
    with contextlib.redirect_stdout(io.StringIO()):  # libraries talk; the page is what is printed
        text = page()
    sys.stdout.write(text)
