"""A sweep's table: which numbers of experts hold, what follows from it, and how the terminal shows it. Where widths and layers
are swept, too, cells are compared by their parameters; where some are compressed, by their bytes. What is only measured is
never recommended."""

from collections.abc import Mapping, Sequence

from rich import box
from rich.markup import escape
from rich.table import Table

from toolkit.report.measurements import SweepRow, SweepTable, TaskResult
from toolkit.runtime.distributed import console, is_main, say
from toolkit.runtime.formatting import amount, interval, loss, p_value, percent, points, size

LISTED = 12  # blocks: of more, the fewest and the most experts are told
WIDTH = 140  # of a table in a log file


def tabulate(rows: Sequence[SweepRow]) -> SweepTable:
    """sweep/table.json from its rows, the original's first.

    A number of experts (of parameters, where more is swept) holds where the interval of every cell with it overlaps the
    original's.
    """
    original, *cells = rows
    ordered = sorted(cells, key=lambda row: -row.amount)
    labels = list(dict.fromkeys(row.label for row in cells))
    holding: dict[str, int | None] = {}
    for label in labels:
        of_label = {each: with_amount(ordered, label, each) for each in {row.amount for row in cells if row.label == label}}
        holds = [
            each for each, same in of_label.items() if each < original.amount and all(_overlap(row, original) for row in same)
        ]
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


def with_amount(rows: Sequence[SweepRow], label: str, number: int) -> list[SweepRow]:
    """The cells of one label with that many experts, or parameters: one, or one per seed (or shape of that size)."""
    return [row for row in rows if row.label == label and row.amount == number]


def _overlap(row: SweepRow, original: SweepRow) -> bool:
    (low, high), (least, most) = row.task.interval, original.task.interval
    return low <= most and least <= high


def _recommendation(original: SweepRow, cells: Sequence[SweepRow], holding: Mapping[str, int | None]) -> str:
    """Of the cells that a recipe can have; then what is to be known of those that are only measured."""
    unwritten = {row.label for row in cells if row.not_written}
    writable = [row for row in cells if not row.not_written]
    reasons = [f"{reason}." for reason in dict.fromkeys(row.not_written for row in cells if row.not_written)]
    if not original.task.correct:
        questions = _questions(original)
        nothing = f"The original itself is right on none of {questions}: by accuracy there is nothing to compare."
        return " ".join([nothing, *_allocations(cells), *reasons])
    advice = _advice(original, writable, {label: least for label, least in holding.items() if label not in unwritten})
    measured = _measured_only(original, cells, {label: least for label, least in holding.items() if label in unwritten})
    only_pruned = "These models are only pruned: fine-tuning wins back more, so that fewer experts may do after it."
    return " ".join([*advice, *measured, *_allocations(cells), *reasons, only_pruned])


def _advice(original: SweepRow, cells: Sequence[SweepRow], holding: Mapping[str, int | None]) -> list[str]:
    """What to prune to, in sentences."""
    if not cells:
        return ["Nothing can be recommended: none of these cells can be written."]
    reference = f"the original's ({_score(original.task)}), on {_questions(original)}"
    chosen = {label: keep for label, keep in holding.items() if keep and not _is_random(label)}
    if not chosen:
        return [_none_holds(original, cells, reference)]
    fewest = min(chosen.values())
    row = max((row for label, keep in chosen.items() if keep == fewest for row in with_amount(cells, label, keep)), key=_quality)
    sentences = [
        f"{_named(row, original)} with which accuracy ({_score(row.task)}) overlaps {reference}; that is no proof that the two "
        "are equally good.",
        _each_that_holds(original, cells, holding),
    ]
    if any(_is_random(label) and keep and keep <= fewest for label, keep in holding.items()):
        what = (
            "A random choice holds there too: at that size"
            if _by_size(original)
            else "Random experts hold there too: at that number"
        )
        sentences.append(f"{what} the choice tells little.")
    if row.off_task and original.off_task:
        by_score = row.off_task.score is not None
        before, after = (
            percent(result.score) if by_score else loss(result.loss) for result in (original.off_task, row.off_task)
        )  # fmt: skip
        sentences.append(f"On {row.off_task.name} it costs: {before} -> {after}.")
    return sentences


def _measured_only(original: SweepRow, cells: Sequence[SweepRow], holding: Mapping[str, int | None]) -> list[str]:
    """The sentence about what holds of the cells that cannot be written; none where nothing does. `holding`: of their labels."""
    found = []
    for label, least in holding.items():
        if least:
            row = max(with_amount(cells, label, least), key=_quality)
            found.append(f"{row.shape} ({percent(least / original.amount)} of the {_what(row)}, {percent(row.task.score)})")
    return [f"Measured only, and holding: {'; '.join(found)}."] if found else []


def _allocations(cells: Sequence[SweepRow]) -> list[str]:
    """A sentence for every cell with a measured allocation: what it gives beside the uniform one of the same size."""
    found = []
    for row in cells:
        if not row.allocation:
            continue
        cell = f"{row.label} with {row.shape}{f', seed {row.seed}' if row.drawn else ''}"
        given = row.allocation
        if given.measurements == 1:
            found.append(f"{cell}: no other numbers per block are possible, for each needs as many as are active per token.")
            continue
        if len({*given.experts}) == len({*given.active}) == 1:
            found.append(f"{cell}: no other numbers per block were found better, of {given.measurements:,}.")
            continue
        numbers = f"{_listed(given.experts)} experts" + f", {_listed(given.active)} active" * (len({*given.active}) > 1)
        found.append(
            f"{cell}: {numbers} in the blocks, loss {loss(row.task.loss)} instead of {loss(given.uniform_loss)}, "
            f"{points(given.difference)} points of accuracy to the uniform cell of the same size (95 % interval "
            f"{' to '.join(map(points, given.interval))}, {p_value(given.p)})."
        )
    chosen = any(row.allocation and row.allocation.measurements > 1 for row in cells)
    return [*found, *["Allocations were chosen by the loss on these very questions."] * chosen]


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers)) if len(numbers) <= LISTED else f"{min(numbers)} to {max(numbers)}"


def _what(row: SweepRow) -> str:
    """What `row.amount` is a number of."""
    return "experts" if row.parameters is None else "parameters" if row.bytes is None else "bytes"


def _questions(original: SweepRow) -> str:
    return f"{original.task.n:,} dev questions of {original.task.name}"


def _by_size(original: SweepRow) -> bool:
    return original.parameters is not None


def _named(row: SweepRow, original: SweepRow) -> str:
    """The cell, and what it is the least of."""
    if not _by_size(original):
        return f"pruning.keep={row.keep} by {row.label}: the fewest experts"
    share, what = percent(row.amount / original.amount), _what(row)
    how_many = size(row.bytes) if row.bytes is not None else f"{amount(row.parameters)} parameters"
    return f"{row.shape} by {row.label} ({how_many}, {share} of the original's): the fewest {what}"


def _each_that_holds(original: SweepRow, cells: Sequence[SweepRow], holding: Mapping[str, int | None]) -> str:
    """The least that holds, label by label."""
    if not _by_size(original):
        return "Fewest that hold: " + ", ".join(f"{label} {keep or 'none'}" for label, keep in holding.items()) + "."
    found = []
    for label, least in holding.items():
        shapes = dict.fromkeys(row.shape for row in with_amount(cells, label, least)) if least else {"none": None}
        found.append(f"{label}: {' or '.join(shapes)}")
    return f"Smallest that hold: {'; '.join(found)}."


def _none_holds(original: SweepRow, cells: Sequence[SweepRow], reference: str) -> str:
    amounts = sorted({row.amount for row in cells if row.amount < original.amount}, reverse=True)
    best = [max((row for row in cells if row.amount == each), key=_quality) for each in amounts]
    what, between = ("sizes", "; ") if _by_size(original) else ("numbers of experts", ", ")
    each = between.join(f"{row.shape} {row.label} {percent(row.task.score)}" for row in best)
    return f"No criterion holds: none of these {what} has an interval that overlaps {reference}. Best of each: {each}."


def _is_random(label: str) -> bool:
    return "random" in label.partition(",")[0].split(" + ")


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
    sizes = _size_columns(table)
    if table.by_size and not console.is_terminal:
        console.width = max(console.width, WIDTH)
    for column in (
        "criterion",
        "keep",
        *sizes,
        "seed",
        "accuracy",
        "95 % interval",
        "loss",
        *fidelity_columns,
        *off_task_columns,
    ):
        drawn.add_column(column, justify="left" if column == "criterion" else "right", no_wrap=True)
    for row in table.rows:
        drawn.add_row(*_cells(row, sizes))
    say()
    console.print(drawn)
    say()
    if reference:
        say(f"KL, acceptance: against the original, over {reference.tokens:,} tokens of {reference.examples:,} dev answers")
    say(f"{table.n:,} dev questions of {table.task}" + (f"; off task: {table.off_task}" if table.off_task else ""))
    say(escape(table.recommendation))


def _size_columns(table: SweepTable) -> list[str]:
    """Without what nothing is cut of in any cell."""
    columns = [name for name in ("width", "layers") if any(getattr(row, name) for row in table.rows)]
    columns += ["parameters", "active"] if table.by_size else []
    return [*columns, *(["bytes"] if table.by_bytes else [])]


def _cells(row: SweepRow, sizes: Sequence[str]) -> list[str]:
    found = {
        "width": f"{row.width:,}" if row.width else "all",
        "layers": str(row.layers or "all"),
        "parameters": amount(row.parameters),
        "active": amount(row.active_parameters),
        "bytes": size(row.bytes),
    }
    cells = [escape(row.label), str(row.keep), *(found[name] for name in sizes)]
    seed = str(row.seed) if row.drawn else ""
    cells += [seed, percent(row.task.score), interval(row.task.interval), loss(row.task.loss)]
    if row.fidelity:
        cells += [loss(row.fidelity.kl), percent(row.fidelity.acceptance)]
    if row.off_task:
        cells += [percent(row.off_task.score), loss(row.off_task.loss)]
    return cells
