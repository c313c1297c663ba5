"""The result in the terminal: readable in colour, and as plain text in a job's log file."""

from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from toolkit.report.fidelity_harness import told
from toolkit.runtime.distributed import console, is_main, say
from toolkit.runtime.formatting import MISSING, amount, interval, p_value, percent, points, size, speed

COLUMNS = ("score", "95 % interval", "n", "parameters", "checkpoint", "tokens/s")


def show(report: dict[str, Any]) -> None:
    """Prints, on rank 0, the headline, one row per model, and every warning."""
    if not is_main():
        return
    table = Table(box=box.SIMPLE, show_edge=False, pad_edge=False, collapse_padding=True)
    table.add_column("model", no_wrap=True)
    for column in COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    for role, found in report["models"].items():
        table.add_row(role, *(_cells(found) if found else (MISSING, "not evaluated")))
    say()
    say(f"[bold]{escape(report['headline'])}[/]")
    if report["summary"]:
        say(escape(report["summary"]))
    for found in report["stale"]:
        say(f"[yellow]stale, not shown:[/] {escape(', '.join(found['parts']))} ({escape(found['why'])})")
    say()
    console.print(table)
    say()
    if report["pairs"]:
        console.print(_pairs(report["pairs"]))
        say()
    for sentence in report["comparisons"]:
        say(escape(sentence))
    for sentence in told(report):
        say(escape(sentence))
    for warning in report["warnings"]:
        say(f"[yellow]warning:[/] {escape(warning)}")


def _pairs(pairs: list[dict[str, Any]]) -> Table:
    """Every two models, question by question."""
    table = Table(box=box.SIMPLE, show_edge=False, pad_edge=False, collapse_padding=True)
    for column in ("paired", "points", "95 % interval", "McNemar", ""):
        table.add_column(column, justify="left" if column in ("paired", "") else "right", no_wrap=True)
    for found in pairs:
        low, high = map(points, found["interval"])
        said = "significant" if found["significant"] else "not significant"
        names = f"{found['first']} − {found['second']}"
        table.add_row(names, points(found["difference"]), f"{low} to {high}", p_value(found["p"]), said)
    return table


def _cells(found: dict[str, Any]) -> list[str]:
    return [
        percent(found["score"]),
        interval(found),
        f"{found['n']:,}",
        amount(found["parameters"]),
        size(found["checkpoint_bytes"]),
        speed(found["tokens_per_second"]),
    ]
