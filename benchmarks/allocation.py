"""What would other numbers of experts in each block give, at the same size? A sweep on the dev slice, which chooses them by its
loss, then the test set, which says how much of that is more than the choice of questions:

    python benchmarks/allocation.py                                # a quarter of an hour on one core
    python benchmarks/allocation.py --name one-active pruning.experts_per_token=1 pruning.keep=2

`key.path=value` goes to every sweep. Killed, the same command goes on. The table of docs/pruning.md is what it prints.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from toolkit.cuts import BlockPlan, ExpertsCut, Plan, masked
from toolkit.evaluation import evaluate
from toolkit.moe import find_blocks, load_model, load_tokenizer
from toolkit.pipeline.sweep import sweep
from toolkit.pipeline.sweep_grid import load_grid
from toolkit.recipe.schema import Recipe
from toolkit.runtime import distributed
from toolkit.runtime.formatting import loss, p_value, percent, points
from toolkit.runtime.intervals import Pair, pair_of
from toolkit.tasks import DataCache

RECIPE, SUBJECTS, KEEP = "recipes/playground.yaml", ("arithmetic", "sorting"), "4,2"
HEAD = (
    "task", "8 →", "experts (active)", "dev loss, uniform", "measured", "dev accuracy, uniform", "measured",
    "difference (95 % interval, p)", "difference on the test set",
)  # fmt: skip


class Asked(NamedTuple):
    """Of one plan, on the test set."""

    score: float
    right: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")
    parser.add_argument("--name", default="allocation", help="what the runs' names begin with")
    given = parser.parse_args()
    distributed.start()
    lines = [line for subject in SUBJECTS for line in compared(subject, given.name, given.overrides)]
    print(*[f"| {' | '.join(line)} |" for line in (HEAD, ["---"] * len(HEAD), *lines)], sep="\n")
    distributed.stop()


def compared(subject: str, study: str, overrides: Sequence[str]) -> Iterator[list[str]]:
    """A line of the table for every number of experts."""
    name = f"{study}-{subject}"
    lists = [f"name={name}", f"task=playground/{subject}", f"pruning.keep={KEEP}", "sweep.allocation=measured"]
    grid = load_grid(RECIPE, [*lists, "evaluation.fidelity=null", *overrides])
    rows = sweep(grid).rows
    for measured in (row for row in rows if row.allocation):
        uniform = next(row for row in rows if (row.keep, row.label) == (measured.keep, measured.label.rpartition(", ")[0]))
        found = measured.allocation
        assert found
        numbers = f"{', '.join(map(str, found.experts))} ({', '.join(map(str, found.active))})"
        if found.measurements == 1:
            yield [subject, str(measured.keep), f"{numbers}: the only ones", loss(uniform.task.loss), *["–"] * 5]
            continue
        files = [Path("runs", name, "sweep", str(row.file)) for row in (measured, uniform)]
        asked = [on_test(grid.recipe, file, Path("runs", study, f"{subject}-{file.name}")) for file in files]
        test = pair_of(asked[0].right, asked[1].right)
        yield [
            subject, str(measured.keep), numbers, loss(uniform.task.loss), loss(measured.task.loss),
            percent(uniform.task.score), percent(measured.task.score), _difference(found.difference, found.interval, found.p),
            f"{_of(test)}: {percent(asked[1].score)} → {percent(asked[0].score)}",
        ]  # fmt: skip


def on_test(recipe: Recipe, cell: Path, path: Path) -> Asked:
    """The plan of a cell's file, masked, on all test questions; kept in the file `path`."""
    if not path.exists():
        model, tokenizer = load_model(recipe.model.path), load_tokenizer(recipe.model.path)
        settings, task = recipe.evaluation, DataCache().task(recipe.task)
        with masked(model, plan_of(json.loads(cell.read_text()), {b.name: b.expert_count for b in find_blocks(model)})):
            scores = evaluate(model, tokenizer, task, "test", None, settings.batch_size, settings.max_new_tokens)
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps([scores.score, "".join(str(int(item.correct)) for item in scores.items)]))
    return Asked(*json.loads(path.read_text()))


def plan_of(cell: dict, experts: dict[str, int]) -> Plan:
    """What a cell's file says that it keeps."""
    kept = cell["kept"].get("kept", cell["kept"])  # with the active ones beside it, where these differ
    blocks = {name: BlockPlan(experts=experts[name], kept=stay) for name, stay in kept.items()}
    active = dict(zip(kept, cell["allocated"]["active"], strict=True)) if "allocated" in cell else {}
    cut = ExpertsCut.of(blocks, criterion="a cell's", keep=cell["keep"], allocation="measured", experts_per_token=active)
    return Plan(model="", experts_per_token=cell["experts_per_token"], cuts=[cut])


def _of(test: Pair) -> str:
    return _difference(test.difference, test.interval, test.p)


def _difference(difference: float, interval: Sequence[float], p: float) -> str:
    low, high = map(points, interval)
    return f"{points(difference)} ({low} to {high}, {p_value(p)})"


if __name__ == "__main__":
    main()
