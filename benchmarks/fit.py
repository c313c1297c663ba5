"""How good are searches for the best shape under a size? On tables of shapes that are all measured, `fit`'s search and those of
four papers (`fit_searches.py` says which): how far their choices are from the best, and how many shapes they measure.

    python benchmarks/fit.py                                  # two hours on two cores; killed, it goes on
    python benchmarks/fit.py --tables                         # only compares, on what is measured
    python benchmarks/fit.py --tasks arithmetic --seeds 0     # 20 minutes

The playground's model, masked, at a half, a third and a quarter of its bytes; 500 dev questions. Measured tables are kept in
benchmarks/fit_scores.json; the comparison is written to docs/fit-study.md.
"""

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fit_scores import PARTS, LimitTable, ScoreTable, ScoreTables, measure_table
from fit_searches import SEARCHES, SEEDED, Grid, Scores
from study import markdown, put_between

from toolkit.cuts.fit_result import FitShape, ShapeRecord
from toolkit.runtime import distributed
from toolkit.runtime.formatting import percent
from toolkit.selection.fit import Deltas
from toolkit.selection.fit.ranking import badness

FILE = Path(__file__).with_name("fit_scores.json")
NAME = "fit-scores"
SUBJECTS = ("arithmetic", "sorting")
DRAWS = 100
"""Of searches that depend on a seed."""
BEGIN, END = "<!-- searches: written by benchmarks/fit.py -->", "<!-- end of searches -->"
SIGNS = {2: "½", 3: "⅓", 4: "¼"}


@dataclass(frozen=True)
class Outcome:
    """Of one search at one limit, means over its draws. Regret: how much its choice's dev loss is above the best one's, in nats,
    and its accuracy below the best one's, in points; `by_accuracy`: the latter where it searches by accuracy."""

    measured: float
    nats: float
    points: float
    by_accuracy: float


def grid_of(table: ScoreTable, limit: LimitTable) -> Grid:
    sizes = {record.shape: record.bytes for record in table.shapes}
    return Grid(table.original, limit.bytes, sizes, Deltas.of(table.axes), limit.candidates)


def outcomes(table: ScoreTable, limit: LimitTable) -> Mapping[str, Outcome]:
    """By the name of the search."""
    grid = grid_of(table, limit)
    losses, wrong = (_scores(table.shapes, metric) for metric in ("dev_loss", "accuracy"))
    least, fewest = (min(scores[shape] for shape in grid.within) for scores in (losses, wrong))
    found = {}
    for name, search in SEARCHES.items():
        runs = []
        for seed in range(DRAWS if name in SEEDED else 1):
            asked = Scores(losses)
            choice, by_accuracy = search(grid, asked, seed), search(grid, Scores(wrong), seed)
            regrets = losses[choice] - least, 100 * (wrong[choice] - fewest), 100 * (wrong[by_accuracy] - fewest)
            runs.append((len(asked.asked), *regrets))
        found[name] = Outcome(*map(statistics.mean, zip(*runs, strict=True)))
    return found


def _scores(shapes: Sequence[ShapeRecord], metric: str) -> dict[FitShape, float]:
    return {record.shape: badness(record.measured, metric) for record in shapes}


def comparison(tables: Sequence[ScoreTable]) -> str:
    """Means over the tables, per limit; the last column over all."""
    found = {part: [outcomes(table, limit) for table in tables for limit in table.limits if limit.part == part] for part in PARTS}
    head = ["search", "shapes measured", *(f"{SIGNS[part]}: nats" for part in PARTS)]
    head += [f"{SIGNS[part]}: points" for part in PARTS] + ["by accuracy: points", "worst: points"]
    body = []
    for name in SEARCHES:
        mine = {part: [each[name] for each in found[part]] for part in PARTS}
        everything = [each for part in PARTS for each in mine[part]]
        measured = ", ".join(f"{statistics.mean(each.measured for each in mine[part]):.3g}" for part in PARTS)
        nats = [f"{statistics.mean(each.nats for each in mine[part]):.4f}" for part in PARTS]
        points = [f"{statistics.mean(each.points for each in mine[part]):.1f}" for part in PARTS]
        by_accuracy = f"{statistics.mean(each.by_accuracy for each in everything):.1f}"
        body.append([name, measured, *nats, *points, by_accuracy, f"{max(each.points for each in everything):.1f}"])
    return markdown(head, body)


def text_of(subject: str, tables: Sequence[ScoreTable]) -> list[str]:
    shapes = [len(grid_of(table, limit).within) for table in tables for limit in table.limits]
    best = [min(_scores(table.shapes, "accuracy")[shape] for shape in grid_of(table, limit).within) for table in tables
            for limit in table.limits]  # fmt: skip
    seeds = f"{len(tables)} seed{'s' * (len(tables) > 1)}"
    return [
        f"### Searches: {subject}",
        f"Means over {seeds} of the calibration, and over {DRAWS} draws of searches that draw. Regret by dev loss in nats per "
        "completion token, and the same choice's by dev accuracy in points; then, where accuracy itself is searched by, over all "
        f"limits; and the worst limit and seed. {min(shapes)} to {max(shapes)} shapes are within a limit; the best answer "
        f"{percent(-max(best))} to {percent(-min(best))} of the dev questions rightly, masked.",
        comparison(tables),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")
    parser.add_argument("--file", type=Path, default=FILE, help="where measured tables are kept")
    parser.add_argument("--name", default=NAME, help="what the runs' names begin with")
    parser.add_argument("--document", type=Path, default=Path("docs/fit-study.md"))
    parser.add_argument("--tasks", type=lambda text: text.split(","), default=SUBJECTS)
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--tables", action="store_true", help="measure nothing")
    given = parser.parse_args()
    found = ScoreTables.load(given.file)
    if not given.tables:
        distributed.start()
        try:
            for seed in given.seeds:
                for subject in given.tasks:
                    key = f"{subject}-seed{seed}"
                    found.tables[key] = measure_table(given.name, subject, seed, given.overrides, found.tables.get(key))
                    found.save(given.file)
        finally:
            distributed.stop()
    parts = []
    for subject in SUBJECTS:
        if tables := [table for key, table in found.tables.items() if key.startswith(f"{subject}-seed")]:
            parts += text_of(subject, tables)
    put_between(given.document, BEGIN, END, parts)
    print("\n\n".join(parts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
