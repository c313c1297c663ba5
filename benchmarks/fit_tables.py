"""The tables of `fit_study.py`, from finished cells; what is not finished is named there."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fit_cells import BEST, CUTS, CutCell, CutResult, Found, SearchCell, SearchResult, shape_of
from study import Answers, markdown, paired_points, put_between

from toolkit.cuts.fit_result import FitShape
from toolkit.runtime.formatting import MISSING, duration, interval, percent
from toolkit.runtime.intervals import wilson

BEGIN, END = "<!-- tables: written by benchmarks/fit_study.py -->", "<!-- end of tables -->"
SIGNS = {"half": "½", "third": "⅓", "quarter": "¼"}
FIT = "fit"
ROWS = {FIT: "fit", BEST: "the best of all", **{cut: "the dense form" if cut == "dense" else f"{cut} only" for cut in CUTS}}
ROLES = {"refitted": "refit", "recovered": "fine-tuned"}
MOST_REGRET, LEAST_LEAD = 1.0, -0.5
"""Points: what was hoped for of fit's regret in the median, and of its lead on the best single cut everywhere."""
STAGES = ("fit/shapes", "fit/scores", "fit/measure", "fit/choose")


@dataclass(frozen=True)
class Place:
    """One task, size and seed, as far as it is finished."""

    fit: SearchResult | None
    every: SearchResult | None
    cuts: Mapping[str, CutResult]

    def answers(self, row: str, role: str) -> Answers | None:
        result: SearchResult | CutResult | None = self.fit if row == FIT else self.cuts.get(row)
        return result["models"].get(role) if result else None

    def pair(self, row: str, role: str) -> tuple[str, str] | None:
        """Which questions fit answers rightly, and which another row does."""
        mine, other = self.answers(FIT, role), self.answers(row, role)
        return (mine["right"], other["right"]) if mine and other else None

    def found(self, row: str) -> Found | None:
        """The shape of a row, as it was measured on the dev slice."""
        if not self.every or not self.fit:
            return None
        shape = FitShape(*self.fit["chosen"]) if row == FIT else shape_of(self.every, row)  # type: ignore[arg-type]
        return next((each for each in self.every["shapes"] if shape and each["shape"] == list(shape)), None)

    @cached_property
    def regret(self) -> tuple[float, float] | None:
        """Of fit's choice, in nats and in points of accuracy, to the best of either among all shapes."""
        if not self.every or not (mine := self.found(FIT)) or mine["loss"] is None:
            return None
        least = min(each["loss"] for each in self.every["shapes"] if each["loss"] is not None)
        return mine["loss"] - least, 100 * (max(each["score"] for each in self.every["shapes"]) - mine["score"])

    def lead(self, role: str) -> float | None:
        """Points of fit above the best cut that cuts one thing only; None where one of them is not finished."""
        mine, others = self.answers(FIT, role), [self.answers(cut, role) for cut in CUTS if cut in self.cuts]
        scores = [other["score"] for other in others if other]
        return 100 * (mine["score"] - max(scores)) if mine and scores and all(cut in self.cuts for cut in CUTS) else None


Places = Mapping[tuple[str, str, int], Place]  # by task, size and seed


def write_tables(document: Path, study: str, groups: Sequence[Sequence[SearchCell | CutCell]]) -> list[str]:
    """Replaces what stands between the marks in `document`; returns the missing cells."""
    places = {(group[0].subject, group[0].size, group[0].seed): _place(group, study) for group in groups}
    missing = [cell.name for group in groups for cell in group if not cell.result(study)]
    parts = _targets(places)
    for subject in dict.fromkeys(subject for subject, _, _ in places):
        own = {at: place for at, place in places.items() if at[0] == subject and place.fit}
        if own:
            parts += [*_shapes(subject, own), *_paired(subject, own), *_times(subject, own)]
    if missing:
        parts.append(f"### Not finished\n\n{', '.join(f'`{name}`' for name in missing)}.")
    put_between(document, BEGIN, END, parts)
    return missing


def _place(group: Sequence[SearchCell | CutCell], study: str) -> Place:
    searches = {cell.every_shape: cell.result(study) for cell in group if isinstance(cell, SearchCell)}
    cuts = {cell.cut: result for cell in group if isinstance(cell, CutCell) and (result := cell.result(study))}
    return Place(searches[False], searches[True], cuts)


def _targets(places: Places) -> list[str]:
    """What was hoped for, beside what was measured."""
    regrets = [place.regret for place in places.values() if place.regret]
    body = []
    if regrets:
        points = [each for _, each in regrets]
        told = f"{statistics.median(points):.2f} (at most {max(points):.2f}; {len(points)} of {len(places)} searches)"
        body.append([f"fit's regret on the dev slice, in points: {MOST_REGRET:g} or less in the median", told])
    for role, how in ROLES.items():
        for quarter in (False, True):
            leads = [lead for at, place in places.items() if (lead := place.lead(role)) is not None
                     if not quarter or at[1] == "quarter"]  # fmt: skip
            if leads:
                reached = sum(lead > 0 if quarter else lead >= LEAST_LEAD for lead in leads)
                told = f"in {reached} of {len(leads)}; the least {min(leads):+.2f}, the median {statistics.median(leads):+.2f}"
                hoped = "better at ¼" if quarter else f"at least {LEAST_LEAD:+g} everywhere"
                body.append([f"fit minus the best single cut, {how}, in points: {hoped}", told])
    return ["### What was hoped for", markdown(["target", "measured"], body)] if body else []


def _shapes(subject: str, places: Places) -> list[str]:
    """Per size: what was chosen, and how good it is."""
    reference = next((place.fit for place in places.values() if place.fit and "original" in place.fit["models"]), None)
    told = (
        f"### {subject}: fit, single cuts, and the best of all\n\nShapes are layers × experts × width, of each seed. Dev loss: "
        "nats above the original, refit; test accuracies: 95 % intervals of the mean of the seeds, as of one model's answers, "
        "since the seeds share their questions."
    )
    if reference:
        told += f" The original: {_mean([reference['models']['original']])}."
    parts = [told]
    for size, sign in SIGNS.items():
        own = [place for at, place in places.items() if at[1] == size]
        body = []
        for row, title in ROWS.items():
            found = [shape for place in own if (shape := place.found(row))]
            answers = [[each for place in own if (each := place.answers(row, role))] for role in ROLES]
            if found or any(answers):
                shapes = ", ".join(dict.fromkeys(_counts(each) for each in found)) or MISSING
                losses = [each["loss"] for each in found if each["loss"] is not None]
                loss = f"{statistics.mean(losses):.4f}" if losses else MISSING
                score = percent(statistics.mean(each["score"] for each in found)) if found else MISSING
                body.append([title, shapes, loss, score, *map(_mean, answers), str(max(len(found), *map(len, answers)))])
        if body:
            head = ["cut", "what stays", "dev loss", "dev accuracy", "test, refit", "test, fine-tuned", "seeds"]
            parts += [f"**{sign} of the bytes**", markdown(head, body)]
    return parts


def _paired(subject: str, places: Places) -> list[str]:
    """Fit against every other row, question by question."""
    body = []
    for size, sign in SIGNS.items():
        own = [place for at, place in places.items() if at[1] == size]
        for row, title in ROWS.items():
            pairs = [[both for place in own if (both := place.pair(row, role))] for role in ROLES]
            if row != FIT and any(pairs):
                body.append([sign, title, *map(paired_points, pairs)])
    if not body:
        return []
    told = (
        f"### {subject}: fit against the others\n\nFit minus the other, in points of test accuracy over all seeds that both "
        "have: 95 % interval, and p of McNemar's test. The seeds share their questions, so intervals and p are too small. Of the "
        "same shape the difference is 0."
    )
    return [told, markdown(["bytes", "minus", *ROLES.values()], body)]


def _times(subject: str, places: Places) -> list[str]:
    """What the search took, and what measuring every shape took."""
    body = []
    for size, sign in SIGNS.items():
        own = [place for at, place in places.items() if at[1] == size and place.fit]
        if not own:
            continue
        regrets = [place.regret for place in own if place.regret]
        stages = [_over(own, lambda place, stage=stage: place.fit["seconds"].get(stage)) for stage in STAGES[1:]]  # type: ignore[misc]
        every = [sum(each["seconds"] for each in place.every["shapes"]) for place in own if place.every]
        measured = [len(place.fit["shapes"]) for place in own if place.fit]
        all_shapes = [len(place.every["shapes"]) for place in own if place.every]
        regret = ", ".join(f"{nats:.4f} / {points:.1f}" for nats, points in regrets) or MISSING
        numbers = [f"{statistics.median(measured):g}", *map(duration, stages)]
        numbers += [f"{statistics.median(all_shapes):g}" if all_shapes else MISSING]
        body.append([sign, *numbers, duration(statistics.median(every)) if every else MISSING, regret])
    told = (
        f"### {subject}: the time of the search\n\nMedians of the seeds, from the runs' manifests; other work shared the cores. "
        "Regret: of each seed, in nats and in points of the dev slice."
    )
    head = ["bytes", "shapes measured", "scores", "measuring", "trials", "of all shapes", "measuring all", "regret"]
    return [told, markdown(head, body)]


def _over(places: Sequence[Place], number: Callable[[Place], float | None]) -> float | None:
    found = [each for place in places if (each := number(place)) is not None]
    return statistics.median(found) if found else None


def _mean(models: Sequence[Answers]) -> str:
    """ "90.8 % (89.5–92.0 %)": the interval that as many questions as one seed's leave."""
    if not models:
        return MISSING
    score, n = statistics.mean(model["score"] for model in models), min(model["n"] for model in models)
    return f"{percent(score)} ({interval(wilson(round(score * n), n))})"


def _counts(found: Found) -> str:
    """ "4 × 6 × 152"."""
    shape = FitShape(*found["shape"])  # type: ignore[arg-type]
    return " × ".join(map(str, shape[:3])) + (" (dense)" if shape.form == "dense" else "")
