"""Which layers every criterion would have kept, from what the choice of layers has left behind: no model is run for it."""

import math
from collections.abc import Sequence
from contextlib import suppress

from toolkit.cuts.layer_similarities import LayerSimilarities
from toolkit.moe import meta_model
from toolkit.pipeline.context import RunContext
from toolkit.pipeline.layer_choice import ChosenLayers
from toolkit.pipeline.layer_refusal import refusal_of
from toolkit.pipeline.loss_file import read_losses
from toolkit.runtime.errors import PollardError
from toolkit.selection import LayerEvidence
from toolkit.selection.layer_criteria import LAYER_CRITERIA


class _NotMeasuredError(Exception):
    """The loss of a set of layers that no search came by."""


def layer_alternatives(context: RunContext) -> dict[str, list[int]]:
    """By criterion, in the numbers of the model that the run cuts. A criterion that what was measured cannot serve is absent.
    Raises PollardError for a layers.json that is damaged."""
    recipe, run = context.recipe, context.directory
    chosen, fingerprints = ChosenLayers.load(run.layers), context.fingerprints.layers
    assert fingerprints is not None, "the recipe keeps all layers"
    similarities = LayerSimilarities.load(run.layer_measurements / "similarities.safetensors", fingerprints.similarities)
    losses = read_losses(run.layer_measurements / "losses.json", fingerprints.losses)

    def loss(kept: Sequence[int]) -> float:
        key = ",".join(map(str, kept))
        if key not in losses:
            raise _NotMeasuredError
        found = losses[key]
        return math.nan if found is None else found

    refusal = refusal_of(meta_model(context.config_of(context.source)))
    evidence = LayerEvidence(chosen.layers, refusal, similarities, loss, recipe.pruning.tokens, recipe.seed)
    found = {}
    for name, criterion in LAYER_CRITERIA.items():
        if criterion.needs != "similarities" or similarities:
            with suppress(PollardError, _NotMeasuredError):
                found[name] = criterion.choose(len(chosen.kept), evidence).kept
    return found
