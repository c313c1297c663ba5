"""What to change where a recipe does not fit: the stages' own suggestions (`Stage.relief`), each tried before it is given."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from toolkit.estimate import Estimate
from toolkit.pipeline.estimator import Estimator
from toolkit.pipeline.relief import Change
from toolkit.recipe.schema import Recipe
from toolkit.runtime.errors import PollardError

SHOWN = 3


@dataclass(frozen=True)
class Advice:
    """Changes that help, stage by stage and for the whole recipe."""

    per_stage: dict[str, list[Change]]  # per stage that does not fit: the first changes that make it fit, the gentlest first
    combined: Change  # changes of several stages together; empty where none helps
    estimate: Estimate  # of the recipe with `combined`; what does not fit even then is among its `lacking`


def advise(estimator: Estimator, recipe: Recipe, estimate: Estimate) -> Advice:
    """`estimate`: the recipe's own."""
    per_stage = {name: _remedies(estimator, recipe, name) for name in estimate.lacking}
    combined = Change()
    while estimate.lacking:
        better = next(_improvements(estimator, recipe, combined, estimate), None)
        if better is None:
            break
        combined, estimate = better
    return Advice(per_stage, combined, estimate)


def _improvements(estimator: Estimator, recipe: Recipe, so_far: Change, estimate: Estimate) -> Iterator[tuple[Change, Estimate]]:
    """`so_far` with one change more, and the recipe's estimate then, where fewer stages lack memory and no other does."""
    now = so_far.applied_to(recipe)
    for name in estimate.lacking:
        # The remedies of the recipe as it was are found already, and mostly still right; then those of the changed one
        for change in (remedy for each in (recipe, now) for remedy in _remedies(estimator, each, name)):
            try:
                changed = estimator.estimate(change.applied_to(now))
            except PollardError:
                continue
            if changed.lacking.keys() < estimate.lacking.keys():
                yield so_far | change, changed


def _remedies(estimator: Estimator, recipe: Recipe, name: str) -> list[Change]:
    """The first changes that make a stage fit; empty where none does."""
    key = ("remedies", estimator.machine, recipe.model_dump_json(), name)
    return estimator.context(recipe).once(key, lambda: _find_remedies(estimator, recipe, name))


def _find_remedies(estimator: Estimator, recipe: Recipe, name: str) -> list[Change]:
    machine, stage = estimator.machine, estimator.stage(recipe, name)

    def fits(change: Change) -> bool:
        try:
            changed = stage.with_context(estimator.context(change.applied_to(recipe)))
            estimate = None if changed.cannot_fit(machine) else changed.estimate(machine)
        except PollardError:  # fewer experts than its routers can serve, or no shape within a limit
            return False
        return estimate is not None and not estimate.lacks(machine)

    relief = stage.relief(machine)
    remedies = list(islice(filter(fits, relief.changes), SHOWN))
    if not remedies and relief.omission:
        remedies = [relief.omission]
    remedies += filter(fits, relief.placements)
    if not remedies:
        remedies += islice(filter(fits, relief.smaller_models), 1)
    return remedies[:SHOWN]
