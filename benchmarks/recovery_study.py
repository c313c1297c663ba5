"""What wins the accuracy back? Every method, with and without a teacher, at 4 and 2 of 8 experts, against the control; and
pruning in rounds. Every cell goes through the real pipeline, on the playground's arithmetic.

    python benchmarks/recovery_study.py                  # hours on two cores; killed, the same command goes on
    python benchmarks/recovery_study.py --tables         # only writes docs/recovery.md, from what is finished
    python benchmarks/recovery_study.py --name trial --document trial.md --seeds 0 \\
        evaluation.examples=20 calibration.examples=16 finetuning.trainer.max_steps=2       # a trial of minutes

Start it in the checkout; `key.path=value` goes to every cell. Rates, and which method is best, are chosen on the dev slice;
the test set only reports. Cells of one `keep` and seed share a run directory, so that calibration, pruned model and teacher
are made once; what a cell measured is kept in runs/<name>/<cell>.json.
"""

import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from recovery_tables import write_tables
from study import answers_of, conclude, do_groups, launch, study_parser

from toolkit.pipeline.run_directory import RunDirectory
from toolkit.recipe.file import dump_recipe, load_recipe
from toolkit.recipe.schema import Recipe
from toolkit.runtime.files import write_text

RECIPE = "recipes/study/recovery.yaml"
KEEPS = (4, 2)
METHODS = ("full", "lora", "router", "qlora")
RATES_TRIED = {"full": (3e-4, 1e-3, 3e-3), "lora": (1e-3, 3e-3, 1e-2), "router": (3e-3, 1e-2, 3e-2)}
RATES = {"full": 1e-3, "lora": 3e-3, "qlora": 3e-3, "router": 1e-2}  # the best of those on the dev slice; qlora's is lora's
SCHEDULE = (6, 4, 2)
STEPS = 600  # of every training, as the recipe says


@dataclass(frozen=True)
class Cell:
    """One launch. `kind`: rate (as far as the training; the dev slice alone), method, or rounds."""

    kind: str
    method: str
    teacher: bool
    keep: int
    seed: int
    rate: float
    extra: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        told = [self.kind, self.method, *(["teacher"] if self.teacher else []), f"keep{self.keep}", f"seed{self.seed}"]
        if self.kind != "method":
            told.append(
                f"{self.rate:g}" if self.kind == "rate" else re.sub(r"\W+", "-", self.extra[-1].partition("=")[2]).strip("-")
            )
        return "-".join(told)

    def recipe(self, name: str, overrides: Sequence[str]) -> Recipe:
        return load_recipe(RECIPE, self.arguments(name, overrides))

    def arguments(self, name: str, overrides: Sequence[str] = ()) -> list[str]:
        run = f"{name}-rates" if self.kind == "rate" else f"{name}-keep{self.keep}-seed{self.seed}"
        return [
            f"name={run}", f"pruning.keep={self.keep}", f"seed={self.seed}", f"finetuning.method={self.method}",
            f"finetuning.trainer.learning_rate={self.rate:g}", *(["finetuning.teacher=original"] if self.teacher else []),
            *self.extra, *overrides,
        ]  # fmt: skip

    def result(self, name: str) -> dict[str, Any] | None:
        path = self.path(name)
        return json.loads(path.read_text()) if path.exists() else None

    def path(self, name: str) -> Path:
        return Path("runs", name, f"{self.name}.json")


def cells(seeds: Sequence[int]) -> list[list[Cell]]:
    """In groups that share a run directory, the first seed's first; the rates tried at last, on which nothing waits."""
    groups = []
    for seed in seeds:
        for keep in KEEPS:
            group = []
            for method, teacher in product(METHODS, (False, True)):
                # What does not depend on the method is measured beside `full`: the models before, and the control
                plain, once = method == "full" and not teacher, keep == max(KEEPS)
                models = [*(["original"] if plain and once else []), *(["pruned"] if plain else []), "recovered"]
                extra = [f"evaluation.models=[{','.join(models)}]", *(["control=true"] if method == "full" and once else [])]
                group.append(Cell("method", method, teacher, keep, seed, RATES[method], tuple(extra)))
            if keep == SCHEDULE[-1]:
                for key, value in (("finetuning.trainer.max_steps", STEPS * len(SCHEDULE)), ("pruning.schedule", list(SCHEDULE))):
                    extra = ["evaluation.models=[recovered]", f"{key}={value}".replace(" ", "")]
                    group.append(Cell("rounds", "full", False, keep, seed, RATES["full"], tuple(extra)))
            groups.append(group)
    # Routers can only choose where more experts are kept than a token takes
    rates = [(m, max(KEEPS) if m == "router" else min(KEEPS), rate) for m, tried in RATES_TRIED.items() for rate in tried]
    return [*groups, [Cell("rate", method, False, keep, seeds[0], rate) for method, keep, rate in rates]]


def do(cell: Cell, name: str, overrides: Sequence[str]) -> str | None:
    """Unless it is done already under exactly this recipe; where it fails, its name and its log."""
    dumped, known = dump_recipe(cell.recipe(name, overrides)), cell.result(name)
    if known and known["recipe"] == dumped:
        return None
    what = ["--module", "toolkit.cli", "recover", RECIPE] if cell.kind == "rate" else ["toolkit/train.py", RECIPE]
    log = cell.path(name).with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    if not launch(1, what, cell.arguments(name, overrides), log):
        return f"{cell.name} ({log})"
    write_text(cell.path(name), json.dumps({"recipe": dumped, **measured(cell, name, overrides)}) + "\n")
    return None


def measured(cell: Cell, name: str, overrides: Sequence[str]) -> dict[str, Any]:
    """What the run directory says of a cell that has just ended: accuracy on the dev slice, and per model the test set's."""
    recipe = cell.recipe(name, overrides)
    run = RunDirectory(recipe.name)
    stages = run.read_manifest()["stages"]
    log = [json.loads(line) for line in run.training_log.read_text().splitlines()]
    roles = (*recipe.evaluation.models, *(["control"] if recipe.control else [])) if cell.kind != "rate" else ()
    return {
        "dev_accuracy": max((entry["eval_accuracy"] for entry in log if "eval_accuracy" in entry), default=None),
        "selected_step": stages["recover"].get("selected_step"),
        "seconds": stages["recover"]["seconds"],
        "models": {role: answers_of(run, role) for role in roles},
    }


def main() -> int:
    parser = study_parser(__doc__, "recovery", "docs/recovery.md")
    parser.add_argument("--at-once", type=int, default=os.cpu_count(), help="cells at the same time, each with one core")
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    groups, failed = cells(given.seeds), []
    if not given.tables:
        failed = do_groups(groups, given.at_once, partial(do, name=given.name, overrides=given.overrides))
    everything = [cell for group in groups for cell in group]
    missing = write_tables(given.document, [(cell, cell.result(given.name)) for cell in everything])
    return conclude(given.document, missing, f"{len(everything)} cells", failed)


if __name__ == "__main__":
    sys.exit(main())
