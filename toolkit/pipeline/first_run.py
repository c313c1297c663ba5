"""The run that a recipe grows (`pruning.grow.onto: runs/sorting/recovered`): found by its checkpoint, with its plan and recipe.

runs/sorting/recovered/     what grows
runs/sorting/plan.json      which experts of the original it holds (with a schedule: rounds/plan.json)
runs/sorting/recipe.yaml    its task, by which the report says what growing has cost it
"""

from pathlib import Path
from typing import NamedTuple

from toolkit.cuts.plan import Plan
from toolkit.moe.model_files import checkpoint_files
from toolkit.pipeline.run_directory import RunDirectory
from toolkit.pipeline.run_status import BEST_FIRST, why_model_stale
from toolkit.recipe.file import load_recipe
from toolkit.recipe.schema import ModelRecipe, Recipe
from toolkit.runtime.errors import PollardError
from toolkit.runtime.files import fingerprint_of, fingerprint_of_path, fingerprint_of_source


class FirstRun(NamedTuple):
    """`plan` counts in the experts of the original."""

    onto: str  # a folder, from the working folder on
    directory: RunDirectory
    recipe: Recipe
    plan: Plan

    @property
    def identity(self) -> str:
        """Of the checkpoint that grows: its weights and its configuration; the report may write a card beside them any time."""
        files = [*checkpoint_files(Path(self.onto)).weights, Path(self.onto) / "config.json"]
        return fingerprint_of({file.name: fingerprint_of_path(file) for file in files})


def first_run(onto: str, model: ModelRecipe) -> FirstRun:
    """`onto`: the checkpoint's folder; `model`: the original of the run that grows it. Raises PollardError where there is none,
    where it is no run's, not current, cut in another way than by experts, or of another original."""
    folder = Path(onto).expanduser()
    if not (folder / "config.json").exists():
        raise PollardError(_no_checkpoint(onto, folder), code="grow.no-checkpoint")
    directory = RunDirectory(folder.resolve().parent.name, folder.resolve().parent.parent)
    role = next((role for role in BEST_FIRST if role == folder.name), None)
    if role is None or not directory.plan.exists() or not directory.recipe.exists():
        raise PollardError(
            f"pruning.grow.onto is {onto}, and no plan.json and recipe.yaml beside that folder say which experts it holds: name "
            "the pruned, refitted or recovered folder of a run directory (runs/sorting/recovered).",
            code="grow.no-plan",
        )
    if why := why_model_stale(directory, role):
        raise PollardError(
            f"{onto} is not what {directory.recipe} asks for by now ({why}), so it is not known which experts it holds. "
            f"`pollard run {directory.recipe}` makes it anew.",
            code="grow.stale",
        )
    recipe = load_recipe(directory.recipe)
    plan = Plan.load(directory.rounds / "plan.json" if recipe.pruning.schedule else directory.plan)
    _check_cuts(onto, plan)
    _check_original(onto, recipe.model, model)
    return FirstRun(str(folder), directory, recipe, plan)


def _no_checkpoint(onto: str, folder: Path) -> str:
    there = [role for role in BEST_FIRST if (folder / role / "config.json").exists()]
    if there:
        return f"pruning.grow.onto is {onto}, a run: which of its models grows? Did you mean {folder / there[0]}?"
    return (
        f"pruning.grow.onto is {onto}, and no checkpoint is there (it has no config.json). A first run makes it: `pollard run` "
        "of a recipe with the same model and the first task, whose recovered model is then runs/<name>/recovered."
    )


def _check_cuts(onto: str, plan: Plan) -> None:
    kinds = [cut.kind for cut in plan.cuts]
    if plan.form or kinds != ["experts"] or plan.experts.per_block:
        what = "written in the dense form" if plan.form else f"cut by {' and '.join(kinds)}"
        what = "cut to other numbers of experts in each block" if kinds == ["experts"] and not plan.form else what
        raise PollardError(
            f"{onto} is {what}: experts of the original fit only into a model with its layers, its width, and experts. Grow the "
            "model of a run that cuts experts alone.",
            code="grow.other-cuts",
        )


def _check_original(onto: str, theirs: ModelRecipe, ours: ModelRecipe) -> None:
    same = (theirs.path, theirs.revision) == (ours.path, ours.revision)
    if not same and fingerprint_of_source(theirs.path) != fingerprint_of_source(ours.path):
        raise PollardError(
            f"{onto} was pruned from {theirs.path}, and this recipe's model is {ours.path}: a model grows by experts of its own "
            f"original. Say model: {theirs.path}.",
            code="grow.other-model",
        )
