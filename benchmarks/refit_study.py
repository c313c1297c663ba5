"""Which cut should I use? On the playground, at a half, a third and a quarter of the bytes: experts, width, layers, combinations
and the dense form, each with and without refit, before and after fine-tuning. Each cell goes through the real pipeline.

    python benchmarks/refit_study.py                  # hours on two cores; killed, the same command goes on
    python benchmarks/refit_study.py --tables         # only writes docs/cuts-study.md, from what is finished
    python benchmarks/refit_study.py --name trial --document trial.md --seeds 0 \\
        evaluation.examples=20 calibration.examples=16 finetuning.trainer.max_steps=2       # a trial of half an hour

Start it in the checkout; `key.path=value` goes to every cell. Choices were made on the dev slice (docs/cuts-study.md says which);
the test set only reports. What a cell measured is kept in runs/<name>/<cell>.json, and of the study itself in
benchmarks/refit_results.json.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from refit_cells import SHAPES, STEPS, SUBJECTS, RefitCell
from refit_tables import write_tables
from study import StudyResults, conclude, run_cells, study_parser

STUDY = "refit"
"""The name of the study itself; others are trials."""
RESULTS = StudyResults(Path(__file__).with_name("refit_results.json"), STUDY)
FIRST = ("half", "quarter")
"""Sizes that tell most."""


def groups_of(seeds: Sequence[int]) -> list[list[RefitCell]]:
    """In groups that share a run directory: the first seed's first, of each the sizes that tell most."""
    order = [(seed, subject, shape) for seed in seeds for subject in SUBJECTS for shape in SHAPES]
    return [
        [RefitCell(subject, seed, shape, refit, percent) for refit in (False, True) for percent in STEPS]
        for seed, subject, shape in sorted(order, key=lambda at: (at[0] != seeds[0], at[2].size not in FIRST))
    ]


def main() -> int:
    parser = study_parser(__doc__, STUDY, "docs/cuts-study.md")
    parser.add_argument("--at-once", type=int, default=os.cpu_count(), help="cells at the same time, each with one core")
    given = parser.parse_args()
    groups = groups_of(given.seeds)
    failed = run_cells(groups, given, RESULTS)
    cells = [cell for group in groups for cell in group]
    missing = write_tables(given.document, given.name, cells)
    return conclude(given.document, missing, f"{len(cells)} cells", failed)


if __name__ == "__main__":
    sys.exit(main())
