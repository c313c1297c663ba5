"""With which settings something was made that the recipe has moved on from: "pruning.keep=4"."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from toolkit.recipe.file import dump_value
from toolkit.recipe.roles import Role

ALWAYS = ("model", "task", "seed")
PRUNING = (*ALWAYS, "calibration", "pruning")
TRAINING = (*ALWAYS, "finetuning")
DECIDING = {
    Role.ORIGINAL: ALWAYS,
    Role.PRUNED: PRUNING,
    Role.REFITTED: PRUNING,
    Role.RECOVERED: (*PRUNING, "finetuning"),
    Role.SKIPPING: (*PRUNING, "finetuning"),
    Role.CONTROL: TRAINING,
}
"""The sections of a recipe that decide what a model is."""
NEVER = ("evaluation.models", "evaluation.batch_size", "model.placement")
"""Keys that decide no result."""


def differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The keys (`pruning.keep`) whose values differ between two recipes, with the value of the first."""
    before, after = dict(_flat(old)), dict(_flat(new))
    return {key: value for key, value in before.items() if key not in after or after[key] != value}


def still_differing(made_with: Mapping[str, Any], changed: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """What something was made with, after another change of recipe: `changed` are the keys of that change with their values
    before it, of which those that had changed earlier are not what it was made with."""
    now = dict(_flat(new))
    return {key: value for key, value in {**made_with, **changed, **made_with}.items() if now.get(key) != value}


def described(made_with: Mapping[str, Any], sections: Sequence[str] | None) -> str:
    """ "pruning.keep=4, seed=1": of the keys those of the `sections` that decide a result; all where these are not known."""
    keys = {key: value for key, value in made_with.items() if key not in NEVER}
    keys = {key: value for key, value in keys.items() if sections is None or key.partition(".")[0] in sections}
    return ", ".join(f"{key}={dump_value(value)}" for key, value in keys.items())


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
