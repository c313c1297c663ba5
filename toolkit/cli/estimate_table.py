"""`pollard estimate`: what a recipe takes, in the terminal."""

from rich import box
from rich.markup import escape
from rich.table import Table

from toolkit.estimate import GIB, Estimate, StageEstimate
from toolkit.estimate.machine import USABLE
from toolkit.pipeline.advice import Advice
from toolkit.runtime.distributed import console, say
from toolkit.runtime.files import JsonObject
from toolkit.runtime.formatting import MISSING, amount, duration
from toolkit.runtime.formatting import size as as_size

COLUMNS = ("GPU GiB", "host GiB", "disk GiB", "FLOP", "time", "fits")


def show_estimate(estimate: Estimate, advice: Advice) -> None:
    """Prints the estimate, one row per stage, and as its last line whether it fits and what to change if not."""
    for name, value in _summary(estimate).items():
        say(f"[bold]{name:<16}[/]{value}" if value else f"[bold]{name}[/]")
    say()
    console.print(_table(estimate))
    say()
    for stage in estimate.stages:
        _show_stage(stage)
    say()
    for assumption in estimate.assumptions:
        say(f"[dim]assumed: {escape(assumption)}[/]")
    if estimate.at_most:
        say("[bold]note[/] no shape is chosen yet: the pruned model is the largest within the limits (pruning.fit)")
    for line in verdict(estimate, advice):
        say(escape(line))


def estimate_facts(estimate: Estimate, advice: Advice) -> JsonObject:
    """What `pollard estimate --json` prints: bytes, operations and seconds of every stage, whether it fits, what would."""
    stages = [
        {**vars(stage), "gpu_bytes": stage.gpu_bytes, "host_bytes": stage.host_bytes, "lacks": stage.lacks(estimate.machine)}
        for stage in estimate.stages
    ]
    changes = {
        "per_stage": {name: list(map(str, found)) for name, found in advice.per_stage.items()},
        "all": str(advice.combined),
    }
    return {
        **vars(estimate), "stages": stages, "disk": estimate.disk, "seconds": estimate.seconds, "fits": not estimate.lacking,
        "changes": changes,
    }  # fmt: skip


def _summary(estimate: Estimate) -> dict[str, str]:
    machine = estimate.machine
    nodes = f"{machine.nodes} nodes, each " if machine.nodes > 1 else ""
    kind = f" {machine.gpu.name}" if machine.gpu else ""
    gpus = f"{machine.gpus} x{kind} {gib(machine.gpu_memory)} GiB" if machine.gpus else "no GPU"
    counts = (("experts per block", estimate.experts), ("channels per expert", estimate.width), ("layers", estimate.layers))
    cut = [(of, count) for of, count in counts if count and count[0] != count[1]] or counts[:1]
    kept = ", ".join(f"{count[1]:,} of {count[0]:,} {of}" for of, count in cut if count)
    most = "at most " * estimate.at_most
    steps = MISSING if estimate.steps is None else f"{estimate.steps:,}"
    return {
        "Estimates, not measurements": "",
        "machine": f"{nodes}{gpus}, {gib(machine.cpu_memory)} GiB of RAM; {machine.ranks} ranks",
        "parameters": f"{amount(estimate.parameters[0])} -> {most}{amount(estimate.parameters[1])} ({kept})",
        "active": f"{amount(estimate.active[0])} -> {most}{amount(estimate.active[1])} per token",
        "training": f"{steps} steps of {estimate.tokens_per_step:,} tokens",
        "disk": f"{gib(estimate.disk)} GiB in all",
    }


def _table(estimate: Estimate) -> Table:
    table = Table(box=box.SIMPLE, show_edge=False, pad_edge=False, collapse_padding=True)
    table.add_column("stage", no_wrap=True)
    for column in COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    for stage in estimate.stages:
        lacks = stage.lacks(estimate.machine)
        fits = f"no: {' and '.join(lacks)}" if lacks else "yes"
        table.add_row(stage.name, gib(stage.gpu_bytes), gib(stage.host_bytes), gib(stage.disk), *costs(stage), fits)
    return table


def _show_stage(stage: StageEstimate) -> None:
    """What the stage does, and of what its memory consists."""
    say(f"[bold]{stage.name:<19}[/] {escape(stage.work)}")
    for where, parts in (("each GPU", stage.gpu), ("each host", stage.host)):
        if any(parts.values()):
            say(f"  {where}: " + " + ".join(f"{gib(size)} {part}" for part, size in parts.items() if size) + " GiB")
    for note in stage.notes:
        say(f"  [yellow]note:[/] {escape(note)}")


def verdict(estimate: Estimate, advice: Advice) -> list[str]:
    """The changes that help, stage by stage, and last the one line that says whether it fits, and what makes the whole recipe fit
    or is lacking whatever is changed."""
    if not estimate.lacking:
        return ["fits"]
    lines = []
    for stage, changes in advice.per_stage.items():
        lines += [f"for {stage}: {change}" for change in changes]
        if not changes:
            lines.append(f"{stage}: too large whatever the recipe's other keys: more memory, or fewer experts")
    what = "; ".join(f"{name} ({' and '.join(lacks)} memory)" for name, lacks in estimate.lacking.items())
    change, changed = advice.combined, advice.estimate
    if not changed.lacking:
        return [*lines, f"does not fit: {what}. Change: {change}"]
    tried = f"Change: {change}; that does not suffice" if change else "No change of the recipe suffices"
    return [*lines, f"does not fit: {what}. {tried}: {lacking(changed)}"]


def lacking(estimate: Estimate) -> str:
    """What is missing where, and how much: "evaluate/original lacks 27.4 GiB of GPU memory (101.0 GiB of 73.6 GiB usable)"."""
    machine, parts = estimate.machine, []
    for stage in estimate.stages:
        for where, needed, installed in (
            ("GPU", stage.gpu_bytes, machine.gpu_memory),
            ("host", stage.host_bytes, machine.cpu_memory),
        ):
            if where in stage.lacks(machine):
                usable = int(USABLE * installed)
                amounts = f"{as_size(needed - usable)} of {where} memory ({as_size(needed)} of {as_size(usable)} usable)"
                parts.append(f"{stage.name} lacks {amounts}")
    return "; ".join(parts)


def costs(stage: StageEstimate) -> tuple[str, str]:
    """Operations and time, as text."""
    flops = MISSING if stage.flops is None else f"{stage.flops:.1e}" if stage.flops else "0"
    return flops, duration(stage.seconds)


def gib(size: int) -> str:
    """Bytes: 16_777_216 -> "0.02"; from 10 GiB on with one digit."""
    return f"{size / GIB:,.1f}" if size >= 10 * GIB else f"{size / GIB:.2f}"
