"""Results in the terminal: readable in colour, and as plain text in a job's log file."""

from collections.abc import Callable, Sequence

from rich import box
from rich.markup import escape
from rich.table import Table

from toolkit.recipe.roles import Role
from toolkit.report.facts import ModelResult, RolePair, RunFacts
from toolkit.report.measures import acceptance, kl, measured
from toolkit.report.model_comparison import ModelComparison
from toolkit.report.size_table import size_table
from toolkit.runtime.distributed import console, is_main, say
from toolkit.runtime.formatting import (
    MISSING,
    amount,
    interval,
    loss,
    mean_count,
    p_value,
    percent,
    points,
    seconds_each,
    size,
)

COLUMNS = ("score", "95 % interval", "n", "parameters", "checkpoint")  # no speed: one pass of each is mostly noise


def show(report: RunFacts) -> None:
    """Prints, on rank 0, the headline, one row per model, and every warning."""
    if not is_main():
        return
    table = Table(box=box.SIMPLE, show_edge=False, pad_edge=False, collapse_padding=True)
    table.add_column("model", no_wrap=True)
    for column in COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    for role, result in report.models.items():
        table.add_row(role, *(_cells(result) if result else (MISSING, "not evaluated")))
    say()
    say(f"[bold]{escape(report.headline)}[/]")
    if report.summary:
        say(escape(report.summary))
    for stale in report.stale:
        say(f"[yellow]stale, not shown:[/] {escape(', '.join(stale.parts))} ({escape(stale.why)})")
    say()
    console.print(table)
    say()
    if further := _further_table(report):
        console.print(further)
        say()
    if report.cuts and report.cuts.sizes:
        console.print(size_table(report.cuts.sizes))
        say()
    if report.pairs:
        console.print(_pair_table(report.pairs))
        say()
    if report.noninferiority:
        say(f"[bold]{report.noninferiority.sentence}[/]")
    for sentence in (*report.comparisons, *_further_measurements(report)):
        say(escape(sentence))
    for warning in report.warnings:
        say(f"[yellow]warning:[/] {escape(warning)}")


def _cells(result: ModelResult) -> list[str]:
    return [
        percent(result.score),
        interval(result.interval),
        f"{result.n:,}",
        amount(result.parameters),
        size(result.checkpoint_bytes),
    ]


def _further_table(report: RunFacts) -> Table | None:
    """What an answer costs, and what was lost beside the task; None where nothing is known of either."""
    columns: dict[str, Callable[[Role], str]] = {}
    results, off_task = report.evaluated, report.off_task
    if any(result.tokens_per_answer is not None for result in results.values()):
        columns |= {
            "tokens/answer": lambda role: mean_count(results[role].tokens_per_answer) if role in results else MISSING,
            "cut off": lambda role: percent(results[role].truncated_share) if role in results else MISSING,
            "time/right": lambda role: seconds_each(results[role].seconds_per_right) if role in results else MISSING,
        }
    if off_task:
        columns |= {
            "loss off task": lambda role: loss(off_task[role].loss) if role in off_task else MISSING,
            "KL": lambda role: loss(off_task[role].kl) if role in off_task else MISSING,
            "same token": lambda role: percent(off_task[role].agreement) if role in off_task else MISSING,
        }
    if not columns:
        return None
    table = Table(box=box.SIMPLE, show_edge=False, pad_edge=False, collapse_padding=True)
    for column in ("", *columns):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for role in report.models:
        if role in results or role in off_task:
            table.add_row(role, *(cell(role) for cell in columns.values()))
    return table


def _pair_table(pairs: Sequence[RolePair]) -> Table:
    """Every two models, question by question."""
    table = Table(box=box.SIMPLE, show_edge=False, pad_edge=False, collapse_padding=True)
    for column in ("paired", "points", "95 % interval", "McNemar", ""):
        table.add_column(column, justify="left" if column in ("paired", "") else "right", no_wrap=True)
    for pair in pairs:
        low, high = map(points, pair.interval)
        significance = "significant" if pair.significant else "not significant"
        table.add_row(
            f"{pair.first} − {pair.second}", points(pair.difference), f"{low} to {high}", p_value(pair.p), significance
        )  # fmt: skip
    return table


def _further_measurements(report: RunFacts) -> list[str]:
    """Likeness to the original and other tasks, in sentences."""
    sentences = []
    if report.fidelity:
        tokens = next(iter(report.fidelity.values())).tokens
        each = [f"{role} KL {kl(fidelity)}, acceptance {acceptance(fidelity)}" for role, fidelity in report.fidelity.items()]
        sentences.append(f"Against the original, over {tokens:,} tokens of gold answers: {'; '.join(each)}.")
    for row in report.harness:
        models = ", ".join(f"{role} {measured(score)}" for role, score in row.models.items())
        sentences.append(f"{row.label}, {row.metric}: {models}.")
    return sentences


def show_comparison(facts: ModelComparison) -> None:
    """Both scores, who is right where, and what follows from it."""
    table = Table(box=box.SIMPLE, show_edge=False, pad_edge=False, collapse_padding=True)
    for column in ("model", "score", "95 % interval", "n"):
        table.add_column(column, justify="left" if column == "model" else "right", overflow="fold")
    for side in (facts.pair.first, facts.pair.second):
        table.add_row(escape(side.name), percent(side.score), interval(side.interval), f"{side.n:,}")
    console.print(table)
    say()
    for what, count in (
        ("both right", facts.pair.both), ("only the first", facts.pair.only_first),
        ("only the second", facts.pair.only_second), ("neither", facts.pair.neither),
    ):  # fmt: skip
        say(f"{what:<16}{count:>7,}")
    say()
    say(escape(facts.verdict))
    if facts.noninferiority:
        say(f"[bold]{facts.noninferiority.sentence}[/]")
