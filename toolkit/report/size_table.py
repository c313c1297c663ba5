"""A model's size after each of its cuts, in the terminal: of a plan, a run, a checkpoint."""

from collections.abc import Mapping

from rich import box
from rich.table import Table

from toolkit.cuts import ExpertsCut, LayersCut, Plan, ShapeSize, WidthCut
from toolkit.report.cut_facts import SizeFacts
from toolkit.runtime.formatting import MISSING, amount, percent, ranges

COLUMNS = ("", "layers", "experts", "per token", "width", "parameters", "active", "left")

ROWS = {"original": "original", "layers": "fewer layers", "experts": "fewer experts", "width": "narrower", "dense": "dense"}


def size_rows(sizes: Mapping[str, ShapeSize | SizeFacts]) -> list[list[str]]:
    """The cells under COLUMNS: the original, then what is left after each cut."""
    whole = next(iter(sizes.values()))
    return [
        [
            ROWS[kind], str(size.layers), str(size.experts), str(size.experts_per_token),
            MISSING if size.width is None else f"{size.width:,}", amount(size.parameters), amount(size.active_parameters),
            percent(size.parameters / whole.parameters),
        ]
        for kind, size in sizes.items()
    ]  # fmt: skip


def size_table(sizes: Mapping[str, ShapeSize | SizeFacts]) -> Table:
    table = Table(box=box.SIMPLE, show_edge=False, pad_edge=False, collapse_padding=True)
    for column in COLUMNS:
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for row in size_rows(sizes):
        table.add_row(*row)
    return table


def described_cuts(plan: Plan) -> dict[str, str]:
    """A line for each kind of cut, in the order in which people count."""
    lines = {}
    if layers := plan.cut(LayersCut):
        lines["layers"] = f"{len(layers.kept)} of {layers.layers} stay, by {layers.criterion}: {ranges(layers.kept)}"
    if experts := plan.cut(ExpertsCut):
        counts = set(experts.experts.values())
        of, blocks = " or ".join(map(str, sorted(counts))), len(experts.kept)
        chosen = f"{experts.keep} of {of} stay in each of {blocks} blocks, by {experts.criterion} over {experts.tokens} tokens"
        lines["experts"] = f"all {of} stay in each of {blocks} blocks" if counts == {experts.keep} else chosen
    if width := plan.cut(WidthCut):
        lines["width"] = f"{width.keep:,} channels of every expert stay, each its own, by {width.criterion}"
    if plan.form == "dense":
        lines["form"] = "dense: every token passes all experts that stay, as one feed-forward layer per block"
    return lines
