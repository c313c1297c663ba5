"""Prune in rounds: `pruning.schedule: [6, 4, 2]` prunes to 6 experts, recovers, observes that model, prunes it to 4, and so on.

runs/<name>/rounds/6/   a run of its own: calibration/, plan.json, pruned/, recovered/
runs/<name>/rounds/4/   the same, of rounds/6/recovered
runs/<name>/            the last round, of rounds/4/recovered: the run's own calibration/, plan.json, pruned/, recovered/
runs/<name>/rounds/plan.json   all rounds' choices in one: what stays of the original, in its numbering
"""

from pathlib import Path

from toolkit.cuts.experts import BlockPlan
from toolkit.cuts.plan import Plan
from toolkit.recipe.schema import ModelRecipe, Recipe
from toolkit.runtime.run_paths import RunPaths


def early_rounds(recipe: Recipe) -> list[int]:
    """The number of experts per block that each round before the last keeps, in order."""
    return (recipe.pruning.schedule or [])[:-1]


def trains(recipe: Recipe) -> bool:
    """Whether the recipe fine-tunes anything."""
    return "recovered" in recipe.evaluation.models or recipe.control or bool(recipe.pruning.schedule)


def recipe_of_round(recipe: Recipe, run: RunPaths, keep: int) -> Recipe:
    """The recipe of one round before the last, a run named after what it keeps: it ends with the recovery."""
    before = [earlier for earlier in early_rounds(recipe) if earlier > keep]
    pruning = recipe.pruning.model_copy(update={"keep": keep, "schedule": None, "skipping": None})
    evaluation = recipe.evaluation.model_copy(update={"models": ["recovered"], "fidelity": None, "harness": None})
    return recipe.model_copy(
        update={
            "name": str(keep), "model": model_after(recipe, run, before), "pruning": pruning, "evaluation": evaluation,
            "control": False,
        }
    )  # fmt: skip


def model_after(recipe: Recipe, run: RunPaths, rounds: list[int]) -> ModelRecipe:
    """The model that the last of `rounds` recovers; the original where there are none."""
    if not rounds:
        return recipe.model
    return ModelRecipe(path=str(folder_of_round(run, rounds[-1]) / "recovered"), dtype=recipe.model.dtype)


def folder_of_round(run: RunPaths, keep: int) -> Path:
    return run.rounds / str(keep)


def composed_plan(recipe: Recipe, run: RunPaths) -> Plan:
    """All rounds' plans in one. Every round's plan numbers the experts of the model that it prunes; this one those of the
    original."""
    plans = [Plan.load(folder_of_round(run, keep) / "plan.json") for keep in early_rounds(recipe)] + [Plan.load(run.plan)]
    blocks = {}
    for name, block in plans[0].blocks.items():
        kept = list(range(block.experts))
        for plan in plans:
            kept = [kept[index] for index in plan.blocks[name].kept]
        blocks[name] = BlockPlan(experts=block.experts, kept=kept)
    return plans[-1].with_experts(blocks, recipe.model.path)


def share_teaching(run: RunPaths, keep: int) -> None:
    """Links the run's own answers and teacher's cache, which are of the original, into the folder of the round of `keep`
    experts."""
    folder = folder_of_round(run, keep)
    folder.mkdir(parents=True, exist_ok=True)
    for made in (run.answers, run.teacher):
        link = folder / made.name
        if made.exists() and not link.exists():
            link.symlink_to(Path("..", "..", made.name))
