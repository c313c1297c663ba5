"""Prune in rounds: `pruning.schedule: [6, 4, 2]` prunes to 6 experts, recovers, observes that model, prunes it to 4, and so on.
Steps of several keys ({keep: 4, width: 8, layers: 3}) have a folder with a longer name: rounds/4-width8-layers3/.

runs/<name>/rounds/6/   a run of its own: calibration/, plan.json, pruned/, recovered/
runs/<name>/rounds/4/   the same, of rounds/6/recovered
runs/<name>/            the last round, of rounds/4/recovered: the run's own calibration/, plan.json, pruned/, recovered/
runs/<name>/rounds/plan.json   all rounds' choices in one: what stays of the original, in its numbering
"""

import os
from collections.abc import Sequence
from functools import reduce
from pathlib import Path

from toolkit.cuts import Plan, compose
from toolkit.recipe.pruning import PruningRecipe
from toolkit.recipe.schema import ModelRecipe, Recipe
from toolkit.recipe.step import StepRecipe
from toolkit.runtime.run_paths import RunPaths

ROUNDS = "rounds"
"""The kind of the stages that are rounds before the last."""


def early_rounds(recipe: Recipe) -> list[StepRecipe]:
    """What stays after each round before the last, in order."""
    return recipe.pruning.steps[:-1]


def round_names(recipe: Recipe) -> tuple[str, ...]:
    """The names of the stages that are rounds before the last, in order."""
    return tuple(f"{ROUNDS}/{step.name}" for step in early_rounds(recipe))


def trains(recipe: Recipe) -> bool:
    """Whether the recipe fine-tunes anything."""
    return "recovered" in recipe.evaluation.models or recipe.control or bool(recipe.pruning.schedule)


def recipe_of_round(recipe: Recipe, run: RunPaths, step: StepRecipe, pruning: PruningRecipe) -> Recipe:
    """The recipe of the round that ends with `step`, before the last: a run of its own that ends with the recovery.

    `pruning`: what it cuts of the model that the round before has left, in numbers.
    """
    early = early_rounds(recipe)
    evaluation = recipe.evaluation.model_copy(
        update={"models": ["recovered"], "fidelity": None, "off_task": None, "harness": None}
    )
    return recipe.model_copy(
        update={
            "name": step.name, "model": model_after(recipe, run, early[: early.index(step)]), "pruning": pruning,
            "evaluation": evaluation, "control": False,
        }
    )  # fmt: skip


def model_after(recipe: Recipe, run: RunPaths, rounds: Sequence[StepRecipe]) -> ModelRecipe:
    """The model that the last of `rounds` recovers; the original where there are none."""
    if not rounds:
        return recipe.model
    return ModelRecipe(path=str(folder_of_round(run, rounds[-1]) / "recovered"), dtype=recipe.model.dtype)


def folder_of_round(run: RunPaths, step: StepRecipe) -> Path:
    return run.rounds / step.name


def composed_plan(recipe: Recipe, run: RunPaths) -> Plan:
    """All rounds' plans in one. Every round's plan counts in the model that it prunes; this one in the original."""
    plans = [Plan.load(folder_of_round(run, step) / "plan.json") for step in early_rounds(recipe)] + [Plan.load(run.plan)]
    return reduce(compose, plans)


def share_teaching(run: RunPaths, step: StepRecipe) -> None:
    """Links the run's own answers and teacher's cache, which are of the original, into the folder of a round."""
    link_teaching(run, folder_of_round(run, step))


def link_teaching(run: RunPaths, folder: Path) -> None:
    """The same for the folder of any run inside of this one."""
    folder.mkdir(parents=True, exist_ok=True)
    for made in (run.answers, run.teacher):
        link = folder / made.name
        if made.exists() and not link.exists():
            link.symlink_to(Path(os.path.relpath(made, folder)))
