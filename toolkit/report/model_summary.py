"""`pollard inspect`: what a model is made of, in the terminal."""

from rich import box
from rich.table import Table

from toolkit.cuts.model_summary import ModelSummary
from toolkit.runtime.distributed import console, say
from toolkit.runtime.formatting import MISSING, amount, size

NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8",
    "I32": "int32",
    "U8": "uint8",
}


def show_model_summary(found: ModelSummary) -> None:
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
        "checkpoint": checkpoint(found),
    }
    for name, value in facts.items():
        say(f"[bold]{name:<16}[/]{value}")
    say()
    table = Table(box=box.SIMPLE, show_edge=False, pad_edge=False, collapse_padding=True)
    for column in ("experts kept", "parameters", "active", "checkpoint", "of the original"):
        table.add_column(column, justify="right", no_wrap=True)
    for keep, left in found.pruned.items():
        bytes_left = size(found.stored.pruned[keep]) if found.stored else MISSING
        if not found.stored and not found.quantization:
            bytes_left = size(left.parameters * found.bytes_per_parameter)
        part = f"{left.parameters / found.parameters:.0%}"
        table.add_row(str(keep), amount(left.parameters), amount(left.active_parameters), bytes_left, part)
    console.print(table)


def checkpoint(found: ModelSummary) -> str:
    """How large the files are, and in which numbers: as their headers say, or as the configuration makes them."""
    plain = str(found.dtype).removeprefix("torch.")
    if found.stored is None:
        if found.quantization:
            return f"{found.quantization}, computed in {plain}; how large is said by its files, which are not here"
        return f"{size(found.parameters * found.bytes_per_parameter)} in {plain}"
    shares = {NAMES.get(name, name): count / found.stored.bytes for name, count in found.stored.dtypes.items()}
    parts = ", ".join(f"{name} {share:.0%}" for name, share in shares.items() if round(share, 2) > 0)
    formats = next(iter(shares)) if len(shares) == 1 or next(iter(shares.values())) > 0.995 else parts
    return f"{size(found.stored.bytes)} in {f'{found.quantization} ({formats})' if found.quantization else formats}"
