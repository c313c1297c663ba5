"""The tables of `recovery_ideas_study.py`, from finished cells; what is not finished is named there."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from recovery_ideas_cells import IdeaCell, IdeaResult
from recovery_ideas_variants import PARTS, SUBJECTS, VARIANTS, Part, Variant
from study import markdown, paired_points, put_between

from toolkit.runtime.formatting import MISSING, duration, interval, percent
from toolkit.runtime.intervals import wilson

BEGIN, END = "<!-- tables: written by benchmarks/recovery_ideas_study.py -->", "<!-- end of these tables -->"
CEILING, WITHIN = "b-everything-teacher", 2.0
"""What few examples should come near, and how near, in points."""
TRAINED = "recovered"
PREPARING = ("answers", "teacher", "student", "refit", "recover")
"""What the names of the stages begin with whose time is that of learning."""
Row = Mapping[int, IdeaResult]  # by seed


@dataclass(frozen=True)
class Finished:
    """What is there, by variant and seed."""

    results: Mapping[str, Row]

    def row(self, name: str | None) -> Row:
        return self.results.get(name or "", {})

    def right(self, name: str | None, role: str, subject: str) -> dict[int, str]:
        """By seed, a text with a 1 for every question answered rightly."""
        models = {seed: result["models"].get(role, {}) for seed, result in self.row(name).items()}
        return {seed: tasks[subject] for seed, tasks in models.items() if subject in tasks}

    def difference(self, variant: Variant, subject: str) -> str:
        """To what it is compared with, paired, over all seeds that both have."""
        return paired_points(self.pairs(variant, subject))

    def pairs(self, variant: Variant, subject: str) -> list[tuple[str, str]]:
        own, other = (self.right(name, TRAINED, subject) for name in (variant.name, variant.against))
        return [(own[seed], other[seed]) for seed in own if seed in other]


def write_tables(document: Path, study: str, cells: Sequence[IdeaCell]) -> list[str]:
    """Puts them between their marks; returns the names of the cells that are not finished."""
    results: dict[str, dict[int, IdeaResult]] = {}
    missing = []
    for cell in cells:
        found = cell.result(study)
        if found is None:
            missing.append(cell.name)
        else:
            results.setdefault(cell.variant.name, {})[cell.seed] = found
    finished = Finished(results)
    parts = [_verdict(finished)] if finished.row(CEILING) else []
    parts += [text for part in PARTS for text in _part(part, finished)]
    if missing:
        parts.append(f"### Not finished\n\n{_named(cells, missing)}.")
    put_between(document, BEGIN, END, parts)
    return missing


def _part(part: Part, finished: Finished) -> list[str]:
    """Its heading and its table, where something is finished."""
    variants = [variant for variant in VARIANTS if variant.part == part.letter and finished.row(variant.name)]
    if not variants:
        return []
    subjects = SUBJECTS if part.letter == "d" else SUBJECTS[:1]
    told = [f"minus {part.compared_with}"] if len(subjects) == 1 else [f"{name}, minus {part.compared_with}" for name in subjects]
    head = ["", *([*subjects] if len(subjects) > 1 else ["accuracy"]), "seeds", *told, "steps", "time"]
    body = [*_before(variants, finished, subjects, len(head)), *(_trained(variant, finished, subjects) for variant in variants)]
    return [
        f"### ({part.letter}) {part.title}",
        markdown(head, body),
    ]


def _before(variants: Iterable[Variant], finished: Finished, subjects: Sequence[str], columns: int) -> list[list[str]]:
    """Models that nothing was trained of."""
    body = []
    for variant in variants:
        for role in variant.models:
            if role != TRAINED:
                by_subject = [finished.right(variant.name, role, subject) for subject in subjects]
                title = role if role == "original" else f"{variant.title}: {role}, before"
                filled = [title, *map(_mean, by_subject), str(len(by_subject[0]))]
                body.append([*filled, *[MISSING] * (columns - len(filled))])
    return body


def _trained(variant: Variant, finished: Finished, subjects: Sequence[str]) -> list[str]:
    row = finished.row(variant.name)
    by_subject = [finished.right(variant.name, TRAINED, subject) for subject in subjects]
    differences = [finished.difference(variant, subject) for subject in subjects]
    steps = "/".join(sorted({f"{result['steps']:,}" for result in row.values()}))
    return [
        variant.title,
        *map(_mean, by_subject),
        str(len(row)),
        *differences,
        steps,
        duration(min(map(_seconds, row.values()))),
    ]


def _verdict(finished: Finished) -> str:
    """How near few examples come to all of them."""
    found = {}
    for variant in VARIANTS:
        pairs = finished.pairs(variant, SUBJECTS[0]) if variant.against == CEILING and variant.place == "few" else []
        if pairs:
            found[variant.title] = 100 * statistics.mean((own.count("1") - all_.count("1")) / len(own) for own, all_ in pairs)
    near = [f"{title} ({points:+.2f})" for title, points in found.items() if points >= -WITHIN]
    return f"Within {WITHIN:g} points of the ceiling: {'; '.join(near) or 'none'}."


def _seconds(result: IdeaResult) -> float:
    return sum(seconds for stage, seconds in result["seconds"].items() if stage.startswith(PREPARING))


def _mean(right: Mapping[int, str]) -> str:
    """ "90.8 % (89.5–92.0 %)": the interval that as many questions as one seed's leave."""
    if not right:
        return MISSING
    score, n = statistics.mean(answers.count("1") / len(answers) for answers in right.values()), min(map(len, right.values()))
    return f"{percent(score)} ({interval(wilson(round(score * n), n))})"


def _named(cells: Iterable[IdeaCell], missing: Sequence[str]) -> str:
    """Each with its seeds."""
    seeds: dict[str, list[str]] = {}
    for cell in cells:
        if cell.name in missing:
            seeds.setdefault(cell.variant.name, []).append(str(cell.seed))
    return "; ".join(f"`{name}` with seed {', '.join(own)}" for name, own in seeds.items())
