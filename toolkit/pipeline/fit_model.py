"""`toolkit.fit`: the best shape of a loaded model under limits, as a plan. Nothing is written, nothing trained."""

import math
from collections.abc import Sequence

from pydantic import ValidationError
from transformers import PreTrainedModel

from toolkit.calibration import CalibrationSource, calibrate
from toolkit.calibration.layer_similarity import layer_similarities
from toolkit.cuts import Plan, masked
from toolkit.cuts.fit_result import FitShape
from toolkit.evaluation import completion_loss
from toolkit.moe import Batch
from toolkit.pipeline.fit_axes import axes_of, axis_shapes
from toolkit.pipeline.fit_plans import ShapePlans, nested_layers
from toolkit.pipeline.fit_space import FitSpace
from toolkit.pipeline.layer_refusal import plan_of_layers, refusal_of
from toolkit.recipe.fit import CutName
from toolkit.recipe.pruning import PruningRecipe
from toolkit.runtime.distributed import gather
from toolkit.runtime.errors import PollardError
from toolkit.selection import WIDTH_CRITERIA, LayerEvidence, choose_layers, evidence_needed
from toolkit.selection.fit import Deltas

IDLE = ("refit", "skipping")  # keys of a recipe's section that a masked model has no use for
HELD_OUT = 5  # of so many batches one is kept for the loss, unless they are given


def fit(
    model: PreTrainedModel,
    batches: Sequence[Batch],
    *,
    bytes: int | str | None = None,
    parameters: int | str | None = None,
    active: int | str | None = None,
    cuts: Sequence[CutName] = ("experts", "width", "layers"),
    measured: int = 8,
    dev_batches: Sequence[Batch] | None = None,
    **pruning: object,
) -> Plan:
    """The plan of the shape with the smallest loss on the dev batches, of those within the limits; on every rank.

    `batches`: as for `calibrate`, this rank's own, with a `completion_mask` [B, S]. Losses are measured on `dev_batches`, the
    same on every rank, or on every fifth batch, which is then not calibrated on. `bytes` ("12G", in the model's dtype),
    `parameters` ("7B") and `active` ("3B", per token): at least one. `measured`: so many of the shapes that look best are
    measured as a whole, beside the best that cut one thing only. `pruning`: keys of a recipe's section, such as `criterion`,
    `tokens`, `width_multiple`.

    Raises PollardError for limits that no shape meets or that all do, for what is not finite, and for a model that cannot be cut.
    """
    if "dense" in cuts:
        raise PollardError(
            "toolkit.fit masks a loaded model, and the dense form has no routers to mask: give limits in a recipe (pruning.fit), "
            "whose shapes are written.",
            code="fit.dense-in-memory",
        )
    limits = {"bytes": bytes, "parameters": parameters, "active": active}
    settings = _settings(limits | {"cuts": list(cuts), "measured": measured}, pruning)
    space = FitSpace(model.config, settings, "")
    space.candidates()  # limits that cannot be met are found before anything runs
    dev, rest = (dev_batches, batches) if dev_batches is not None else _split(batches)
    gradients = WIDTH_CRITERIA[settings.width_criterion].gradients
    statistics = calibrate(model, rest, channels=len(space.values.width) > 1 and ("gradients" if gradients else True))
    known: dict[FitShape | None, float | None] = {None: completion_loss(model, dev).finite}

    removed = _removed_layers(model, space, settings, rest, dev) if len(space.values.layers) > 1 else []
    plans = ShapePlans(model, statistics, nested_layers(space.original.layers, removed), space.original, settings)

    def loss(shape: FitShape | None) -> float | None:
        if shape is not None and shape not in known:
            with masked(model, plans.plan(shape)):
                known[shape] = completion_loss(model, dev).finite
        return known[shape]

    deltas = Deltas.of(axes_of(axis_shapes(space.values, list(plans.kept_layers)), space.original, loss))
    candidates = space.candidates(plans.kept_layers)
    ranked = sorted(candidates, key=lambda each: (deltas.predicted(each.shape), -each.size.parameters))
    shapes = [each.shape for each in [*ranked[:measured], *(each for each in candidates if each.single_cut)]]
    losses = {shape: math.inf if (found := loss(shape)) is None else found for shape in shapes}
    return plans.plan(min(losses, key=lambda shape: (losses[shape], shape)))


def _removed_layers(
    model: PreTrainedModel, space: FitSpace, settings: PruningRecipe, batches: Sequence[Batch], dev: Sequence[Batch]
) -> list[int]:
    """In the order in which they go."""

    def loss(kept: Sequence[int]) -> float:
        with masked(model, plan_of_layers(model, kept)):
            return completion_loss(model, dev).mean

    criterion, number, depth = settings.layer_criterion, space.values.layers[0], space.original.layers
    similarities = None
    if evidence_needed(criterion, number, depth) == "similarities":
        similarities = layer_similarities(model, [CalibrationSource("batches", batches)])
    evidence = LayerEvidence(depth, refusal_of(model), similarities, loss, settings.tokens)
    return [each.layer for each in choose_layers(criterion, number, evidence).removed]


def _settings(limits: dict[str, object], pruning: dict[str, object]) -> PruningRecipe:
    if idle := [key for key in IDLE if key in pruning]:
        raise PollardError(
            f"toolkit.fit: {idle[0]} decides nothing here, where nothing is written: leave it out.",
            code="fit.settings",
        )
    try:
        given = {key: value for key, value in limits.items() if value is not None}
        return PruningRecipe.model_validate({"fit": given, **pruning})
    except ValidationError as error:
        faults = [(e["msg"].removeprefix("Value error, "), [str(part) for part in e["loc"]]) for e in error.errors()]
        places = {fault: ".".join(where[1:] if where[:1] == ["fit"] else where) for fault, where in faults}
        text = "; ".join(f"{place}: {fault}" if place else fault for fault, place in places.items())
        raise PollardError(f"toolkit.fit: {text}.", code="fit.settings") from None


def _split(batches: Sequence[Batch]) -> tuple[Sequence[Batch], Sequence[Batch]]:
    """Every fifth for the loss, at least one, those of all ranks; and this rank's others. Raises PollardError for fewer than two
    batches."""
    if len(batches) < 2:
        raise PollardError(
            "toolkit.fit needs two batches or more: some are calibrated on, and the losses are measured on others. Give smaller "
            "batches, or dev_batches.",
            code="fit.too-few-batches",
        )
    dev = [batch for part in gather(list(batches[::HELD_OUT])) for batch in part]
    return dev, [batch for number, batch in enumerate(batches) if number % HELD_OUT]
