"""A sweep's table: from the cells to what they say, in the terminal and for the page."""

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from toolkit.runtime.distributed import console, is_main, say
from toolkit.runtime.formatting import interval, loss, percent

Row = dict[str, Any]


def tabulate(rows: Sequence[Row]) -> dict[str, Any]:
    """sweep/table.json: `rows` (the original first), per label the fewest experts that hold, and what follows from it.

    A number of experts holds where every cell's interval overlaps the original's.
    """
    original, *cells = rows
    ordered = sorted(cells, key=lambda row: -row["keep"])
    labels = list(dict.fromkeys(row["label"] for row in cells))
    holding: dict[str, int | None] = {}
    for label in labels:
        at = {keep: at_keep(ordered, label, keep) for keep in {row["keep"] for row in cells if row["label"] == label}}
        holds = [keep for keep, found in at.items() if keep < original["keep"] and all(_overlap(row, original) for row in found)]
        holding[label] = min(holds, default=None)
    return {
        "format": 2, "task": original["task"]["name"], "split": "dev", "n": original["task"]["n"],
        "off_task": original["off_task"] and original["off_task"]["name"], "experts": original["keep"],
        "rows": [original, *sorted(ordered, key=lambda row: labels.index(row["label"]))],
        "holding": holding, "recommendation": _recommendation(original, ordered, holding),
    }  # fmt: skip


def at_keep(rows: Sequence[Row], label: str, keep: int) -> list[Row]:
    """The cells of one label with that many experts: one, or one per seed."""
    return [row for row in rows if row["label"] == label and row["keep"] == keep]


def _overlap(row: Row, original: Row) -> bool:
    (low, high), (least, most) = row["task"]["interval"], original["task"]["interval"]
    return low <= most and least <= high


def _recommendation(original: Row, cells: Sequence[Row], holding: dict[str, int | None]) -> str:
    only = "These models are only pruned: fine-tuning wins back more, so that fewer experts may do after it."
    reference = (
        f"the original's ({_told(original['task'])}), on {original['task']['n']:,} dev questions of {original['task']['name']}"
    )
    if not original["task"]["correct"]:
        return (
            f"The original itself is right on none of {reference.rpartition('on ')[2]}: by accuracy there is nothing to compare."
        )
    chosen = {label: keep for label, keep in holding.items() if keep and not _random(label)}
    each = "Fewest that hold: " + ", ".join(f"{label} {keep or 'none'}" for label, keep in holding.items()) + "."
    if not chosen:
        keeps = sorted({row["keep"] for row in cells if row["keep"] < original["keep"]}, reverse=True)
        best = [max((row for row in cells if row["keep"] == keep), key=_quality) for keep in keeps]
        return (
            f"No criterion holds: none of these numbers of experts has an interval that overlaps {reference}. Best of each: "
            + ", ".join(f"keep {row['keep']} {row['label']} {percent(row['task']['score'])}" for row in best)
            + f". {only}"
        )
    fewest = min(chosen.values())
    row = max((row for label, keep in chosen.items() if keep == fewest for row in at_keep(cells, label, keep)), key=_quality)
    said = (
        f"pruning.keep={fewest} by {row['label']}: the fewest experts with which accuracy ({_told(row['task'])}) overlaps "
        f"{reference}; that is no proof that the two are equally good. {each}"
    )
    if any(_random(label) and keep and keep <= fewest for label, keep in holding.items()):
        said += " Random experts hold there too: at that number the choice tells little."
    if row["off_task"]:
        what = "score" if "score" in row["off_task"] else "loss"
        write = percent if what == "score" else loss
        said += f" On {row['off_task']['name']} it costs: {write(original['off_task'][what])} -> {write(row['off_task'][what])}."
    return f"{said} {only}"


def _random(label: str) -> bool:
    return label.partition(",")[0] == "random"


def _quality(row: Row) -> tuple[float, float]:
    """Higher is better: accuracy, then the lower loss."""
    return row["task"]["score"], -(float("inf") if row["task"]["loss"] is None else row["task"]["loss"])


def _told(found: dict[str, Any]) -> str:
    return f"{percent(found['score'])}, 95 % interval {interval(found)}"


def show_sweep(table: dict[str, Any]) -> None:
    """Prints, on rank 0, one row per cell and what follows from them."""
    if not is_main():
        return
    drawn = Table(box=box.SIMPLE, show_edge=False, pad_edge=False, collapse_padding=True)
    other = ("off task", "its loss") if table["off_task"] else ()
    like = ("KL", "acceptance") if table["rows"][0].get("fidelity") else ()
    for column in ("criterion", "keep", "seed", "accuracy", "95 % interval", "loss", *like, *other):
        drawn.add_column(column, justify="left" if column == "criterion" else "right", no_wrap=True)
    for row in table["rows"]:
        found, off = row["task"], row["off_task"]
        seed = str(row["seed"]) if _random(row["label"]) else ""
        cells = [escape(row["label"]), str(row["keep"]), seed, percent(found["score"]), interval(found), loss(found["loss"])]
        if like:
            cells += [loss(row["fidelity"]["kl"]), percent(row["fidelity"]["acceptance"])]
        drawn.add_row(*cells, *([percent(off.get("score")), loss(off["loss"])] if off else ()))
    say()
    console.print(drawn)
    say()
    if like:
        about = table["rows"][0]["fidelity"]
        say(f"KL, acceptance: against the original, over {about['tokens']:,} tokens of {about['examples']:,} dev answers")
    say(f"{table['n']:,} dev questions of {table['task']}" + (f"; off task: {table['off_task']}" if table["off_task"] else ""))
    say(escape(table["recommendation"]))
