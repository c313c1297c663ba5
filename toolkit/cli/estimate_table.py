"""`pollard estimate`: what a recipe takes, in the terminal."""

from rich import box
from rich.markup import escape
from rich.table import Table

from toolkit.estimate import Estimate, StageEstimate
from toolkit.estimate.machine import USABLE
from toolkit.pipeline.relief import Combined
from toolkit.runtime.distributed import console, say
from toolkit.runtime.formatting import MISSING, amount, duration
from toolkit.runtime.formatting import size as as_size

GIB = 2**30
COLUMNS = ("GPU GiB", "host GiB", "disk GiB", "FLOP", "time", "fits")


def show_estimate(found: Estimate, advice: dict[str, list[str]], together: Combined) -> None:
    """Prints the plan, one row per stage, and as its last line whether it fits and what to change if not."""
    machine = found.machine
    nodes = f"{machine.nodes} nodes, each " if machine.nodes > 1 else ""
    kind = f" {machine.gpu.name}" if machine.gpu else ""
    gpus = f"{machine.gpus} x{kind} {gib(machine.gpu_memory)} GiB" if machine.gpus else "no GPU"
    kept = f"{found.experts[1]} of {found.experts[0]} experts per block"
    steps = MISSING if found.steps is None else f"{found.steps:,}"
    facts = {
        "machine": f"{nodes}{gpus}, {gib(machine.cpu_memory)} GiB of RAM; {machine.ranks} ranks",
        "parameters": f"{amount(found.parameters[0])} -> {amount(found.parameters[1])} ({kept})",
        "active": f"{amount(found.active[0])} -> {amount(found.active[1])} per token",
        "training": f"{steps} steps of {found.tokens_per_step:,} tokens",
        "disk": f"{gib(found.disk)} GiB in all",
    }
    say("[bold]Estimates, not measurements[/]")
    for name, value in facts.items():
        say(f"[bold]{name:<16}[/]{value}")
    say()
    table = Table(box=box.SIMPLE, show_edge=False, pad_edge=False, collapse_padding=True)
    table.add_column("stage", no_wrap=True)
    for column in COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    for stage in found.stages:
        lacks = stage.lacks(machine)
        fits = f"no: {' and '.join(lacks)}" if lacks else "yes"
        table.add_row(stage.name, gib(stage.gpu_bytes), gib(stage.host_bytes), gib(stage.disk), *costs(stage), fits)
    console.print(table)
    say()
    for stage in found.stages:
        say(f"[bold]{stage.name:<20}[/]{escape(stage.work)}")
        for where, parts in (("each GPU", stage.gpu), ("each host", stage.host)):
            if any(parts.values()):
                say(f"  {where}: " + " + ".join(f"{gib(size)} {part}" for part, size in parts.items() if size) + " GiB")
        for note in stage.notes:
            say(f"  [yellow]note:[/] {escape(note)}")
    say()
    for assumption in found.assumptions:
        say(f"[dim]assumed: {escape(assumption)}[/]")
    for line in verdict(found, advice, together):
        say(escape(line))


def verdict(found: Estimate, advice: dict[str, list[str]], together: Combined) -> list[str]:
    """The changes that help, stage by stage, and last the one line that says whether it fits, and what makes the whole recipe fit
    or is lacking whatever is changed."""
    if not found.lacking:
        return ["fits"]
    lines = []
    for stage, changes in advice.items():
        lines += [f"for {stage}: {change}" for change in changes]
        if not changes:
            lines.append(f"{stage}: too large whatever the recipe's other keys: more memory, or fewer experts")
    what = "; ".join(f"{name} ({' and '.join(lacks)} memory)" for name, lacks in found.lacking.items())
    if not together.estimate.lacking:
        return [*lines, f"does not fit: {what}. Change: {together}"]
    tried = f"Change: {together}; that does not suffice" if together.change else "No change of the recipe suffices"
    return [*lines, f"does not fit: {what}. {tried}: {lacking(together.estimate)}"]


def lacking(estimate: Estimate) -> str:
    """What is missing where, and how much: "evaluate/original lacks 27.4 GiB of GPU memory (101.0 GiB of 73.6 GiB usable)"."""
    machine, parts = estimate.machine, []
    for stage in estimate.stages:
        for where, needed, there in (
            ("GPU", stage.gpu_bytes, machine.gpu_memory),
            ("host", stage.host_bytes, machine.cpu_memory),
        ):
            if where in stage.lacks(machine):
                usable = int(USABLE * there)
                amounts = f"{as_size(needed - usable)} of {where} memory ({as_size(needed)} of {as_size(usable)} usable)"
                parts.append(f"{stage.name} lacks {amounts}")
    return "; ".join(parts)


def costs(stage: StageEstimate) -> tuple[str, str]:
    """Operations and time, in words."""
    flops = MISSING if stage.flops is None else f"{stage.flops:.1e}" if stage.flops else "0"
    return flops, duration(stage.seconds)


def gib(size: int) -> str:
    """Bytes: 16_777_216 -> "0.02"; from 10 GiB on with one digit."""
    return f"{size / GIB:,.1f}" if size >= 10 * GIB else f"{size / GIB:.2f}"
