"""Changes of a recipe that make a stage take less memory: what a stage offers (`Stage.relief`), before anything is tried."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from toolkit.estimate import GIB, Machine, StageEstimate
from toolkit.recipe.fit import LIMITS, FitRecipe
from toolkit.recipe.schema import Recipe

Value = int | str | bool | list[str] | None
BatchSection = Literal["calibration", "evaluation"]  # the sections of a recipe that have a `batch_size`


@dataclass(frozen=True)
class Change:
    """Overrides of a recipe, as on the command line."""

    overrides: Mapping[str, Value] = field(default_factory=dict)  # key.path -> value

    def __str__(self) -> str:
        return " ".join(f"{key}={_text(value)}" for key, value in self.overrides.items())

    def __bool__(self) -> bool:
        return bool(self.overrides)

    def __or__(self, other: "Change") -> "Change":
        return Change({**self.overrides, **other.overrides})

    def applied_to(self, recipe: Recipe) -> Recipe:
        """Raises pydantic's ValidationError for a value that a recipe cannot have."""
        values = recipe.model_dump()
        for key, value in self.overrides.items():
            *sections, last = key.split(".")
            inner = values
            for section in sections:
                if not isinstance(inner.get(section), dict):  # `refit: true`, of which one of its keys is changed
                    inner[section] = {}
                inner = inner[section]
            inner[last] = value
        return Recipe.model_validate(values)


@dataclass(frozen=True)
class Relief:
    """What may make a stage fit, the gentlest first."""

    changes: Iterable[Change] = ()  # the same work in less memory, or less that is trained
    omission: Change | None = None  # to do without what the stage measures
    placements: Iterable[Change] = ()  # to hold the model elsewhere, partly on the host: slower
    smaller_models: Iterable[Change] = ()  # another pruned model


def change(key: str, value: Value) -> Change:
    return Change({key: value})


def halves(number: int) -> Iterator[int]:
    """12 -> 6, 3, 1."""
    while number > 1:
        number //= 2
        yield number


def smaller_models(asked: Recipe, keep: int) -> Iterator[Change]:
    """Of a recipe that prunes once, to `keep` experts, or to the best shape within limits."""
    if asked.pruning.fit:
        yield from smaller_limits(asked.pruning.fit)
    elif not asked.pruning.schedule and not asked.pruning.grow:  # a grown model holds the first run's experts, and more
        yield from (change("pruning.keep", fewer) for fewer in halves(keep))


def smaller_limits(fit: FitRecipe) -> Iterator[Change]:
    """Half of the first limit, and half of that, …: whether a shape meets it is tried like every change."""
    key = next(key for key in LIMITS if getattr(fit, key))
    unit, letter = (10**9, "B") if key in ("parameters", "active") else (GIB, "G")
    for share in (2, 4, 8, 16):
        yield change(f"pruning.fit.{key}", f"{getattr(fit, key) / share / unit:.3g}{letter}")


def other_placements(recipe: Recipe, machine: Machine) -> Iterator[Change]:
    """To hold a model that answers in another place: partly on the host, which is slow, or in parts."""
    if machine.gpus and recipe.model.placement != "spread":
        yield change("model.placement", "spread")
    if machine.gpus and recipe.model.placement != "zero3" and machine.ranks > 1:
        yield change("model.placement", "zero3")


def smaller_batches(recipe: Recipe, section: BatchSection, estimate: StageEstimate, machine: Machine) -> Iterator[Change]:
    """`<section>.batch_size` halved and halved again; nothing where it is automatic, or the weights alone fill a GPU."""
    batch = recipe.calibration.batch_size if section == "calibration" else recipe.evaluation.batch_size
    if batch != "auto" and machine.fits_gpu(estimate.gpu.get("weights", 0)):
        yield from (change(f"{section}.batch_size", size) for size in halves(batch))


def half(number: int) -> int:
    return max(1, number // 2)


def _text(value: Value) -> str:
    if value is None:
        return "null"
    if isinstance(value, list):
        return f"[{','.join(value)}]"
    return str(value).lower() if isinstance(value, bool) else str(value)
