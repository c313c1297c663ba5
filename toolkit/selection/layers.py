"""From what is known of a model's decoder layers to those that stay."""

from collections.abc import Sequence

from toolkit.runtime.errors import PollardError, did_you_mean
from toolkit.selection.layer_criteria import LAYER_CRITERIA, Evidence, LayerChoice, LayerEvidence, RemovedLayer

GIVEN = "given"
"""The criterion of a plan whose layers the recipe lists."""


def layers_to_keep(layers: int | float | Sequence[int], total: int) -> int | list[int]:
    """What `layers` means for a model of `total` decoder layers: how many stay (of a fraction the nearest number), or which.

    Raises PollardError for more than there are, for none, and for a list that is none of layers of this model.
    """
    if isinstance(layers, Sequence):
        return _checked_list(list(layers), total)
    if isinstance(layers, bool) or (isinstance(layers, float) and not 0 < layers < 1):
        raise PollardError(
            f"pruning.layers is {layers}: give an integer in 1…{total}, a fraction in (0, 1), or a list of layers.",
            code="selection.layers",
        )
    number = max(1, round(layers * total)) if isinstance(layers, float) else layers
    if not 1 <= number <= total:
        raise PollardError(
            f"pruning.layers is {layers}, but the model has {total} decoder layers: give 1…{total}, or a fraction in (0, 1).",
            code="selection.layers",
        )
    return number


def _checked_list(layers: list[int], total: int) -> list[int]:
    problem = None
    if not layers:
        problem = "is empty, so no layer would stay"
    elif any(type(layer) is not int for layer in layers):
        problem = f"is {layers}: a list names layers by their numbers"
    elif outside := [layer for layer in layers if not 0 <= layer < total]:
        problem = f"names layer {outside[0]}, but the model has {total} decoder layers"
    elif len(set(layers)) < len(layers):
        twice = next(layer for layer in layers if layers.count(layer) > 1)
        problem = f"names layer {twice} twice"
    if problem:
        raise PollardError(
            f"pruning.layers {problem}. List those that stay, counted from 0: 0…{total - 1}.", code="selection.layers"
        )
    return sorted(layers)


def evidence_needed(criterion: str, layers: int | list[int], total: int) -> Evidence:
    """What must be measured to choose; nothing where the layers are listed, or all stay. Raises PollardError for an unknown
    criterion."""
    if criterion not in LAYER_CRITERIA:
        known = list(LAYER_CRITERIA)
        raise PollardError(
            f"Unknown layer criterion {criterion!r}{did_you_mean(criterion, known)} Criteria: {', '.join(known)}.",
            code="selection.layer-criterion",
        )
    return "nothing" if layers == total or isinstance(layers, list) else LAYER_CRITERIA[criterion].needs


def choose_layers(criterion: str, layers: int | float | Sequence[int], evidence: LayerEvidence) -> LayerChoice:
    """The layers that stay: `layers` of them by `criterion`, or those that it lists.

    Raises PollardError as `layers_to_keep` does, for an unknown criterion, and where the model cannot do without so many.
    """
    wanted = layers_to_keep(layers, evidence.total)
    evidence_needed(criterion, wanted, evidence.total)
    if wanted == evidence.total:
        return LayerChoice(criterion, list(range(evidence.total)))
    if isinstance(wanted, int):
        return LAYER_CRITERIA[criterion].choose(wanted, evidence)
    gone = [layer for layer in range(evidence.total) if layer not in wanted]
    reason = evidence.refusal(wanted) if gone else None
    if reason is not None:
        raise PollardError(
            f"The model cannot do without layers {', '.join(map(str, gone))}, which pruning.layers leaves out: {reason}",
            code="selection.layers-refused",
        )
    return LayerChoice(GIVEN, wanted, [RemovedLayer(layer) for layer in gone])
