"""What to change where a stage does not fit: overrides of the recipe, each tried before it is recommended."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from toolkit.estimate.stage_estimate import Estimate
from toolkit.pipeline.estimator import Estimator
from toolkit.pipeline.recipe_on_machine import trainer_settings
from toolkit.recipe.schema import Recipe
from toolkit.recovery.methods import METHODS
from toolkit.runtime.errors import PollardError

Change = dict[str, Any]  # key.path -> value, as on the command line
SHOWN = 3


@dataclass(frozen=True)
class Combined:
    """Changes of several stages together, and what the whole recipe takes with all of them."""

    change: Change
    estimate: Estimate

    def __str__(self) -> str:
        return _written(self.change)


def advice(estimator: Estimator, recipe: Recipe, estimate: Estimate) -> dict[str, list[str]]:
    """Per stage that does not fit, the changes that would make it fit, as overrides to paste; the first few, the gentlest
    first. Empty where none of them does."""
    return {name: [_written(change) for change in _remedies(estimator, recipe, name)] for name in estimate.lacking}


def combined_advice(estimator: Estimator, recipe: Recipe, estimate: Estimate) -> Combined:
    """One change after the other, each the first that leaves fewer stages of the whole recipe that do not fit, until all fit or
    none helps. What is still lacking then is in its estimate."""
    best = Combined({}, estimate)
    while best.estimate.lacking:
        better = next(_improvements(estimator, recipe, best), None)
        if better is None:
            break
        best = better
    return best


def _improvements(estimator: Estimator, recipe: Recipe, so_far: Combined) -> Iterator[Combined]:
    """What `so_far` and one change more make of the recipe, where fewer stages lack memory then and no other does."""
    now = changed(recipe, so_far.change)
    for name in so_far.estimate.lacking:
        for change in _first_and_anew(estimator, recipe, now, name):
            try:
                estimate = estimator.estimate(changed(now, change))
            except PollardError:
                continue
            if estimate.lacking.keys() < so_far.estimate.lacking.keys():
                yield Combined(so_far.change | change, estimate)


def _first_and_anew(estimator: Estimator, recipe: Recipe, now: Recipe, name: str) -> Iterator[Change]:
    """The remedies of the recipe as it was, which are known already and mostly still right; then those of the changed one."""
    yield from _remedies(estimator, recipe, name)
    yield from _remedies(estimator, now, name)


def _remedies(estimator: Estimator, recipe: Recipe, name: str) -> list[Change]:
    return estimator.once(
        ("remedies", estimator.machine, recipe.model_dump_json(), name), lambda: _found_remedies(estimator, recipe, name)
    )


def _found_remedies(estimator: Estimator, recipe: Recipe, name: str) -> list[Change]:
    found: list[Change] = []
    for change in _changes(estimator, recipe, name):
        if len(found) == SHOWN:
            break
        if name == "recover" and estimator.cannot_fit(changed(recipe, change)):
            continue
        if _fits(estimator, recipe, name, change):
            found.append(change)
    if not found:
        found = _without(recipe, name)
    slower = [change for change in _elsewhere(estimator, recipe, name) if _fits(estimator, recipe, name, change)]
    fewer = (change for change in _fewer_experts(estimator, recipe, name) if _fits(estimator, recipe, name, change))
    return [*found, *slower, *islice(fewer, 0 if found or slower else 1)][:SHOWN]


def _fits(estimator: Estimator, recipe: Recipe, name: str, change: Change) -> bool:
    try:
        return not estimator.stage(changed(recipe, change), name).lacks(estimator.machine)
    except PollardError:  # fewer experts than its routers can serve
        return False


def _without(recipe: Recipe, name: str) -> list[Change]:
    """To do without what the stage measures."""
    if name == "control":
        return [{"control": False}]
    if name.startswith("fidelity/"):
        return [{"evaluation.fidelity": None}]
    others = [role for role in recipe.evaluation.models if role != "original"]
    return [{"evaluation.models": others}] if name == "evaluate/original" and others else []


def _elsewhere(estimator: Estimator, recipe: Recipe, name: str) -> Iterator[Change]:
    """To hold the model in another place while it answers; partly on the host, which is slow."""
    if name in ("calibrate", "recover", "control", "prune") or name.startswith("rounds/") or not estimator.machine.gpus:
        return
    if recipe.model.placement != "spread":
        yield {"model.placement": "spread"}
    if recipe.model.placement != "zero3" and estimator.machine.ranks > 1:
        yield {"model.placement": "zero3"}


def changed(recipe: Recipe, change: Change) -> Recipe:
    values = recipe.model_dump()
    for key, value in change.items():
        *sections, last = key.split(".")
        inner = values
        for section in sections:
            inner = inner[section]
        inner[last] = value
    return Recipe.model_validate(values)


def _fewer_experts(estimator: Estimator, recipe: Recipe, name: str) -> Iterator[Change]:
    if name.endswith(("/pruned", "/recovered")) and not recipe.pruning.schedule:
        yield from ({"pruning.keep": keep} for keep in _halves(estimator.kept(recipe)))


def _written(change: Change) -> str:
    def text(value: Any) -> str:
        if value is None:
            return "null"
        if isinstance(value, list):
            return f"[{','.join(value)}]"
        return str(value).lower() if isinstance(value, bool) else str(value)

    return " ".join(f"{key}={text(value)}" for key, value in change.items())


def _changes(estimator: Estimator, recipe: Recipe, name: str) -> Iterator[Change]:
    if name in ("recover", "control") or name.startswith("rounds/"):
        yield from _for_training(estimator, recipe, name)
    elif name != "prune" and estimator.machine.fits_gpu(estimator.stage(recipe, name).gpu.get("weights", 0)):
        section = "calibration" if name in ("calibrate", "teacher") else "evaluation"
        asked = getattr(recipe, section).batch_size
        yield from ({f"{section}.batch_size": size} for size in ([] if asked == "auto" else _halves(asked)))


def _for_training(estimator: Estimator, recipe: Recipe, name: str) -> Iterator[Change]:
    """One thing at a time, then one on top of the other, then (of a model that is pruned once) fewer experts as well."""
    trainer, zero = trainer_settings(recipe, estimator.machine.gpus > 0), recipe.finetuning.zero
    key = "finetuning.trainer."
    single: list[Change] = []
    for size in _halves(trainer.micro_batch):
        more = trainer.accumulation * trainer.micro_batch // size
        single.append({key + "per_device_train_batch_size": size, key + "gradient_accumulation_steps": more})
    checkpointing = [] if trainer.checkpointing else [{key + "gradient_checkpointing": True}]
    stages: list[Change] = []
    if isinstance(zero, int) and estimator.machine.ranks > 1:
        stages = [{"finetuning.zero": stage} for stage in range(zero + 1, 4)]
    offload: list[Change] = [{"finetuning.zero": "3-offload"}] if zero != "3-offload" and estimator.machine.gpus else []
    # bitsandbytes' optimizers work on the GPU: not with an offloaded one
    eight_bit: list[Change] = [{key + "optim": "adamw_bnb_8bit"}]
    if zero == "3-offload" or "8bit" in trainer.optimizer:
        eight_bit = []
    adapters: list[Change] = [{"finetuning.method": lighter} for lighter in METHODS[recipe.finetuning.method].lighter]
    on_its_own = [*checkpointing, *single, *stages, *eight_bit, *offload, *adapters]
    yield from on_its_own
    smallest = {k: v for change in [*checkpointing, *single[-1:]] for k, v in change.items()}
    combined = [smallest | last for last in [*stages, *(a | b for a in stages[-1:] for b in eight_bit), *offload, *adapters]]
    combined += [smallest | a | b for a in adapters for b in stages[-1:]]
    yield from combined
    if name != "recover" or recipe.pruning.schedule:
        return
    for keep in _halves(estimator.kept(recipe)):
        yield from ({"pruning.keep": keep} | last for last in [{}, *on_its_own, *combined[-4:]])


def _halves(number: int) -> list[int]:
    found = []
    while number > 1:
        number //= 2
        found.append(number)
    return found
