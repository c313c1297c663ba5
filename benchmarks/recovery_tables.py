"""The tables of docs/recovery.md's study, from finished cells; what is not finished is named there.

`right` of a model is a text with a 1 for every question answered rightly: same questions, same order, in every cell.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from study import markdown, paired_points, put_between

from toolkit.runtime.formatting import MISSING, interval, percent

if TYPE_CHECKING:
    from recovery_study import Cell

BEGIN, END = "<!-- tables: written by benchmarks/recovery_study.py -->", "<!-- end of tables -->"
Model = dict[str, Any]
Row = dict[int, Model]  # by seed
ORDER = ("router", "lora", "qlora", "full")  # from the least that is trained to the most


def write_tables(document: Path, found: Sequence[tuple[Cell, dict[str, Any] | None]]) -> list[str]:
    """Replaces what stands between the marks in `document`; returns the missing cells."""
    missing = [cell.name for cell, result in found if result is None]
    done = [(cell, result) for cell, result in found if result is not None]
    keeps = sorted({cell.keep for cell, _ in done if cell.kind == "method"}, reverse=True)
    parts = [part for keep in keeps for part in _methods(done, keep)] + _teachers(done, keeps) + _rounds(done) + _rates(done)
    if missing:
        parts.append("### Not finished\n\n" + ", ".join(f"`{name}`" for name in missing) + ".")
    put_between(document, BEGIN, END, parts)
    return missing


def _methods(done: Sequence[tuple[Cell, dict[str, Any]]], keep: int) -> list[str]:
    """Scores per method with and without a teacher, and each against the original and against the control of the same seed;
    then the one that the dev slice chooses, seed by seed."""
    every = [(cell, result) for cell, result in done if cell.kind == "method"]
    here = [(cell, result) for cell, result in every if cell.keep == keep]
    original = next((result["models"]["original"] for _, result in every if "original" in result["models"]), None)
    controls = {teacher: _models("control", ((c, r) for c, r in every if c.teacher == teacher)) for teacher in (False, True)}
    seeds = sorted({cell.seed for cell, _ in here})
    originals = dict.fromkeys(seeds, original) if original else {}

    def line(name: str, teacher: bool | None, dev: float | None, row: Row, against: Row) -> list[str]:
        told = MISSING if teacher is None else _yes(teacher)
        return [name, told, percent(dev), *_scores(row, seeds), _against(row, originals), _against(row, against)]

    body = [line("none", None, None, _models("pruned", here), controls[False])]
    dev, rows = {}, {}
    for which in sorted({(cell.method, cell.teacher) for cell, _ in here}, key=lambda one: (ORDER.index(one[0]), one[1])):
        found = [(cell, result) for cell, result in here if (cell.method, cell.teacher) == which]
        rows[which], dev[which] = _models("recovered", found), statistics.mean(result["dev_accuracy"] for _, result in found)
        body.append(line(f"`{which[0]}`", which[1], dev[which], rows[which], controls[False]))
    body += [line("control", teacher, None, row, controls[False] if teacher else {}) for teacher, row in controls.items() if row]
    told = (
        f"{original['n']:,} test questions; the original: {percent(original['score'])} ({interval(original['interval'])}). "
        if original
        else ""
    )
    head = ["method", "teacher", "dev slice", *(f"seed {seed}" for seed in seeds), "mean", "minus original", "minus control"]
    parts = [f"### {keep} of 8 experts\n\n{told}The control is the original, fine-tuned (`full`).", markdown(head, body)]
    if not (dev and controls[False]):
        return parts
    kinds = {f"minus control {'with' if teacher else 'without'} a teacher": row for teacher, row in controls.items() if row}
    for best in [which for which in rows if math.isclose(dev[which], max(dev.values()))]:  # more than one where they are equal
        lines = [[str(seed), *(_difference([(rows[best].get(seed), row.get(seed))]) for row in kinds.values())] for seed in seeds]
        lines.append(["all", *(_against(rows[best], row) for row in kinds.values())])
        parts.append(f"The dev slice chooses `{best[0]}`{' with a teacher' if best[1] else ''}. Seed by seed:")
        parts.append(markdown(["seed", *kinds], lines))
    return parts


def _teachers(done: Sequence[tuple[Cell, dict[str, Any]]], keeps: Sequence[int]) -> list[str]:
    """What the teacher adds to each method."""

    def row(method: str, keep: int, teacher: bool) -> Row:
        wanted = "method", method, keep, teacher
        return _models("recovered", ((c, r) for c, r in done if (c.kind, c.method, c.keep, c.teacher) == wanted))

    methods = [method for method in ORDER if method in {cell.method for cell, _ in done if cell.kind == "method"}]
    body = [[f"`{m}`", *(_against(row(m, keep, True), row(m, keep, False)) for keep in keeps)] for m in methods]
    head = "### What the teacher adds\n\nWith minus without, in points, all seeds together."
    return [head, markdown(["method", *(f"keep {keep}" for keep in keeps)], body)] if body else []


def _rounds(done: Sequence[tuple[Cell, dict[str, Any]]]) -> list[str]:
    """Pruning in rounds against pruning at once, with as many steps as one round and as all of them have."""
    rows: dict[str, Row] = {}
    at = {cell.keep for cell, _ in done if cell.kind == "rounds"}
    for cell, result in done:
        plain = cell.kind == "method" and (cell.method, cell.teacher) == ("full", False) and cell.keep in at
        if plain or cell.kind == "rounds":
            how = cell.extra[-1].partition("=")[2]
            words = (
                "at once, 600 steps"
                if plain
                else f"at once, {int(how):,} steps"
                if how.isdigit()
                else f"rounds {how}, 600 steps each"
            )
            rows.setdefault(words, {})[cell.seed] = result["models"]["recovered"]
    if len(rows) < 2:
        return []
    rounds = next((row for words, row in rows.items() if words.startswith("rounds")), {})
    seeds = sorted({seed for row in rows.values() for seed in row})
    body = [[words, *_scores(row, seeds), MISSING if row is rounds else _against(rounds, row)] for words, row in rows.items()]
    head = f"### In rounds, down to {min(at)} experts\n\n`full`, no teacher."
    return [head, markdown(["", *(f"seed {seed}" for seed in seeds), "mean", "rounds minus this, in points"], body)]


def _rates(done: Sequence[tuple[Cell, dict[str, Any]]]) -> list[str]:
    body = [
        [f"`{cell.method}`", str(cell.keep), f"{cell.rate:g}", percent(result["dev_accuracy"])]
        for cell, result in done
        if cell.kind == "rate"
    ]
    head = "### Learning rates\n\nSeed 0, no teacher, on the dev slice."
    return [head, markdown(["method", "keep", "rate", "dev slice"], body)] if body else []


def _models(role: str, cells: Iterable[tuple[Cell, dict[str, Any]]]) -> Row:
    return {cell.seed: result["models"][role] for cell, result in cells if role in result["models"]}


def _scores(row: Row, seeds: Sequence[int]) -> list[str]:
    each = [f"{percent(row[seed]['score'])} ({interval(row[seed]['interval'])})" if seed in row else MISSING for seed in seeds]
    return [*each, percent(statistics.mean(model["score"] for model in row.values())) if row else MISSING]


def _against(row: Row, other: Row) -> str:
    """The paired difference over all seeds that both have, each with its own partner."""
    return _difference([(row[seed], other[seed]) for seed in row if seed in other])


def _difference(pairs: Sequence[tuple[Model | None, Model | None]]) -> str:
    return paired_points([(one["right"], other["right"]) for one, other in pairs if one and other])


def _yes(teacher: bool) -> str:
    return "original" if teacher else "–"
