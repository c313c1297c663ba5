"""Is the shape that `pruning.fit` finds the best, and better than one kind of cut alone? On the playground, at a half, a third
and a quarter of the bytes: fit, every shape measured, experts only, width only, layers only, the dense form; refit, and after
fine-tuning. Each cell goes through the real pipeline.

    python benchmarks/fit_study.py                  # many hours on two cores; killed, the same command goes on
    python benchmarks/fit_study.py --tables         # only writes docs/fit-study.md, from what is finished
    python benchmarks/fit_study.py --name trial --document trial.md --seeds 0 --tasks sorting --sizes quarter \\
        pruning.fit.examples=20 evaluation.examples=20 calibration.examples=16 finetuning.trainer.max_steps=10

Start it in the checkout; `key.path=value` goes to every cell. Choices are made on the dev slice; the test set only reports. What
a cell measured is kept in runs/<name>/<cell>.json, and of the study itself in benchmarks/fit_results.json.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from fit_cells import BEST, CUTS, SIZES, SUBJECTS, CutCell, SearchCell
from fit_tables import write_tables
from study import StudyResults, conclude, run_cells, study_parser

STUDY = "fit"
"""The name of the study itself; others are trials."""
RESULTS = StudyResults(Path(__file__).with_name("fit_results.json"), STUDY)
Cell = SearchCell | CutCell


def groups_of(seeds: Sequence[int], subjects: Sequence[str] = SUBJECTS, sizes: Sequence[str] = tuple(SIZES)) -> list[list[Cell]]:
    """In groups of one task, size and seed, whose searches come first: the first seed's first, of each a quarter first, which
    tells most."""
    order = [(seed, size, subject) for seed in seeds for size in reversed(sizes) for subject in subjects]
    return [
        [
            SearchCell(subject, size, seed),
            SearchCell(subject, size, seed, every_shape=True),
            *(CutCell(subject, size, seed, cut) for cut in (*CUTS, BEST)),
        ]
        for seed, size, subject in order
    ]


def main() -> int:
    parser = study_parser(__doc__, STUDY, "docs/fit-study.md")
    parser.add_argument("--at-once", type=int, default=os.cpu_count(), help="cells at the same time, each with one core")
    parser.add_argument("--tasks", type=lambda text: text.split(","), default=SUBJECTS)
    parser.add_argument("--sizes", type=lambda text: text.split(","), default=tuple(SIZES))
    given = parser.parse_args()
    groups = groups_of(given.seeds, given.tasks, given.sizes)
    failed = run_cells(groups, given, RESULTS)
    cells = [cell for group in groups for cell in group]
    missing = write_tables(given.document, given.name, groups)
    return conclude(given.document, missing, f"{len(cells)} cells", failed)


if __name__ == "__main__":
    sys.exit(main())
