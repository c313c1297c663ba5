"""Which cut? On the playground: every width criterion at three widths, before and after fine-tuning, and every layer criterion
against all sets of layers. Each cell goes through the real pipeline.

    python benchmarks/cuts_study.py                  # hours on two cores; killed, the same command goes on
    python benchmarks/cuts_study.py --tables         # only writes docs/cuts-study.md, from what is finished
    python benchmarks/cuts_study.py --name trial --document trial.md --seeds 0 \\
        evaluation.examples=20 calibration.examples=16 finetuning.trainer.max_steps=2       # a trial of minutes

Start it in the checkout; `key.path=value` goes to every cell. Everything is measured on the dev slice, and nothing is chosen on
it. Before fine-tuning, one sweep of masked models per task and seed tells all (`pollard sweep`). What a cell measured is kept in
runs/<name>/<cell>.json, and of the study itself in benchmarks/cuts_results.json.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from cuts_cells import SUBJECTS, WIDTHS, SweepCell, TrainedCell
from cuts_layers import LayerCell
from cuts_tables import write_tables
from study import PipelineCell, StudyResults, conclude, do_groups, study_parser

from toolkit.selection import WIDTH_CRITERIA

CONTROL = ("fisher", min(WIDTHS))
"""The cell beside which the control is trained, once per task and seed."""

STUDY = "cuts"
"""The name of the study itself; others are trials."""
RESULTS = StudyResults(Path(__file__).with_name("cuts_results.json"), STUDY)


def groups_of(seeds: Sequence[int]) -> list[list[TrainedCell]]:
    """In groups that share a run directory: the first seed's first, of the others the narrowest first, which tell most.
    Criteria that need gradients come last: until then calibration does without."""
    criteria = sorted(WIDTH_CRITERIA, key=lambda name: WIDTH_CRITERIA[name].gradients)
    order = [(width, seed) for width in sorted(WIDTHS) for seed in seeds]
    return [
        [TrainedCell(subject, seed, name, width, control=(name, width) == CONTROL) for name in criteria]
        for width, seed in sorted(order, key=lambda at: at[1] != seeds[0])
        for subject in SUBJECTS
    ]


def main() -> int:
    parser = study_parser(__doc__, STUDY, "docs/cuts-study.md")
    parser.add_argument("--at-once", type=int, default=os.cpu_count(), help="cells at the same time, each with one core")
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    swept = [SweepCell(subject, seed) for seed in given.seeds for subject in SUBJECTS]
    layers = [LayerCell(subject, tuple(given.seeds)) for subject in SUBJECTS]
    trained = groups_of(given.seeds)
    failed: list[str] = []

    def do(cell: PipelineCell) -> str | None:
        return cell.do(given.name, given.overrides)

    if given.name == STUDY:
        RESULTS.restore()
    if not given.tables:
        failed = do_groups([*([cell] for cell in swept), *trained], given.at_once, do)
        for cell in layers:
            cell.do(given.name, given.overrides)
    fine_tuned = [cell for group in trained for cell in group]
    missing = write_tables(given.document, given.name, swept, fine_tuned, layers)
    if given.name == STUDY:
        RESULTS.collect()
    return conclude(given.document, missing, f"{len(swept) + len(fine_tuned) + len(layers)} parts", failed)


if __name__ == "__main__":
    sys.exit(main())
