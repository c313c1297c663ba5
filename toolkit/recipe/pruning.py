"""The keys of `pruning`: what is cut, by which criterion, at once or in steps (a part of toolkit/recipe/schema.py).

pruning: {keep: 4}                             fewer experts
pruning: {width: 0.5}                          narrower experts, all of them
pruning: {keep: 6, width: 0.5, layers: 0.75}   all three in one plan
pruning:
  schedule: [{keep: 6}, {keep: 6, width: 0.5}] one after the other, with a recovery in between
pruning: {keep: 4, form: dense}                what stays as one feed-forward layer per block: no router, no experts
pruning: {fit: {bytes: 12G}}                   whatever is best within these limits (recipe/fit.py)
pruning: {grow: {onto: runs/a/recovered, keep: 6}}   a second task's experts behind a first run's (recipe/grow.py)
"""

from contextlib import suppress
from itertools import pairwise
from typing import Any, Literal, Self

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from toolkit.recipe.choices import CRITERIA_ON_ALL_TOKENS, Criterion, LayerCriterion, WidthCriterion
from toolkit.recipe.data import Section
from toolkit.recipe.fit import FitRecipe
from toolkit.recipe.grow import GrowRecipe
from toolkit.recipe.refit import RefitRecipe, check_refit
from toolkit.recipe.step import COUNTED, StepRecipe, check_count

CHOSEN_BY_FIT = ("keep", "width", "layers", "schedule", "experts_per_token", "form")
"""The keys whose values a fit finds."""
NOT_GROWN = {
    "schedule": "what grows is cut once, from the original: leave schedule out",
    "fit": "fit searches a shape of the original's own weights: leave one out",
    "width": "the first run's experts keep their width, and new ones must have the same: leave width out",
    "layers": "the first run's layers stay as they are: leave layers out",
    "refit": "refit would change the first run's weights, and grow keeps them: leave one out",
}
"""Keys that cannot be together with `grow`, and why."""
BELONGING = {"width": ("width_criterion", "width_multiple"), "layers": ("layer_criterion",)}
"""Keys that say how something is cut, by the key without which it is not."""


class PruningRecipe(Section):
    """What is cut: experts, their channels, decoder layers; and which of them stay."""

    criterion: Criterion = "weighted_ean"
    """The rule that chooses the experts (`pollard criteria` lists them)."""
    keep: int | float | None = 0.5
    """Experts kept per block: a number, a fraction in (0, 1), or null: all, which is the default where `width` or `layers` is
    set."""
    width: int | float | None = None
    """Channels kept per expert, the same number in all: a number, or a fraction in (0, 1). Default: all."""
    width_criterion: WidthCriterion = "energy"
    """The rule that chooses each expert's channels. taylor and fisher take a backward pass in calibration (docs/pruning.md)."""
    width_multiple: int | None = Field(default=None, ge=1)
    """The width is a multiple of this number; a fraction is rounded to one. Default: 128, which fast kernels want; for models of
    narrow experts a smaller power of two, so that a quarter, a half and three quarters are possible."""
    layers: int | float | list[int] | None = None
    """Decoder layers kept: a number, a fraction in (0, 1), or a list of those that stay, counted from 0. Default: all."""
    layer_criterion: LayerCriterion = "dev_loss"
    """The rule that chooses the layers where `layers` is no list. Default with `fit`: influence, which takes one pass however
    deep a model is."""
    schedule: list[StepRecipe] | None = Field(default=None, min_length=2)
    """Prune in rounds, with recovery and calibration in each: [6, 4, 2], or steps of several keys: [{keep: 4}, {keep: 4,
    width: 0.5}]. Every step says all that stays of the original. `keep`, `width` and `layers` are then those of the last."""
    fit: FitRecipe | None = Field(default=None, exclude_if=lambda fit: fit is None)
    """Limits on the size, under which the shape that is best for the task is searched, instead of `keep`, `width`, `layers`,
    `experts_per_token` and `form` (docs/fit.md)."""
    grow: GrowRecipe | None = Field(default=None, exclude_if=lambda grow: grow is None)
    """Add experts of the original for this task to the checkpoint of an earlier run, whose own tensors stay as they are, instead
    of `keep` (docs/recovery.md). `finetuning.method: new` then trains the added ones alone."""
    experts_per_token: int | None = Field(default=None, ge=1)
    """Experts that the pruned model activates per token, at most as many as the original does. Default: as the original, or
    `keep` if that is less; with `grow`, as the first run's model."""
    tokens: Literal["all", "prompt", "completion"] = "all"
    """Tokens whose statistics are used."""
    mode: Literal["layerwise", "progressive"] = "layerwise"
    """For `reconstruction`: choose every block by itself (layerwise), or each on the outputs of the pruned blocks before it."""
    form: Literal["moe", "dense"] = "moe"
    """How the result is written: as a mixture of experts, or dense: the kept experts of every block become one feed-forward layer
    that every token passes, in a stock dense model (docs/dense.md). Of a schedule, the last step's result."""
    refit: bool | RefitRecipe = Field(default=False, exclude_if=lambda refit: refit is False)
    """After pruning, compute anew the linear maps by which each layer adds to the residual stream, so that it comes close to the
    original's: least squares on training examples, no gradients (docs/refit.md). true: on as many examples as calibration
    reads."""
    skipping: Literal["median"] | float | None = None
    """Skip unimportant experts at inference: about half of each token's experts after the first (median, as published), or a
    share in (0, 1). Thresholds are calibrated on the run's last model, which is then evaluated with and without skipping."""

    @property
    def steps(self) -> list[StepRecipe]:
        """Those of the schedule; the only one where there is none (a list of layers counts as their number)."""
        if self.schedule:
            return self.schedule
        layers = len(self.layers) if isinstance(self.layers, list) else self.layers
        return [StepRecipe.model_construct(keep=self.keep, width=self.width, layers=layers)]

    @property
    def criteria(self) -> list[str]:
        """Those that choose something, each once."""
        found: list[str] = [self.criterion] if self.keep is not None else []
        found += [self.width_criterion] if self.width is not None else []
        found += [self.layer_criterion] if self.layers is not None and not isinstance(self.layers, list) else []
        return list(dict.fromkeys(found))

    def of_step(self, step: StepRecipe, **changes: Any) -> Self:
        """The same pruning in one step, to what `step` says; it leaves a mixture of experts, which can be cut further."""
        return self.model_copy(update={"schedule": None, "form": "moe", **dict(step), **changes})

    @model_validator(mode="before")
    @classmethod
    def _what_stays_follows(cls, values: Any) -> Any:
        """Of a schedule from its last step; all experts where something else is cut, and where a fit chooses."""
        if not isinstance(values, dict):
            return values
        if (fit := values.get("fit")) is not None:
            refit = fit.get("refit") if isinstance(fit, dict) else getattr(fit, "refit", None)
            return {"keep": None, "layer_criterion": "influence", **({"refit": refit} if refit else {})} | values
        if (grow := values.get("grow")) is not None:
            kept = grow.get("keep") if isinstance(grow, dict) else getattr(grow, "keep", None)
            return {"keep": kept} | values if kept is not None else values
        if isinstance(schedule := values.get("schedule"), list) and schedule:
            return _counts_of(schedule[-1]) | values
        if values.get("width") is not None or values.get("layers") is not None:
            return {"keep": None} | values
        return values

    @field_validator("keep", "width", mode="before")
    @classmethod
    def _is_a_count(cls, value: Any, info: ValidationInfo) -> Any:
        return check_count(str(info.field_name), value)

    @field_validator("layers", mode="before")
    @classmethod
    def _is_a_count_or_a_list(cls, layers: Any) -> Any:
        if not isinstance(layers, list):
            return check_count("layers", layers)
        if not layers or any(type(layer) is not int or layer < 0 for layer in layers) or layers != sorted(set(layers)):
            raise ValueError("layers as a list names those that stay, counted from 0, ascending and each once: [0, 1, 3]")
        return layers

    @field_validator("refit", mode="before")
    @classmethod
    def _refit_makes_sense(cls, refit: Any) -> Any:
        return check_refit(refit)

    @field_validator("skipping", mode="before")
    @classmethod
    def _skipping_makes_sense(cls, skipping: Any) -> Any:
        if skipping in (None, "median"):
            return skipping
        if isinstance(skipping, bool) or not isinstance(skipping, int | float) or not 0 < skipping < 1:
            raise ValueError("skipping is median, or the share of the experts after a token's first to skip, in (0, 1)")
        return float(skipping)

    @model_validator(mode="after")
    def _schedule_shrinks(self) -> Self:
        for number, (before, after) in enumerate(pairwise(self.schedule or ()), start=2):
            _check_shrinks(number, before, after)
        for key in COUNTED if self.schedule else ():
            if getattr(self, key) != getattr(self.steps[-1], key):
                text = [step.model_dump() for step in self.steps]
                raise ValueError(f"{key} {getattr(self, key)} is not where the schedule {text} ends: leave {key} out")
        return self

    @model_validator(mode="after")
    def _keys_agree(self) -> Self:
        if isinstance(self.keep, int) and (self.experts_per_token or 0) > self.keep:
            raise ValueError(f"experts_per_token {self.experts_per_token} is more than the {self.keep} experts kept")
        if self.skipping and 1 in (self.keep, self.experts_per_token) and not isinstance(self.keep, float):
            raise ValueError("with one expert per token there is none to skip: leave skipping out")
        if self.form == "dense" and self.skipping:
            raise ValueError(
                "skipping leaves out experts that routers choose, and in the dense form there are none: leave one out"
            )
        if self.criterion in CRITERIA_ON_ALL_TOKENS and self.tokens != "all":
            raise ValueError(f"{self.criterion} compares the block's output on all tokens: say tokens: all")
        return self

    @model_validator(mode="after")
    def _fit_chooses(self) -> Self:
        if self.fit is None:
            return self
        chosen = [key for key in CHOSEN_BY_FIT if getattr(self, key) not in (None, "moe")]
        if chosen:
            raise ValueError(f"fit chooses {', '.join(CHOSEN_BY_FIT[:-1])} and {CHOSEN_BY_FIT[-1]}: leave {chosen[0]} out")
        if self.skipping and "dense" in self.fit.cuts:
            raise ValueError("skipping leaves out experts, and fit may choose a dense shape, which has none: leave one out")
        if self.criterion in CRITERIA_ON_ALL_TOKENS:
            raise ValueError(
                f"{self.criterion} searches a set for one number of experts, and fit compares many: take a criterion that scores"
            )
        if self.layer_criterion == "angular":
            raise ValueError(
                "fit drops one layer after the other, and angular chooses runs of them: take another layer_criterion"
            )
        if self.fit.refit and not self.refit and "refit" in self.model_fields_set:
            raise ValueError("fit.refit measures refitted shapes, and refit is false: the run would leave another model")
        return self

    @model_validator(mode="after")
    def _growth_stands_alone(self) -> Self:
        if self.grow is None:
            return self
        for key, reason in NOT_GROWN.items():
            if getattr(self, key):
                raise ValueError(reason)
        if self.form == "dense":
            raise ValueError("grow adds experts that a router chooses, and in the dense form there are none: leave form out")
        if self.criterion in CRITERIA_ON_ALL_TOKENS:
            raise ValueError(
                f"{self.criterion} searches whole sets, without regard to the experts that are there already: take a criterion "
                "that scores experts"
            )
        if self.keep != self.grow.keep:
            raise ValueError(f"keep {self.keep} is not what grow ends with, {self.grow.keep}: leave keep out, say grow.keep")
        return self

    @model_validator(mode="after")
    def _every_key_has_a_cut(self) -> Self:
        for cut, keys in BELONGING.items() if self.fit is None else ():
            for key in keys:
                if getattr(self, cut) is None and getattr(self, key) != type(self).model_fields[key].default:
                    raise ValueError(f"{key} belongs to {cut}, and {cut} is not set: say {cut}: 0.5, or leave {key} out")
        if isinstance(self.layers, list) and self.layer_criterion != type(self).model_fields["layer_criterion"].default:
            raise ValueError("layers names those that stay, so there is nothing for layer_criterion to choose: leave one out")
        if isinstance(self.width, int) and self.width_multiple and self.width % self.width_multiple:
            raise ValueError(f"width {self.width} is no multiple of width_multiple {self.width_multiple}")
        return self

    @model_serializer(mode="wrap")
    def _without_what_is_not_cut(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Recipes and fingerprints of runs that cut experts only are older than the other cuts' keys."""
        values = dump(self)
        if self.fit is not None:
            return {key: value for key, value in values.items() if key not in CHOSEN_BY_FIT}
        for cut, keys in BELONGING.items():
            if getattr(self, cut) is None:
                values = {key: value for key, value in values.items() if key not in (cut, *keys)}
        return values if self.form != "moe" else {key: value for key, value in values.items() if key != "form"}


def _counts_of(step: Any) -> dict[str, Any]:
    """What stays after the last step of a schedule, by the keys of `pruning`; without what is no number, which is reported as a
    mistake of the step."""
    values = {"keep": step} if isinstance(step, int) else dict(step) if isinstance(step, dict | StepRecipe) else {}
    found = {}
    for key in COUNTED:
        with suppress(ValueError):
            found[key] = check_count(key, values.get(key))
    return found


def _check_shrinks(number: int, before: StepRecipe, after: StepRecipe) -> None:
    """Raises ValueError where step `number` of a schedule brings back what is gone, or cuts nothing, as far as numbers tell
    without a model."""
    if before == after:
        raise ValueError(f"step {number} of the schedule keeps what step {number - 1} does: leave one of them out")
    for key in COUNTED:
        more, fewer = getattr(before, key), getattr(after, key)
        if more is not None and fewer is None:
            raise ValueError(
                f"step {number} of the schedule leaves out {key}, so that all {COUNTED[key]} would be back: say {key}: {more}"
            )
        if more is not None and type(more) is type(fewer) and fewer > more:
            raise ValueError(f"step {number} of the schedule has {key} {fewer}, after {more}: what is cut does not come back")
