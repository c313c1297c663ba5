"""What does a pruned model learn beyond the task's examples? Hidden states where layers are gone, the original's own questions
and answers, gradients for experts that were not chosen, experts for a second task, shared adapters; each from a refitted start,
too. Each cell goes through the real pipeline, on the playground.

    python benchmarks/recovery_ideas_study.py                  # five hours of one core; killed, the same command goes on
    python benchmarks/recovery_ideas_study.py --parts a,b      # of parts a to f, those
    python benchmarks/recovery_ideas_study.py --tables         # only writes docs/recovery.md, from what is finished
    python benchmarks/recovery_ideas_study.py --name trial --document trial.md --seeds 0 --parts b \\
        evaluation.examples=20 finetuning.trainer.max_steps=2                               # a trial of minutes

Start it in the checkout; `key.path=value` goes to every cell. The test set only reports. What a cell measured is kept in
runs/<name>/<cell>.json, and of the study itself in benchmarks/recovery_ideas_results.json. Part c needs the model that
`fine_grained.py` makes, which is done first where it is missing.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import fine_grained
from recovery_ideas_cells import IdeaCell
from recovery_ideas_tables import write_tables
from recovery_ideas_variants import PARTS, VARIANTS
from study import StudyResults, conclude, run_cells, study_parser

STUDY = "recovery-ideas"
"""The name of the study itself; others are trials."""
RESULTS = StudyResults(Path(__file__).with_name("recovery_ideas_results.json"), STUDY)
ALL_PARTS = [part.letter for part in PARTS]
FINE_GRAINED = str(fine_grained.FINE_GRAINED.model)


def groups_of(seeds: Sequence[int], parts: Sequence[str]) -> list[list[IdeaCell]]:
    """The first seed's first. In groups that share a run directory; those of part d begin with one another's models, so they are
    one group."""
    groups: dict[tuple[int, str], list[IdeaCell]] = {}
    for seed in seeds:
        for variant in VARIANTS:
            if variant.part in parts:
                cell = IdeaCell(variant, seed)
                groups.setdefault((seed, cell.run(STUDY) if cell.home != "d" else "d"), []).append(cell)
    return list(groups.values())


def letters(text: str) -> list[str]:
    """ "a,c" """
    found = text.split(",")
    if unknown := set(found) - set(ALL_PARTS):
        raise ValueError(f"no part {', '.join(sorted(unknown))}")
    return found


def main() -> int:
    parser = study_parser(__doc__, STUDY, "docs/recovery.md")
    parser.add_argument("--at-once", type=int, default=os.cpu_count(), help="cells at the same time, each with one core")
    parser.add_argument("--parts", type=letters, default=ALL_PARTS, help="a,b,…")
    given = parser.parse_args()
    groups = groups_of(given.seeds, given.parts)
    needs_model = any(f"model={FINE_GRAINED}" in cell.variant.keys for group in groups for cell in group)
    if needs_model and not given.tables:
        subprocess.run([sys.executable, fine_grained.__file__], check=True)
    failed = run_cells(groups, given, RESULTS)
    cells = [cell for group in groups_of(given.seeds, ALL_PARTS) for cell in group]
    missing = write_tables(given.document, given.name, cells)
    return conclude(given.document, missing, f"{len(cells)} cells", failed)


if __name__ == "__main__":
    sys.exit(main())
