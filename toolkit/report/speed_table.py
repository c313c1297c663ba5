"""What `pollard benchmark` found, in the terminal and on the page."""

from typing import Any

from rich import box
from rich.table import Table

from toolkit.runtime.distributed import console, say
from toolkit.runtime.formatting import amount, percent, size, speed

COLUMNS = ("batch", "model", "prefill", "ratio", "decode", "ratio", "first token", "memory (ratio)")
WIDTH = 120  # of a table in a log file


def show_speed(found: dict[str, Any]) -> None:
    """One row per model, then one per model and batch size."""
    if not console.is_terminal:
        console.width = max(console.width, WIDTH)
    _print(
        ("model", "parameters", "", "active", "", "checkpoint", ""),
        [
            [
                model["name"], amount(model["parameters"]), percent(model["ratios"]["parameters"], 0),
                amount(model["active_parameters"]), percent(model["ratios"]["active_parameters"], 0),
                size(model["checkpoint_bytes"]), percent(model["ratios"]["checkpoint_bytes"], 0),
            ]
            for model in found["models"]
        ],
    )  # fmt: skip
    _print(COLUMNS, rows(found))
    say(told(found))


def _print(columns: tuple[str, ...], made: list[list[str]]) -> None:
    table = Table(box=box.SIMPLE, show_edge=False, pad_edge=False, collapse_padding=True)
    for column in columns:
        table.add_column(column, justify="left" if column == "model" else "right")
    for row in made:
        table.add_row(*row)
    console.print(table)
    say()


def told(found: dict[str, Any]) -> str:
    """What the figures are, in words."""
    held = "all models in memory" if found["together"] else "each model loaded anew for its turn, for together they do not fit"
    threads = f"CPU, {found['threads']} thread{'s' * (found['threads'] > 1)}"
    random = " Random weights: a trained model's routers choose otherwise." if any(m["random"] for m in found["models"]) else ""
    where = threads if found["device"] == "cpu" else found["device"]
    length = f"prompts of {found['prompt_tokens']:,} random tokens, {found['new_tokens']:,} new ones"
    return (
        f"Tokens/s on {where}: {length}. Medians of {found['repeats']} turns (± half of what lies between the slowest and the "
        f"fastest), {held}; ratios are to {found['models'][0]['name']}, turn by turn (lowest–highest).{random}"
    )


def rows(found: dict[str, Any]) -> list[list[str]]:
    """The cells under COLUMNS."""
    made = []
    for number, batch_size in enumerate(found["batch_sizes"]):
        for model in found["models"]:
            batch = model["batches"][number]
            if not batch["fits"]:
                made.append([str(batch_size), model["name"], "does not fit", *[""] * 5])
                continue
            ratios = {} if model is found["models"][0] else batch.get("ratios", {})
            memory = f" ({ratios['peak_memory_bytes']:.2f})" if ratios else ""
            made.append([
                str(batch_size), model["name"], _speed(batch["prefill"]), _ratio(ratios.get("prefill")),
                _speed(batch["decode"]), _ratio(ratios.get("decode")), f"{1000 * batch['first_token'][0]:,.1f} ms",
                size(batch["peak_memory_bytes"]) + memory,
            ])  # fmt: skip
    return made


def _speed(values: list[float]) -> str:
    """ "2,162 ±3 %"."""
    middle, low, high = values
    return f"{speed(middle)} ±{50 * (high - low) / middle:.0f} %"


def _ratio(values: list[float] | None) -> str:
    """ "1.27 (1.25–1.30)"."""
    return f"{values[0]:.2f} ({values[1]:.2f}–{values[2]:.2f})" if values else ""
