"""The tables of docs/criteria-study.md, from finished runs; what is not finished is named there."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from study import markdown, put_between

from toolkit.runtime.formatting import MISSING, interval, percent
from toolkit.runtime.intervals import mcnemar

BEGIN, END = "<!-- tables: written by benchmarks/criteria_study.py -->", "<!-- end of tables -->"


@dataclass(frozen=True)
class Swept:
    """One sweep: all criteria, all keeps."""

    subject: str
    calibration: str
    tokens: str
    run: Path
    arguments: list[str]

    @property
    def table(self) -> dict[str, Any] | None:
        path = self.run / "sweep" / "table.json"
        return json.loads(path.read_text()) if path.exists() else None

    def right(self, row: dict[str, Any]) -> dict[int, bool]:
        """Per question, whether the masked model of this row of the table answered it rightly."""
        measured = json.loads((self.run / "sweep" / row["file"]).read_text())
        return {i: mark == "1" for i, mark in enumerate(measured["task"]["right"])}


@dataclass(frozen=True)
class Recovered:
    """One fine-tuned model."""

    criterion: str
    keep: int
    seed: int
    run: Path
    arguments: list[str]

    @property
    def scores(self) -> dict[str, Any] | None:
        """None until the manifest says that its evaluation is finished."""
        manifest = self.run / "manifest.json"
        if not manifest.exists() or "evaluate/recovered" not in json.loads(manifest.read_text())["stages"]:
            return None
        return json.loads((self.run / "evaluation" / "recovered.json").read_text())

    @property
    def right(self) -> dict[int, bool]:
        """Per question, whether it was answered rightly."""
        lines = (self.run / "evaluation" / "recovered.predictions.jsonl").read_text().splitlines()
        return {item["index"]: item["correct"] for item in map(json.loads, lines)}


def write_tables(document: Path, swept: Sequence[Swept], recovered: Sequence[Recovered]) -> list[str]:
    """Replaces what stands between the marks in `document` (makes one where there is none); returns the missing cells."""
    missing = [cell.run.name for cell in swept if cell.table is None]
    missing += [cell.run.name for cell in recovered if cell.scores is None]
    parts = [*pruned_tables(swept), *whose_data_tables(swept), *recovered_tables(recovered)]
    if missing:
        parts.append("### Not finished\n\n" + ", ".join(f"`{name}`" for name in missing) + ".")
    put_between(document, BEGIN, END, parts)
    return missing


def pruned_tables(swept: Sequence[Swept]) -> list[str]:
    """Per task: criteria and tokens down, calibration and keep across."""
    parts = []
    for subject in dict.fromkeys(cell.subject for cell in swept):
        there = {(cell.calibration, cell.tokens): cell.table for cell in swept if cell.subject == subject}
        tables = [table for table in there.values() if table]
        if not tables:
            continue
        original = tables[0]["rows"][0]["task"]
        parts.append(
            f"### {subject}, pruned and not fine-tuned\n\n{original['n']:,} dev questions; the original: "
            f"{percent(original['score'])} ({interval(original['interval'])}). `random`: mean of the seeds, lowest to highest."
        )
        calibrations = list(dict.fromkeys(calibration for calibration, _ in there))
        for calibration in calibrations:
            rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
            for (at, tokens), table in there.items():
                for row in table["rows"][1:] if table and at == calibration else ():
                    rows.setdefault((row["label"], tokens), []).append(row)
            keeps = sorted({row["keep"] for found in rows.values() for row in found}, reverse=True)
            body = [
                [f"`{label}`", "all" if tokens == "reconstruction" else tokens]
                + [_cell([row["task"] for row in found if row["keep"] == keep]) for keep in keeps]
                for (label, tokens), found in rows.items()
            ]
            if body:
                parts.append(f"Calibrated on {calibration}:")
                parts.append(markdown(["criterion", "tokens", *(f"keep {keep}" for keep in keeps)], body))
    return parts


def whose_data_tables(swept: Sequence[Swept]) -> list[str]:
    """Per task, criterion and keep the paired test between calibration on the task and on the mix (`random` needs neither)."""
    parts, count = [], 0
    for subject in dict.fromkeys(cell.subject for cell in swept):
        body = []
        for tokens in dict.fromkeys(cell.tokens for cell in swept):
            both = [cell for cell in swept if (cell.subject, cell.tokens) == (subject, tokens) and cell.table]
            if len(both) < 2:
                continue
            rows = [
                {(row["label"], row["keep"]): row for row in (cell.table or {})["rows"][1:] if row["label"] != "random"}
                for cell in both
            ]
            keeps = sorted({keep for _, keep in rows[0]}, reverse=True)
            for label in dict.fromkeys(label for label, _ in rows[0]):
                tests = [
                    _paired(*(cell.right(found[label, keep]) for cell, found in zip(both, rows, strict=True))) for keep in keeps
                ]
                count += len(tests)
                body.append([f"`{label}`", "all" if tokens == "reconstruction" else tokens, *tests])
        if body:
            parts += [f"{subject}:", markdown(["criterion", "tokens", *(f"keep {keep}" for keep in keeps)], body)]
    head = (
        "### Whose data: the task's own, or all six tasks'\n\nQuestion by question of the dev slice, pruned and not "
        "fine-tuned: how many only the model calibrated on its own task answers rightly, how many only the one calibrated on "
        f"all six, and the exact two-sided p of McNemar's test. {count} tests: between equals, about one in twenty falls "
        "below 0.05."
    )
    return [head, *parts] if parts else []


def recovered_tables(recovered: Sequence[Recovered]) -> list[str]:
    """The scores, and between every two criteria at the same keep and seed the paired test."""
    done = [cell for cell in recovered if cell.scores]
    if not done:
        return []
    keeps, criteria = (list(dict.fromkeys(getattr(cell, name) for cell in done)) for name in ("keep", "criterion"))
    seeds = sorted({cell.seed for cell in done})
    at = {(cell.criterion, cell.keep, cell.seed): cell for cell in done}
    scores, pairs = [], []
    for keep in keeps:
        for criterion in criteria:
            found = [at[criterion, keep, seed].scores if (criterion, keep, seed) in at else None for seed in seeds]
            known = [scored["score"] for scored in found if scored]
            if known:
                each = [f"{percent(scored['score'])} ({interval(scored['interval'])})" if scored else MISSING for scored in found]
                scores.append([str(keep), f"`{criterion}`", *each, percent(statistics.mean(known))])
        for one, other in combinations(criteria, 2):
            both = [[at.get((criterion, keep, seed)) for criterion in (one, other)] for seed in seeds]
            tests = [_paired(*(cell.right if cell else None for cell in cells)) for cells in both]
            if any(test != MISSING for test in tests):
                pairs.append([str(keep), f"`{one}`", f"`{other}`", *tests])
    names = [f"seed {seed}" for seed in seeds]
    sizes = ", ".join(f"{n:,}" for n in sorted({cell.scores["n"] for cell in done if cell.scores}))
    count = sum(test != MISSING for row in pairs for test in row[3:])
    parts = [
        f"### Fine-tuned\n\n{sizes} test questions, 95 % Wilson intervals.",
        markdown(["keep", "criterion", *names, "mean"], scores),
    ]
    if pairs:
        parts.append(
            "Question by question: how many the first alone and the second alone answers rightly, and the exact two-sided p of "
            f"McNemar's test. {count} of them: between equals, about one in twenty falls below 0.05."
        )
        parts.append(markdown(["keep", "first", "second", *names], pairs))
    return parts


def _cell(found: Sequence[dict[str, Any]]) -> str:
    scores = [task["score"] for task in found]
    if not scores:
        return MISSING
    if len(scores) == 1:
        return f"{percent(scores[0])} ({interval(found[0]['interval'])})"
    return f"{percent(statistics.mean(scores))} ({percent(min(scores))} to {percent(max(scores))})"


def _paired(one: dict[int, bool] | None, other: dict[int, bool] | None) -> str:
    """How many questions only the first and only the second answers rightly, and how likely that is between equals."""
    if one is None or other is None or one.keys() != other.keys():
        return MISSING
    first = sum(one[i] and not other[i] for i in one)
    second = sum(other[i] and not one[i] for i in one)
    return f"{first} / {second}, p = {mcnemar(first, second):.2g}"
