"""Which criterion? On the playground: every one pruned, and the contenders fine-tuned, each cell through the real pipeline.

    python benchmarks/criteria_study.py                  # hours on two cores; killed, the same command goes on
    python benchmarks/criteria_study.py --tables         # only writes docs/criteria-study.md, from what is finished
    python benchmarks/criteria_study.py --name trial --document trial.md --seeds 0 \\
        evaluation.examples=20 calibration.examples=16 finetuning.trainer.max_steps=2       # a trial of minutes

Start it in the checkout; `key.path=value` goes to every cell. What is chosen is chosen on the dev slice (pruned: masked
models, `pollard sweep`); the test set only reports (recovered).
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from criteria_tables import Recovered, Swept, write_tables
from study import conclude, launch, study_parser

from toolkit.recipe.choices import Criterion
from toolkit.recipe.file import dump_recipe, load_recipe
from toolkit.selection import CRITERIA as RULES
from toolkit.tasks.presets import SUBJECTS

RECIPE = "recipes/study/half.yaml"
KEEPS = (6, 4, 3, 2)
SUBJECTS_SWEPT = ("arithmetic", "sorting")
CONTENDERS = ("random", "frequency", "reap", "reconstruction")
RECOVERED_KEEPS = (4, 2)
EXAMPLES = 512  # of calibration, however many tasks they come from
CRITERIA = get_args(Criterion)
EVERYTHING = ", ".join(f"{{task: playground/{subject}, examples: {EXAMPLES // len(SUBJECTS)}}}" for subject in SUBJECTS)


def sweeps(name: str, seeds: Sequence[int]) -> list[Swept]:
    """Every criterion x keep, per task, calibration and which tokens count; `reconstruction` knows only all of them."""
    found = []
    for subject in SUBJECTS_SWEPT:
        for calibration in ("its own task", "all six tasks"):
            for tokens in ("all", "completion", "reconstruction"):
                scores = [criterion for criterion in CRITERIA if not RULES[criterion].searched]
                criteria = scores if tokens != "reconstruction" else [c for c in CRITERIA if RULES[c].searched]
                if not criteria:
                    continue
                run = f"{name}-{subject}-{calibration.replace(' ', '-')}-{tokens}"
                arguments = [
                    f"name={run}", f"task=playground/{subject}", f"pruning.keep={','.join(map(str, KEEPS))}",
                    f"pruning.tokens={'all' if tokens == 'reconstruction' else tokens}",
                    f"pruning.criterion={','.join(criteria)}", f"seed={','.join(map(str, seeds))}",
                ]  # fmt: skip
                if calibration != "its own task":
                    arguments.append(f"calibration.data=[{EVERYTHING}]")
                found.append(Swept(subject, calibration, tokens, Path("runs", run), arguments))
    return found


def recoveries(name: str, seeds: Sequence[int]) -> list[Recovered]:
    """The contenders fine-tuned, all by all tokens of calibration, so that they differ in the criterion alone."""
    found = []
    for seed in seeds:
        for keep in RECOVERED_KEEPS:
            for criterion in CONTENDERS:
                if criterion in CRITERIA:
                    run = f"{name}-recovered-{criterion}-{keep}-seed{seed}"
                    arguments = [
                        f"name={run}", f"pruning.criterion={criterion}", f"pruning.keep={keep}", "pruning.tokens=all",
                        f"seed={seed}", "evaluation.models=[recovered]",
                    ]  # fmt: skip
                    found.append(Recovered(criterion, keep, seed, Path("runs", run), arguments))
    return found


def is_done(cell: Recovered, overrides: Sequence[str]) -> bool:
    """Whether the cell is finished under exactly this recipe: spares starting it only to hear so."""
    recipe, manifest = cell.run / "recipe.yaml", cell.run / "manifest.json"
    if not (recipe.exists() and manifest.exists() and "report" in json.loads(manifest.read_text())["stages"]):
        return False
    return recipe.read_text() == dump_recipe(load_recipe(RECIPE, [*cell.arguments, *overrides]))


def main() -> int:
    parser = study_parser(__doc__, "criteria", "docs/criteria-study.md")
    parser.add_argument("--ranks", type=int, default=2)
    given = parser.parse_args()
    swept, recovered = sweeps(given.name, given.seeds), recoveries(given.name, given.seeds)
    failed = []
    for cell in swept if not given.tables else ():
        if not launch(given.ranks, ["--module", "toolkit.cli", "sweep", RECIPE], [*cell.arguments, *given.overrides]):
            failed.append(cell.run.name)
        write_tables(given.document, swept, recovered)
    for fine_tuned in recovered if not given.tables else ():
        if not is_done(fine_tuned, given.overrides) and not launch(
            given.ranks, ["toolkit/train.py", RECIPE], [*fine_tuned.arguments, *given.overrides]
        ):
            failed.append(fine_tuned.run.name)
        write_tables(given.document, swept, recovered)
    missing = write_tables(given.document, swept, recovered)
    return conclude(given.document, missing, f"{len(swept) + len(recovered)} parts", failed)


if __name__ == "__main__":
    sys.exit(main())
