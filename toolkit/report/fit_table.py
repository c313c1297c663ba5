"""What a fit found, in the terminal and as rows of the model card: the original, every shape measured, what was refused."""

from collections.abc import Sequence

from rich import box
from rich.markup import escape
from rich.table import Table

from toolkit.cuts.fit_result import FitResult
from toolkit.report.fit_facts import SINGLE_CUTS, FitAnswers, FitFacts, FitShapeFacts, SizedShape, delta_text
from toolkit.report.fit_frontier import SHOWN, fit_facts
from toolkit.runtime.distributed import console, is_main, say
from toolkit.runtime.formatting import MISSING, amount, interval, loss, percent, precise_size, signed_loss

WIDTH = 120  # of a table: in a log file, and at most
REASONS = 6  # that are listed; fit.json has every one
SHAPE_COLUMNS = ("layers", "experts", "per\ntoken", "width", "form", "size", "active")
RESULT_COLUMNS = (
    "loss\npredicted",
    "loss\nmeasured",
    "KL",
    "dev\naccuracy",
    "95 %\ninterval",
    "after\ntrial",
    "its 95 %\ninterval",
)
METRICS = {"dev_loss": "the loss on the dev slice", "accuracy": "dev accuracy", "fidelity": "likeness to the original (KL)"}

Columns = dict[str, list[str]]  # heading -> a cell per row: the original's, then each shape's


def show_fit(result: FitResult, top: int = SHOWN) -> None:
    """Prints, on rank 0, what was found under the limits, and what follows. `top`: so many of the shapes that look best, where
    none is measured yet. Where one table is too wide, sizes and results are two."""
    if not is_main():
        return
    fit = fit_facts(result, top)
    if not console.is_terminal:
        console.width = max(console.width, WIDTH)
    say()
    numbers = "" if fit.dtype == "checkpoint" else f" in {fit.dtype}"
    say(f"Under {escape(fit.limit_text + numbers)}, by {METRICS[fit.metric]}:")
    say()
    whole, width = _table(fit, fit_columns(fit)), min(console.width, WIDTH)
    if console.measure(whole, options=console.options.update(max_width=1000)).maximum <= width:
        console.print(whole)
    else:
        console.print(_table(fit, shape_columns(fit)))
        say()
        console.print(_table(fit, result_columns(fit)))
    say()
    for line in fit_lines(fit):
        say(escape(line))


def fit_columns(fit: FitFacts) -> Columns:
    """Shapes, sizes and results."""
    return shape_columns(fit) | result_columns(fit)


def shape_columns(fit: FitFacts) -> Columns:
    """Without the form, where no shape is dense."""
    rows: list[SizedShape] = [fit.original, *fit.shapes]
    cells = [_shape_cells(shape) for shape in rows]
    columns = {heading: [row[at] for row in cells] for at, heading in enumerate(SHAPE_COLUMNS)}
    return {name: column for name, column in columns.items() if name != "form" or "dense" in column}


def _shape_cells(shape: SizedShape) -> tuple[str, ...]:
    """Under SHAPE_COLUMNS. A dense shape has no experts to choose from."""
    per_token = MISSING if shape.form == "dense" else str(shape.experts_per_token)
    width, form = f"{shape.width:,}", "dense" if shape.form == "dense" else "MoE"
    return (
        str(shape.layers),
        str(shape.experts),
        per_token,
        width,
        form,
        precise_size(shape.bytes),
        amount(shape.active_parameters),
    )


def result_columns(fit: FitFacts) -> Columns:
    """Without what nothing was measured of."""
    cells = [_original_cells(fit), *(_result_cells(fit, shape) for shape in fit.shapes)]
    columns = {heading: [row[at] for row in cells] for at, heading in enumerate(RESULT_COLUMNS)}
    return {name: column for name, column in columns.items() if set(column) - {MISSING, ""}}


def _original_cells(fit: FitFacts) -> tuple[str, ...]:
    measured = fit.original.measured
    return "", delta_text(measured), "", *_accuracy(measured), "", ""


def _result_cells(fit: FitFacts, shape: FitShapeFacts) -> tuple[str, ...]:
    """Under RESULT_COLUMNS."""
    measured = shape.measured
    kl = loss(measured.kl if measured else None)
    return fit.predicted_text(shape), delta_text(measured), kl, *_accuracy(measured), *_accuracy(shape.trial)


def _accuracy(answers: FitAnswers | None) -> tuple[str, str]:
    if not answers or answers.score is None:
        return MISSING, MISSING
    return percent(answers.score), interval(answers.interval) if answers.interval else MISSING


def labels(fit: FitFacts) -> list[str]:
    """A row's number, with an arrow at the chosen one."""
    return ["original", *(f"→ {i}" if i - 1 == fit.chosen else str(i) for i in range(1, len(fit.shapes) + 1))]


def _table(fit: FitFacts, columns: Columns) -> Table:
    table = Table(box=box.SIMPLE, show_edge=False, pad_edge=False, collapse_padding=True)
    for heading in ("", *columns):
        table.add_column(heading, justify="right", no_wrap=True)
    for number, row in enumerate(zip(labels(fit), *columns.values(), strict=True)):
        table.add_row(*row, style="bold" if number - 1 == fit.chosen else None)
    return table


def fit_lines(fit: FitFacts) -> list[str]:
    """What the table does not say, in sentences; the recommendation is the last."""
    lines = []
    if fit.original.loss is not None:
        lines.append(f"Losses are what is added to the original's {loss(fit.original.loss)} nats per token, on the dev slice.")
    singles = [f"{SINGLE_CUTS[shape.single_cut]} {i}" for i, shape in enumerate(fit.shapes, start=1) if shape.single_cut]
    if singles:
        lines.append(f"The best that cut one thing only: {', '.join(singles)}.")
    if trials := fit.tried:
        steps = " or ".join(f"{step:,}" for step in sorted({shape.trial.steps for shape in trials if shape.trial}))
        lines.append(f"Trial: {len(trials)} were cut, fine-tuned for {steps} steps and asked again.")
    return [*lines, *rest_lines(fit), *([fit.recommendation] if fit.recommendation else [])]


def rest_lines(fit: FitFacts) -> list[str]:
    """Of the shapes that were not measured: how many met the limits, and how many were refused for which reason. And what was
    measured beside shapes."""
    lines = [fit.allocation.sentence] if fit.allocation else []
    if fit.others:
        best = "" if fit.best_other is None else f"; the best of them is predicted to add {signed_loss(fit.best_other)} nats"
        meets, were = ("meets", "was") if fit.others == 1 else ("meet", "were")
        lines.append(f"{fit.others:,} more shape{'s' * (fit.others > 1)} {meets} the limits and {were} not measured{best}.")
    measured = ((i, shape.refused) for i, shape in enumerate(fit.shapes, start=1) if shape.refused)
    lines += [f"Shape {i} was refused after it was measured: {_clause(reason)}." for i, reason in measured]
    reasons = list(fit.refused.items())
    lines += [f"Not measured: {_shapes(count)}: {_clause(reason)}." for reason, count in reasons[:REASONS]]
    if rest := sum(count for _, count in reasons[REASONS:]):
        lines.append(f"Not measured: {_shapes(rest)} for {len(reasons) - REASONS} other reasons (fit.json).")
    return lines


def _clause(reason: str) -> str:
    return reason.removesuffix(".")


def _shapes(count: int) -> str:
    return f"{count:,} shape{'s' * (count != 1)}"


def markdown_rows(fit: FitFacts) -> Sequence[Sequence[str]]:
    """The heading, then a row for the original and each shape, for the model card."""
    columns = fit_columns(fit)
    headings = ["", *(heading.replace("\n", " ") for heading in columns)]
    return [headings, *zip(labels(fit), *columns.values(), strict=True)]
