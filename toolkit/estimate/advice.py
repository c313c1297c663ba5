"""What to change where a stage does not fit: overrides of the recipe, each tried before it is recommended."""

from collections.abc import Iterator
from typing import Any

from toolkit.errors import PollardError
from toolkit.estimate.estimator import Estimator
from toolkit.estimate.figures import Estimate
from toolkit.estimate.finetuning import trainer_of
from toolkit.recipe import Recipe

Change = dict[str, Any]  # key.path -> value, as on the command line
SHOWN = 3


def advice(estimator: Estimator, recipe: Recipe, estimate: Estimate) -> dict[str, list[str]]:
    """Per stage that does not fit, the changes that would make it fit, as overrides to paste; the first few, the gentlest
    first. Empty where none of them does."""
    return {name: _remedies(estimator, recipe, name) for name in estimate.lacking}


def _remedies(estimator: Estimator, recipe: Recipe, name: str) -> list[str]:
    found: list[str] = []
    for change in _changes(estimator, recipe, name):
        if len(found) == SHOWN:
            break
        other = changed(recipe, change)
        try:
            if name == "recover" and estimator.hopeless(other):
                continue
            fits = not estimator.stage(other, name).lacks(estimator.machine)
        except PollardError:  # fewer experts than its routers can serve
            continue
        if fits:
            found.append(_written(change))
    if not found and name == "control":
        found.append(_written({"control": False}))
    if not found and name.startswith("fidelity/"):
        found.append("evaluation.fidelity=null")
    others = [role for role in recipe.evaluation.models if role != "original"]
    if not found and name == "evaluate/original" and others:
        found.append(_written({"evaluation.models": others}))
    return found


def changed(recipe: Recipe, change: Change) -> Recipe:
    values = recipe.model_dump()
    for key, value in change.items():
        *sections, last = key.split(".")
        inner = values
        for section in sections:
            inner = inner[section]
        inner[last] = value
    return Recipe.model_validate(values)


def _written(change: Change) -> str:
    def text(value: Any) -> str:
        if isinstance(value, list):
            return f"[{','.join(value)}]"
        return str(value).lower() if isinstance(value, bool) else str(value)

    return " ".join(f"{key}={text(value)}" for key, value in change.items())


def _changes(estimator: Estimator, recipe: Recipe, name: str) -> Iterator[Change]:
    if name in ("recover", "control") or name.startswith("rounds/"):
        yield from _for_training(estimator, recipe, name)
    elif name != "prune" and estimator.machine.room_for(estimator.stage(recipe, name).gpu.get("weights", 0)):
        section = "calibration" if name in ("calibrate", "teacher") else "evaluation"
        asked = getattr(recipe, section).batch_size
        yield from ({f"{section}.batch_size": size} for size in ([] if asked == "auto" else _halves(asked)))


def _for_training(estimator: Estimator, recipe: Recipe, name: str) -> Iterator[Change]:
    """One thing at a time, then one on top of the other, then (of a model that is pruned once) fewer experts as well."""
    trainer, zero = trainer_of(recipe, estimator.machine), recipe.finetuning.zero
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
    if zero == "3-offload" or "8bit" in str(trainer.settings["optim"]):
        eight_bit = []
    adapters: list[Change] = []
    if recipe.finetuning.method == "full":
        adapters = [{"finetuning.method": "lora"}, {"finetuning.method": "qlora"}]
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
