"""Where the time of a training step goes, by torch's profiler: a table of parts for each method.

    python benchmarks/training_profile.py --hidden 512 --methods full,lora,qlora
    python benchmarks/training_profile.py --methods full --ways recover,packing,teacher,router --lengths gsm8k

Operations belong to the module in whose forward pass they ran, those of the backward pass to that of the operation they
differentiate. `python` is what passes between operations. With a GPU also the time of its kernels.
"""

import contextlib
import io
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from deepspeed.runtime.engine import DeepSpeedEngine
from playground_shaped import make
from torch.nn.modules import module as hooks
from torch.profiler import ProfilerActivity, profile, record_function
from training import ask_teacher, own, recipe_for, task_of, training_parser
from transformers import PreTrainedModel, Trainer
from trl import SFTTrainer

from toolkit.pipeline.run_directory import RunDirectory
from toolkit.recipe.schema import Recipe
from toolkit.recovery.distillation import DistilledTrainer
from toolkit.runtime.distributed import start, stop
from toolkit.runtime.zero import start_deepspeed

PRODUCTS, EXPERTS = "experts: matrix products", "experts: the rest"
ROUTER, ATTENTION, BETWEEN = "router", "attention", "norms, residuals"
LOSS, OPTIMIZER, DEEPSPEED, DATA, PYTHON = "logits, loss", "optimizer", "DeepSpeed, communication", "data", "python, other"
PARTS = (PRODUCTS, EXPERTS, ROUTER, ATTENTION, BETWEEN, LOSS, OPTIMIZER, DEEPSPEED, DATA, PYTHON)
MULTIPLYING = ("mm", "linear", "grouped_mm", "matmul", "gemm", "dequantize")  # in operations' names
CALLS = [  # whose time is a part's, unless a module within has one of its own
    (SFTTrainer, "compute_loss", LOSS), (DistilledTrainer, "compute_loss", LOSS), (DeepSpeedEngine, "step", OPTIMIZER),
    (DeepSpeedEngine, "backward", DEEPSPEED), (Trainer, "get_batch_samples", DATA),
]  # fmt: skip
Times = Counter[str]  # microseconds by part


def part_of(module: torch.nn.Module) -> str | None:
    name = type(module).__name__
    if hasattr(module, "is_transposed") and hasattr(module, "has_gate"):
        return EXPERTS
    if name.endswith(("Router", "Gate")):
        return ROUTER
    if name.endswith("Attention"):
        return ATTENTION
    return BETWEEN if isinstance(module, PreTrainedModel) and hasattr(module, "layers") else None


@contextlib.contextmanager
def marking_parts() -> Iterator[None]:
    """Inside the context forward passes of modules, and CALLS, leave ranges named after their parts in a profile."""
    running: dict[int, list[Any]] = {}

    def before(module: torch.nn.Module, args: Any) -> None:
        if part := part_of(module):
            mark = record_function(part)
            mark.__enter__()
            running.setdefault(id(module), []).append(mark)

    def after(module: torch.nn.Module, args: Any, output: Any) -> None:
        if part_of(module):
            running[id(module)].pop().__exit__(None, None, None)

    def marked(call: Any, part: str) -> Any:
        def inside(*args: Any, **kwargs: Any) -> Any:
            with record_function(part):
                return call(*args, **kwargs)

        return inside

    with contextlib.ExitStack() as stack:
        for handle in (
            hooks.register_module_forward_pre_hook(before),
            hooks.register_module_forward_hook(after, always_call=True),
        ):
            stack.callback(handle.remove)
        for kind, name, part in CALLS:
            stack.enter_context(mock.patch.object(kind, name, marked(getattr(kind, name), part)))
        yield


def times_by_part(events: Any, device: bool) -> Times:
    """Of a profile's events, each with its parents: self time on the CPU, or on the device."""
    owners: dict[tuple[int, int], str] = {}  # of forward operations, by thread and number
    found: Times = Counter()
    backward = "autograd::engine::evaluate_function"

    def part(event: Any) -> str:
        above = event
        while above is not None:
            if above.name in PARTS:
                return str(above.name)
            if above.name.startswith(backward):
                return owners.get((above.fwd_thread, above.sequence_nr), DEEPSPEED)
            above = above.cpu_parent
        return PYTHON

    ordered = sorted((e for e in events if e.device_type.name == "CPU"), key=lambda e: e.time_range.start)
    for event in ordered:
        if event.sequence_nr >= 0 and not event.name.startswith(backward):
            owners.setdefault((event.thread, event.sequence_nr), part(event))
            if not event.cpu_children or event.name.startswith("aten::"):
                owners[event.thread, event.sequence_nr] = part(event)
    for event in ordered:
        took = event.self_device_time_total if device else event.self_cpu_time_total
        where = PYTHON if event.name in PARTS else part(event)  # a range's own time passes between operations
        if where == EXPERTS and any(word in event.name for word in MULTIPLYING):
            where = PRODUCTS
        found[where] += took
    return found


def profiled(recipe: Recipe, run: RunDirectory) -> tuple[Times, Times, float]:
    """Times on the CPU and on the GPU, and the seconds, of a whole training's steps."""
    gpu = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * gpu
    epoch, seconds = Trainer._run_epoch, [0.0]
    events: list[Any] = []

    def traced(*args: Any, **kwargs: Any) -> None:
        started = time.perf_counter()
        with profile(activities=activities) as profiler:
            epoch(*args, **kwargs)
            if gpu:
                torch.cuda.synchronize()
            seconds[0] = time.perf_counter() - started
        events.extend(profiler.events() or [])

    with contextlib.redirect_stdout(io.StringIO()), mock.patch.object(Trainer, "_run_epoch", traced), marking_parts():
        own(recipe, run)
    cpu = times_by_part(events, device=False)
    cpu[PYTHON] += max(0, round(seconds[0] * 1e6) - sum(cpu.values()))
    return cpu, times_by_part(events, device=True) if gpu else Counter(), seconds[0]


def table(columns: dict[str, tuple[Times, float]]) -> str:
    """Shares of each column, in Markdown; its last row is milliseconds per step."""
    lines = ["| part | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    for part in PARTS:
        shares = (times[part] / max(sum(times.values()), 1) for times, _ in columns.values())
        lines.append(f"| {part} | " + " | ".join(f"{share:.1%}" for share in shares) + " |")
    return "\n".join([*lines, "| ms a step | " + " | ".join(f"{each * 1000:,.0f}" for _, each in columns.values()) + " |"])


def main(arguments: Sequence[str] | None = None) -> None:
    options = training_parser(__doc__, steps=4, methods=["full", "lora", "qlora"]).parse_args(arguments)
    start()
    try:
        start_deepspeed()
        with tempfile.TemporaryDirectory() as temporary:
            run, task = RunDirectory("run", temporary), task_of(options.lengths, Path(temporary), options.batch * options.steps)
            make(run.pruned, options.layers, options.hidden, options.experts)
            columns: dict[str, tuple[Times, float]] = {}
            for method in options.methods:
                for way in options.ways:
                    recipe = recipe_for(options, task, method, way)
                    if recipe.finetuning.teacher:
                        ask_teacher(recipe, run)
                    cpu, gpu, seconds = profiled(recipe, run)
                    name = method if way == "recover" else f"{method}, {way}"
                    columns[name] = cpu, seconds / options.steps
                    if gpu:
                        columns[f"{name} (GPU)"] = gpu, sum(gpu.values()) / 1e6 / options.steps
                    print(f"{name}: {seconds / options.steps:.3f} s a step, profiled", flush=True)
            print("\n" + table(columns), flush=True)
    finally:
        stop()


if __name__ == "__main__":
    main()
