"""A sweep's table: which numbers of experts hold, what follows from it, and how the terminal shows it."""

from collections.abc import Mapping, Sequence

from rich import box
from rich.markup import escape
from rich.table import Table

from toolkit.report.measurements import SweepRow, SweepTable, TaskResult
from toolkit.runtime.distributed import console, is_main, say
from toolkit.runtime.formatting import interval, loss, percent


def tabulate(rows: Sequence[SweepRow]) -> SweepTable:
    """sweep/table.json from its rows, the original's first.

    A number of experts holds where the interval of every cell with it overlaps the original's.
    """
    original, *cells = rows
    ordered = sorted(cells, key=lambda row: -row.keep)
    labels = list(dict.fromkeys(row.label for row in cells))
    holding: dict[str, int | None] = {}
    for label in labels:
        by_keep = {keep: at_keep(ordered, label, keep) for keep in {row.keep for row in cells if row.label == label}}
        holds = [keep for keep, same in by_keep.items() if keep < original.keep and all(_overlap(row, original) for row in same)]
        holding[label] = min(holds, default=None)
    return SweepTable(
        format=2,
        task=original.task.name,
        split="dev",
        n=original.task.n,
        off_task=original.off_task.name if original.off_task else None,
        experts=original.keep,
        rows=[original, *sorted(ordered, key=lambda row: labels.index(row.label))],
        holding=holding,
        recommendation=_recommendation(original, ordered, holding),
    )


def at_keep(rows: Sequence[SweepRow], label: str, keep: int) -> list[SweepRow]:
    """The cells of one label with that many experts: one, or one per seed."""
    return [row for row in rows if row.label == label and row.keep == keep]


def _overlap(row: SweepRow, original: SweepRow) -> bool:
    (low, high), (least, most) = row.task.interval, original.task.interval
    return low <= most and least <= high


def _recommendation(original: SweepRow, cells: Sequence[SweepRow], holding: Mapping[str, int | None]) -> str:
    only = "These models are only pruned: fine-tuning wins back more, so that fewer experts may do after it."
    questions = f"{original.task.n:,} dev questions of {original.task.name}"
    reference = f"the original's ({_score(original.task)}), on {questions}"
    if not original.task.correct:
        return f"The original itself is right on none of {questions}: by accuracy there is nothing to compare."
    chosen = {label: keep for label, keep in holding.items() if keep and not _is_random(label)}
    each = "Fewest that hold: " + ", ".join(f"{label} {keep or 'none'}" for label, keep in holding.items()) + "."
    if not chosen:
        keeps = sorted({row.keep for row in cells if row.keep < original.keep}, reverse=True)
        best = [max((row for row in cells if row.keep == keep), key=_quality) for keep in keeps]
        return (
            f"No criterion holds: none of these numbers of experts has an interval that overlaps {reference}. Best of each: "
            + ", ".join(f"keep {row.keep} {row.label} {percent(row.task.score)}" for row in best)
            + f". {only}"
        )
    fewest = min(chosen.values())
    row = max((row for label, keep in chosen.items() if keep == fewest for row in at_keep(cells, label, keep)), key=_quality)
    sentences = [
        f"pruning.keep={fewest} by {row.label}: the fewest experts with which accuracy ({_score(row.task)}) overlaps "
        f"{reference}; that is no proof that the two are equally good.",
        each,
    ]
    if any(_is_random(label) and keep and keep <= fewest for label, keep in holding.items()):
        sentences.append("Random experts hold there too: at that number the choice tells little.")
    if row.off_task and original.off_task:
        by_score = row.off_task.score is not None
        before, after = (
            percent(result.score) if by_score else loss(result.loss) for result in (original.off_task, row.off_task)
        )  # fmt: skip
        sentences.append(f"On {row.off_task.name} it costs: {before} -> {after}.")
    return " ".join([*sentences, only])


def _is_random(label: str) -> bool:
    return label.partition(",")[0] == "random"


def _quality(row: SweepRow) -> tuple[float, float]:
    """Higher is better: accuracy, then the lower loss."""
    return row.task.score, -(float("inf") if row.task.loss is None else row.task.loss)


def _score(result: TaskResult) -> str:
    return f"{percent(result.score)}, 95 % interval {interval(result.interval)}"


def show_sweep(table: SweepTable) -> None:
    """Prints, on rank 0, one row per cell and what follows from them."""
    if not is_main():
        return
    reference = table.rows[0].fidelity
    fidelity_columns = ("KL", "acceptance") if reference else ()
    off_task_columns = ("off task", "its loss") if table.off_task else ()
    drawn = Table(box=box.SIMPLE, show_edge=False, pad_edge=False, collapse_padding=True)
    for column in ("criterion", "keep", "seed", "accuracy", "95 % interval", "loss", *fidelity_columns, *off_task_columns):
        drawn.add_column(column, justify="left" if column == "criterion" else "right", no_wrap=True)
    for row in table.rows:
        drawn.add_row(*_cells(row))
    say()
    console.print(drawn)
    say()
    if reference:
        say(f"KL, acceptance: against the original, over {reference.tokens:,} tokens of {reference.examples:,} dev answers")
    say(f"{table.n:,} dev questions of {table.task}" + (f"; off task: {table.off_task}" if table.off_task else ""))
    say(escape(table.recommendation))


def _cells(row: SweepRow) -> list[str]:
    seed = str(row.seed) if _is_random(row.label) else ""
    cells = [escape(row.label), str(row.keep), seed, percent(row.task.score), interval(row.task.interval), loss(row.task.loss)]
    if row.fidelity:
        cells += [loss(row.fidelity.kl), percent(row.fidelity.acceptance)]
    if row.off_task:
        cells += [percent(row.off_task.score), loss(row.off_task.loss)]
    return cells
