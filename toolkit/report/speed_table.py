"""What `pollard benchmark` measured, in the terminal and on the page."""

from collections.abc import Sequence

from rich import box
from rich.table import Table

from toolkit.report.measurements import SpeedTable, Timing
from toolkit.runtime.distributed import console, say
from toolkit.runtime.formatting import amount, percent, size, speed

COLUMNS = ("batch", "model", "prefill", "ratio", "decode", "ratio", "first token", "memory (ratio)")
WIDTH = 120  # of a table in a log file


def show_speed(measured: SpeedTable) -> None:
    """One row per model, then one per model and batch size."""
    if not console.is_terminal:
        console.width = max(console.width, WIDTH)
    _print(
        ("model", "parameters", "", "active", "", "checkpoint", ""),
        [
            [
                model.name, amount(model.parameters), percent(model.ratios["parameters"], 0),
                amount(model.active_parameters), percent(model.ratios["active_parameters"], 0),
                size(model.checkpoint_bytes), percent(model.ratios["checkpoint_bytes"], 0),
            ]
            for model in measured.models
        ],
    )  # fmt: skip
    _print(COLUMNS, rows(measured))
    say(explanation(measured))


def _print(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    table = Table(box=box.SIMPLE, show_edge=False, pad_edge=False, collapse_padding=True)
    for column in columns:
        table.add_column(column, justify="left" if column == "model" else "right")
    for row in cells:
        table.add_row(*row)
    console.print(table)
    say()


def explanation(measured: SpeedTable) -> str:
    """What the figures are, in words."""
    held = "all models in memory" if measured.together else "each model loaded anew for its turn, for together they do not fit"
    threads = f"CPU, {measured.threads} thread{'s' * (measured.threads > 1)}"
    random = " Random weights: a trained model's routers choose otherwise." if any(m.random for m in measured.models) else ""
    where = threads if measured.device == "cpu" else measured.device
    length = f"prompts of {measured.prompt_tokens:,} random tokens, {measured.new_tokens:,} new ones"
    return (
        f"Tokens/s on {where}: {length}. Medians of {measured.repeats} turns (± half of what lies between the slowest and the "
        f"fastest), {held}; ratios are to {measured.models[0].name}, turn by turn (lowest–highest).{random}"
    )


def rows(measured: SpeedTable) -> list[list[str]]:
    """The cells under COLUMNS: per batch size a row for each model."""
    cells = []
    for number, batch_size in enumerate(measured.batch_sizes):
        for model in measured.models:
            batch = model.batches[number]
            if not (batch.fits and batch.prefill and batch.decode and batch.first_token):
                cells.append([str(batch_size), model.name, "does not fit", *[""] * 5])
                continue
            ratios = None if model is measured.models[0] else batch.ratios
            memory = f" ({ratios.peak_memory_bytes:.2f})" if ratios else ""
            cells.append([
                str(batch_size), model.name, _speed(batch.prefill), _ratio(ratios.prefill if ratios else None),
                _speed(batch.decode), _ratio(ratios.decode if ratios else None), f"{1000 * batch.first_token[0]:,.1f} ms",
                size(batch.peak_memory_bytes) + memory,
            ])  # fmt: skip
    return cells


def _speed(timing: Timing) -> str:
    """ "2,162 ±3 %"."""
    middle, low, high = timing
    return f"{speed(middle)} ±{50 * (high - low) / middle:.0f} %"


def _ratio(timing: Timing | None) -> str:
    """ "1.27 (1.25–1.30)"."""
    return f"{timing[0]:.2f} ({timing[1]:.2f}–{timing[2]:.2f})" if timing else ""
