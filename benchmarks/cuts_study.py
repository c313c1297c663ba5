"""Which cut? On the playground: every width criterion at three widths, before and after fine-tuning, and every layer criterion
against all sets of layers. Each cell goes through the real pipeline.

    python benchmarks/cuts_study.py                  # hours on two cores; killed, the same command goes on
    python benchmarks/cuts_study.py --tables         # only writes docs/cuts-study.md, from what is finished
    python benchmarks/cuts_study.py --name trial --document trial.md --seeds 0 \\
        evaluation.examples=20 calibration.examples=16 finetuning.trainer.max_steps=2       # a trial of minutes

Start it in the checkout; `key.path=value` goes to every cell. Everything is measured on the dev slice: the test set stays for
what is chosen from these figures. Cells of one task and seed share a run directory, one after the other, so that calibration
is done once, and once more with gradients; what a cell measured is kept in runs/<name>/<cell>.json.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import get_args

from cuts_layers import LayerCell
from cuts_tables import WidthResult, write_tables
from study import launch

from toolkit.pipeline.run_directory import RunDirectory
from toolkit.recipe.choices import WidthCriterion
from toolkit.recipe.file import dump_recipe, load_recipe
from toolkit.recipe.schema import Recipe
from toolkit.runtime.files import write_text

RECIPE = "recipes/study/cuts.yaml"
SUBJECTS = ("arithmetic", "sorting")
WIDTHS = (192, 128, 64)  # of 256
CRITERIA = tuple(sorted(get_args(WidthCriterion), key=lambda name: name in ("taylor", "fisher")))
"""Those that need gradients last: until then calibration does without."""


@dataclass(frozen=True)
class WidthCell:
    """One launch: narrow, evaluate, fine-tune, evaluate. `extra`: what is measured beside it, once per task and seed."""

    subject: str
    criterion: str
    width: int
    seed: int
    extra: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.subject}-{self.criterion}-width{self.width}-seed{self.seed}"

    def recipe(self, name: str, overrides: Sequence[str]) -> Recipe:
        return load_recipe(RECIPE, self.arguments(name, overrides))

    def arguments(self, name: str, overrides: Sequence[str] = ()) -> list[str]:
        return [
            f"name={name}-{self.subject}-seed{self.seed}", f"task=playground/{self.subject}", f"seed={self.seed}",
            f"pruning.width={self.width}", f"pruning.width_criterion={self.criterion}", *self.extra, *overrides,
        ]  # fmt: skip

    def path(self, name: str) -> Path:
        return Path("runs", name, f"{self.name}.json")

    def result(self, name: str) -> WidthResult | None:
        path = self.path(name)
        return json.loads(path.read_text()) if path.exists() else None


def groups_of_cells(seeds: Sequence[int]) -> list[list[WidthCell]]:
    """In groups that share a run directory, the first seed's first."""
    return [_group(subject, seed) for seed in seeds for subject in SUBJECTS]


def _group(subject: str, seed: int) -> list[WidthCell]:
    cells = [WidthCell(subject, criterion, width, seed) for criterion in CRITERIA for width in WIDTHS]
    first, *between, last = cells
    original = "evaluation.models=[original,pruned,recovered]"
    return [
        WidthCell(subject, first.criterion, first.width, seed, (original,)),
        *between,
        WidthCell(subject, last.criterion, last.width, seed, ("control=true",)),
    ]


def do(group: Sequence[WidthCell], name: str, overrides: Sequence[str]) -> list[str]:
    """The group's cells one after the other; those that failed."""
    failed = []
    for cell in group:
        dumped = dump_recipe(cell.recipe(name, overrides))
        known = cell.result(name)
        if known and known["recipe"] == dumped:
            continue
        log = cell.path(name).with_suffix(".log")
        log.parent.mkdir(parents=True, exist_ok=True)
        if launch(1, ["toolkit/train.py", RECIPE], cell.arguments(name, overrides), log):
            write_text(cell.path(name), json.dumps({"recipe": dumped, **measured(cell.recipe(name, overrides))}) + "\n")
        else:
            failed.append(f"{cell.name} ({log})")
    return failed


def measured(recipe: Recipe) -> dict[str, object]:
    """What the run directory says of a cell that has just ended: sizes, and the answers to the dev slice."""
    run = RunDirectory(recipe.name)
    report = json.loads((run.path / "report.json").read_text())["models"]
    models = {}
    for role in (*recipe.evaluation.models, *(["control"] if recipe.control else [])):
        lines = (run.evaluation / f"{role}.predictions.jsonl").read_text().splitlines()
        right = "".join(str(int(json.loads(line)["correct"])) for line in lines)
        keys = ("score", "n", "interval", "parameters", "active_parameters")
        models[role] = {key: report[role][key] for key in keys} | {"right": right}
    return {"seconds": run.read_manifest()["stages"]["recover"]["seconds"], "models": models}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")
    parser.add_argument("--name", default="cuts", help="what the runs' names begin with")
    parser.add_argument("--document", type=Path, default=Path("docs/cuts-study.md"))
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--at-once", type=int, default=os.cpu_count(), help="cells at the same time, each with one core")
    parser.add_argument("--tables", action="store_true", help="run nothing")
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    groups, failed = groups_of_cells(given.seeds), list[str]()
    layers = [LayerCell(subject, tuple(given.seeds)) for subject in SUBJECTS]
    if not given.tables:
        with ThreadPoolExecutor(given.at_once) as pool:
            for which in pool.map(partial(do, name=given.name, overrides=given.overrides), groups):
                failed += which
        for cell in layers:
            cell.measure(given.name, RECIPE, given.overrides)
    width_cells = [cell for group in groups for cell in group]
    missing = write_tables(
        given.document,
        [(cell, cell.result(given.name)) for cell in width_cells],
        [(cell, cell.result(given.name)) for cell in layers],
    )
    print(f"\n{given.document}: {len(missing)} of {len(width_cells) + len(layers)} parts are missing", *missing, sep="\n  ")
    if failed:
        print("failed:", *failed, sep="\n  ")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
