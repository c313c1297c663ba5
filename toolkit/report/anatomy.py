"""`pollard inspect`: what a model is made of, in the terminal."""

from rich import box
from rich.table import Table

from toolkit.distributed import console, say
from toolkit.moe import Anatomy
from toolkit.report.formats import amount, size


def show_anatomy(found: Anatomy) -> None:
    """Prints the parts of the model, and how large it would be with fewer experts."""
    groups = f", from the best {found.groups_per_token} of {found.groups} groups" if found.groups > 1 else ""
    shared = f"{amount(found.shared_parameters)} parameters, never pruned" if found.shared_parameters else "none"
    share = found.expert_parameters / found.parameters
    facts = {
        "family": found.family,
        "MoE blocks": f"{found.blocks}, with {found.experts} experts each",
        "per token": f"{found.experts_per_token} experts{groups}",
        "shared experts": shared,
        "parameters": f"{amount(found.parameters)}, {amount(found.active_parameters)} of them active per token",
        "in experts": f"{amount(found.expert_parameters)} ({share:.0%})",
        "checkpoint": f"{size(found.parameters * found.bytes_per_parameter)} in {str(found.dtype).removeprefix('torch.')}",
    }
    for name, value in facts.items():
        say(f"[bold]{name:<16}[/]{value}")
    say()
    table = Table(box=box.SIMPLE, show_edge=False, pad_edge=False, collapse_padding=True)
    for column in ("experts kept", "parameters", "active", "checkpoint", "of the original"):
        table.add_column(column, justify="right", no_wrap=True)
    for keep, left in found.pruned.items():
        bytes_left = size(left.parameters * found.bytes_per_parameter)
        part = f"{left.parameters / found.parameters:.0%}"
        table.add_row(str(keep), amount(left.parameters), amount(left.active_parameters), bytes_left, part)
    console.print(table)
