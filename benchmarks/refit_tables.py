"""The tables of `refit_study.py`, from finished cells; what is not finished is named there."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from refit_cells import EXPERTS, SHAPES, STEPS, SUBJECTS, Measured, RefitCell, RefitResult, Shape
from study import markdown, paired_points, put_between

from toolkit.runtime.formatting import MISSING, duration, interval, percent
from toolkit.runtime.intervals import wilson

BEGIN, END = "<!-- tables: written by benchmarks/refit_study.py -->", "<!-- end of tables -->"
SIZES = {"half": "½", "third": "⅓", "quarter": "¼"}
BEFORE, *TRAINED = (0, *STEPS)
"""Percent of the steps."""
HALVED = SHAPES[0]
ENOUGH = 0.7
"""What refit alone should leave of `arithmetic` with half of the experts."""
Row = Mapping[int, Measured]  # by seed


@dataclass(frozen=True)
class Finished:
    """What is there of one task."""

    subject: str
    results: Sequence[tuple[RefitCell, RefitResult]]

    @property
    def original(self) -> Measured | None:
        return next((result["models"]["original"] for _, result in self.results if "original" in result["models"]), None)

    def row(self, shape: Shape, refit: bool, percent: int) -> Row:
        """By seed, the model that had `percent` of the steps."""
        found: dict[int, Measured] = {}
        for cell, result in self.results:
            role = "recovered" if percent else cell.start
            if (cell.shape, cell.refit, cell.percent) == (shape, refit, percent or min(STEPS)):
                found[cell.seed] = result["models"][role]
        return found

    def seconds(self, shape: Shape, refit: bool, percent: int, stage: str) -> float | None:
        """The least of the seeds, which other work on the cores disturbed least."""
        wanted = shape, refit, percent
        found = [
            result["seconds"][stage]
            for cell, result in self.results
            if (cell.shape, cell.refit, cell.percent) == wanted and stage in result["seconds"]
        ]
        return min(found, default=None)

    def shapes(self, size: str) -> list[Shape]:
        """Those of which something is finished."""
        there = {cell.shape for cell, _ in self.results}
        return [shape for shape in SHAPES if shape.size == size and shape in there]


def write_tables(document: Path, study: str, cells: Sequence[RefitCell]) -> list[str]:
    """Replaces what stands between the marks in `document`; returns the missing cells."""
    found = [(cell, result) for cell in cells if (result := cell.result(study))]
    names = {cell.name for cell, _ in found}
    missing = [cell for cell in cells if cell.name not in names]
    tasks = [Finished(subject, own) for subject in SUBJECTS if (own := [both for both in found if both[0].subject == subject])]
    parts = _targets(tasks)
    for task in tasks:
        parts += [*_accuracies(task), *_refit_or_steps(task), *_against_experts(task), *_times(task)]
    if missing:
        parts.append(f"### Which cut: not finished\n\n{_not_finished(missing, cells)}.")
    put_between(document, BEGIN, END, parts)
    return [cell.name for cell in missing]


def _targets(tasks: Sequence[Finished]) -> list[str]:
    """What was hoped for, beside what was measured."""
    body = []
    for task in tasks:
        if task.subject == SUBJECTS[0] and (row := task.row(HALVED, True, BEFORE)):
            body.append([f"refit alone, 8 → 4 experts, `{task.subject}`: {percent(ENOUGH, 0)} or more", _mean(row)])
        differences = [
            (mean_difference, paired_points(pairs))
            for shape in SHAPES
            if (pairs := _pairs(task.row(shape, True, 30), task.row(shape, False, 100)))
            for mean_difference in [_mean_difference(pairs)]
        ]
        if differences:
            reached = sum(difference >= 0 for difference, _ in differences)
            worst = min(differences)[1]
            told = f"in {reached} of {len(differences)} shapes; the least: {worst}"
            body.append([f"refit and 30 % of the steps at least as good as 100 % without, `{task.subject}`", told])
        for refit, steps in ((False, BEFORE), (True, BEFORE), (False, 100), (True, 100)):
            if best := _best_combination(task, "quarter", refit, steps):
                how = f"{'refitted' if refit else 'not refitted'}, {_steps(steps)}"
                body.append([f"a combination beats experts only at ¼, `{task.subject}`, {how}", best])
    return ["### What was hoped for", markdown(["target", "measured"], body)] if body else []


def _best_combination(task: Finished, size: str, refit: bool, steps: int) -> str | None:
    """The combination with the most right answers minus experts only; None where either is missing."""
    shapes = {shape: task.row(shape, refit, steps) for shape in task.shapes(size)}
    experts = next((row for shape, row in shapes.items() if shape.cut == EXPERTS), {})
    found = [
        (_mean_difference(pairs), shape.cut, paired_points(pairs))
        for shape, row in shapes.items()
        if " + " in shape.cut and (pairs := _pairs(row, experts))
    ]
    return f"{max(found)[1]}: {max(found)[2]}" if found else None


def _accuracies(task: Finished) -> list[str]:
    """Per size: every shape, with and without refit, before and after fine-tuning."""
    original = task.original
    told = (
        f"### {task.subject}: which cut\n\n95 % intervals of the mean of the seeds, as of one model's answers, since the seeds "
    )
    told += "share their questions."
    if original:
        told += (
            f" {original['n']:,} test questions; the original: {_mean({0: original})}, {original['parameters']:,} parameters, "
            f"{original['active_parameters']:,} of them active."
        )
    parts = [told]
    for size, sign in SIZES.items():
        body = []
        for shape in task.shapes(size):
            for refit in (False, True):
                rows = [task.row(shape, refit, steps) for steps in (BEFORE, *TRAINED)]
                if any(rows):
                    one = next(model for row in rows for model in row.values())
                    sizes = [
                        _share(one["bytes"], original, "bytes"),
                        _share(one["active_parameters"], original, "active_parameters"),
                    ]
                    seeds = str(max(map(len, rows)))
                    body.append([shape.cut, shape.what_stays, *sizes, _yes(refit), *map(_mean, rows), seeds])
        if body:
            head = ["cut", "what stays", "bytes", "active", "refit", *map(_steps, (BEFORE, *TRAINED)), "seeds"]
            parts += [f"**{sign} of the bytes**", markdown(head, body)]
    return parts


def _refit_or_steps(task: Finished) -> list[str]:
    """Refit against the same without, and against more steps."""
    compared = [(BEFORE, BEFORE), *((steps, steps) for steps in TRAINED), (30, 100)]
    body = []
    for size, sign in SIZES.items():
        for shape in task.shapes(size):
            pairs = [_pairs(task.row(shape, True, steps), task.row(shape, False, other)) for steps, other in compared]
            if any(pairs):
                body.append([sign, shape.cut, *map(paired_points, pairs)])
    if not body:
        return []
    head = [
        f"{_steps(steps)}, both" if steps == other else f"{_steps(steps)} against {_steps(other)}" for steps, other in compared
    ]
    told = (
        f"### {task.subject}: what refit adds\n\nWith refit minus without, in points over all seeds that both have, question by "
        "question: 95 % interval, and p of McNemar's test. The seeds share their questions, so intervals and p are too small."
    )
    return [told, markdown(["bytes", "cut", *head], body)]


def _against_experts(task: Finished) -> list[str]:
    """Every other cut against experts only, and at a quarter of the bytes against experts only at a third, too."""
    columns = [(False, BEFORE), (True, BEFORE), (False, 100), (True, 100)]
    experts = {shape.size: shape for shape in SHAPES if shape.cut == EXPERTS}
    body = []
    for size, sign in SIZES.items():
        for other in [experts[size], *([experts["third"]] if size == "quarter" else [])]:
            for shape in task.shapes(size):
                pairs = [_pairs(task.row(shape, *column), task.row(other, *column)) for column in columns]
                if shape.cut != EXPERTS and any(pairs):
                    minus = f"{other.what_stays} ({SIZES[other.size]})"
                    body.append([sign, f"{shape.cut} ({shape.what_stays})", minus, *map(paired_points, pairs)])
    if not body:
        return []
    head = [f"{'refitted' if refit else 'not refitted'}, {_steps(steps)}" for refit, steps in columns]
    told = (
        f"### {task.subject}: every cut against fewer experts\n\nIn points, as above; with a quarter of the bytes also against "
        "the experts that a third has room for."
    )
    return [told, markdown(["bytes", "cut", "minus", *head], body)]


def _times(task: Finished) -> list[str]:
    """Refit beside the fewest steps that are as good without it."""
    body = []
    for size, sign in SIZES.items():
        for shape in task.shapes(size):
            refitted = task.row(shape, True, BEFORE)
            if refitted:
                took = task.seconds(shape, True, min(STEPS), "refit")
                body.append([sign, shape.cut, _mean(refitted), duration(took), *_fewest_steps(task, shape, refitted)])
    if not body:
        return []
    told = (
        f"### {task.subject}: the time of refit\n\nBeside fine-tuning without refit that answers at least as many questions "
        "rightly, among those measured. Accuracies are means of the seeds, times the least of them, from the runs' manifests: "
        "other work shared the cores."
    )
    head = ["bytes", "cut", "refitted", "time of refit", "fine-tuned instead", "accuracy", "its time"]
    return [told, markdown(head, body)]


def _fewest_steps(task: Finished, shape: Shape, refitted: Row) -> list[str]:
    """How many, the accuracy after them, and what they took."""
    for steps in TRAINED:
        row = task.row(shape, False, steps)
        if row and _score(row) >= _score(refitted):
            return [f"{STEPS[steps]} steps", _mean(row), duration(task.seconds(shape, False, steps, "recover"))]
    return [f"more than {max(STEPS.values())} steps", MISSING, MISSING]


def _not_finished(missing: Sequence[RefitCell], cells: Iterable[RefitCell]) -> str:
    """Names them; where all of a task, size and seed, with or without refit, are missing, in one."""
    groups: dict[str, dict[int, list[RefitCell]]] = {}
    for cell in cells:
        part = f"{cell.subject} at {SIZES[cell.shape.size]}, {'refitted' if cell.refit else 'not refitted'},"
        groups.setdefault(part, {}).setdefault(cell.seed, []).append(cell)
    whole, parts = set[RefitCell](), []
    for part, by_seed in groups.items():
        absent = {seed: own for seed, own in by_seed.items() if set(own) <= set(missing)}
        whole |= {cell for own in absent.values() for cell in own}
        parts += [f"all of {part} with seed {', '.join(map(str, absent))}"] if absent else []
    return "; ".join([*(f"`{cell.name}`" for cell in missing if cell not in whole), *parts])


def _pairs(row: Row, other: Row) -> list[tuple[str, str]]:
    """The answers of the seeds that both have."""
    return [(row[seed]["right"], other[seed]["right"]) for seed in row if seed in other]


def _mean_difference(pairs: Sequence[tuple[str, str]]) -> float:
    return statistics.mean((one.count("1") - other.count("1")) / len(one) for one, other in pairs)


def _score(row: Row) -> float:
    return statistics.mean(model["score"] for model in row.values())


def _mean(row: Row) -> str:
    """ "90.8 % (89.5–92.0 %)": the interval that as many questions as one seed's leave."""
    if not row:
        return MISSING
    score, n = _score(row), min(model["n"] for model in row.values())
    return f"{percent(score)} ({interval(wilson(round(score * n), n))})"


def _share(number: int, original: Measured | None, key: str) -> str:
    return percent(number / original[key], 0) if original else MISSING  # type: ignore[literal-required]


def _steps(steps: int) -> str:
    return f"{STEPS[steps]} steps" if steps else "no steps"


def _yes(refit: bool) -> str:
    return "yes" if refit else "no"
