"""Layer criteria: rules that choose which decoder layers stay. LAYER_CRITERIA lists them all.

A rule says which layer goes next. Not every layer can: others borrow its keys and values, it is the last with attention, the
configuration could not describe what is left. Such layers are passed over, and the reason is kept for the report.

h_0 … h_L: the inputs of the L decoder layers, and the output of the last (toolkit/cuts/layer_similarities.py).
"""

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from toolkit.cuts.layer_similarities import LayerSimilarities
from toolkit.cuts.statistics import Tokens
from toolkit.runtime.errors import PollardError

Evidence = Literal["nothing", "similarities", "dev loss"]
SHOWN_REASONS = 3  # in an error


@dataclass(frozen=True)
class LayerEvidence:
    """What is known of the model whose layers are chosen."""

    total: int
    """Its decoder layers."""
    refusal: Callable[[Sequence[int]], str | None]
    """Why the model cannot be left with these layers only; None where it can."""
    similarities: LayerSimilarities | None = None
    loss: Callable[[Sequence[int]], float] | None = None
    """The dev loss with these layers only, in nats per token. Asked for one set after another; what has been measured may be
    remembered."""
    tokens: Tokens = "all"
    """Those whose similarities count."""
    seed: int = 0


@dataclass(frozen=True)
class RemovedLayer:
    layer: int
    loss: float | None = None  # without it and those before it, where the criterion measures it


@dataclass(frozen=True)
class LayerChoice:
    """Which layers stay, and why. All numbers are those of the model before the cut."""

    criterion: str
    kept: list[int]
    removed: list[RemovedLayer] = field(default_factory=list)
    """In the order in which they went."""
    scores: Sequence[float | None] | None = None
    """One per layer: the higher, the more is lost without it; None where it could not be measured. None for all where the
    criterion measures nothing."""
    refused: dict[int, str] = field(default_factory=dict)
    """The layers that would have gone, with the reasons why they stay."""
    loss: float | None = None
    """With all layers, where the criterion measures it."""


class LayerCriterion(ABC):
    """One rule: what it means, what it needs, and how it chooses."""

    name: ClassVar[str]
    meaning: ClassVar[str]
    """One line for people, with the formula and the paper."""
    needs: ClassVar[Evidence] = "nothing"

    @abstractmethod
    def choose(self, number: int, evidence: LayerEvidence) -> LayerChoice:
        """The `number` layers that stay. Raises PollardError where too few can go."""


class OrderedCriterion(LayerCriterion):
    """Removes one layer after the other in an order that does not depend on those that are gone. Nested: what stays of fewer is
    part of what stays of more."""

    @abstractmethod
    def order(self, evidence: LayerEvidence) -> list[int]:
        """The layers, those that go first before the others."""

    def scores(self, evidence: LayerEvidence) -> Sequence[float | None] | None:
        """One per layer, as in a LayerChoice."""
        return None

    def choose(self, number: int, evidence: LayerEvidence) -> LayerChoice:
        order, kept, refused = self.order(evidence), list(range(evidence.total)), dict[int, str]()
        removed: list[RemovedLayer] = []
        while len(kept) > number:
            refused = {}
            for layer in (layer for layer in order if layer in kept):
                reason = evidence.refusal(_without(kept, layer))
                if reason is None:
                    kept.remove(layer)
                    removed.append(RemovedLayer(layer))
                    break
                refused[layer] = reason
            else:
                raise _too_few(self.name, number, f"of the {len(kept)} that are left none can go", refused)
        return LayerChoice(self.name, kept, removed, self.scores(evidence), refused)


class DevLoss(LayerCriterion):
    name = "dev_loss"
    meaning = "Drops the layer without which the loss on the dev slice rises least; then, without it, the next (greedy removal)."
    needs = "dev loss"

    def choose(self, number: int, evidence: LayerEvidence) -> LayerChoice:
        """Ties: the later layer goes. Nested, and the losses of all numbers in between are measured on the way."""
        assert evidence.loss is not None, "dev_loss asks for the dev loss"
        kept, removed, refused = list(range(evidence.total)), list[RemovedLayer](), dict[int, str]()
        scores: list[float | None] = [None] * evidence.total
        before = first = evidence.loss(kept)
        if not math.isfinite(first):
            raise PollardError(
                f"The loss on the dev slice is {first} with all layers: there is nothing to compare with. Is its data empty, or "
                "does the model overflow (model.dtype=float32)? layer_criterion: influence does without it.",
                code="selection.dev-loss",
            )
        while len(kept) > number:
            refused, losses = {}, dict[int, float]()
            for layer in kept:
                reason = evidence.refusal(_without(kept, layer))
                if reason is None:
                    loss = evidence.loss(_without(kept, layer))
                    losses[layer] = loss if math.isfinite(loss) else math.inf
                else:
                    refused[layer] = reason
            if not losses:
                raise _too_few(self.name, number, f"of the {len(kept)} that are left none can go", refused)
            scores = [_rise(losses, layer, before, score) for layer, score in enumerate(scores)]
            layer = min(losses, key=lambda layer: (losses[layer], -layer))
            before = losses[layer]
            kept.remove(layer)
            removed.append(RemovedLayer(layer, before if math.isfinite(before) else None))
        return LayerChoice(self.name, kept, removed, scores, refused, first)


class Influence(OrderedCriterion):
    name = "influence"
    meaning = (
        "Drops those with the smallest 1 − mean cos(h_l, h_{l+1}): they turn the hidden states least (ShortGPT, "
        "arXiv 2403.03853)."
    )
    needs = "similarities"

    def order(self, evidence: LayerEvidence) -> list[int]:
        """Ties: the later layer goes first."""
        scores = self.scores(evidence)
        return sorted(range(evidence.total), key=lambda layer: (scores[layer], -layer))

    def scores(self, evidence: LayerEvidence) -> list[float]:
        return (1 - _similarities(evidence).mean_cosine(evidence.tokens)).tolist()


class Angular(LayerCriterion):
    name = "angular"
    meaning = (
        "Drops the n consecutive ones with the smallest mean angle arccos(cos(h_l, h_{l+n}))/π between what enters the first "
        "and what leaves the last (Gromov et al., arXiv 2403.17887)."
    )
    needs = "similarities"

    def choose(self, number: int, evidence: LayerEvidence) -> LayerChoice:
        """Scores: the smallest angle of the runs of n layers that a layer belongs to. Ties: the later run goes. Not nested."""
        gap, total, refused = evidence.total - number, evidence.total, dict[int, str]()
        angles = _similarities(evidence).mean_angle(evidence.tokens).diagonal(gap).tolist()
        scores = [min(angles[max(0, layer - gap + 1) : layer + 1]) for layer in range(total)]
        for start in sorted(range(len(angles)), key=lambda start: (angles[start], -start)):
            gone = range(start, start + gap)
            kept = [layer for layer in range(total) if layer not in gone]
            reason = evidence.refusal(kept)
            if reason is None:
                return LayerChoice(self.name, kept, [RemovedLayer(layer) for layer in gone], scores, refused)
            refused[start] = f"layers {start} to {start + gap - 1} together: {reason}" if gap > 1 else reason
        raise _too_few(self.name, number, f"no {gap} consecutive ones can go", refused)


class Top(OrderedCriterion):
    name = "top"
    meaning = "Drops the last ones before the final one, which stays (Why Lift so Heavy, arXiv 2402.11700)."

    def order(self, evidence: LayerEvidence) -> list[int]:
        return list(reversed(range(evidence.total - 1)))


class RandomLayers(OrderedCriterion):
    name = "random"
    meaning = "A seeded draw: the control every claim has to beat."

    def order(self, evidence: LayerEvidence) -> list[int]:
        order = list(range(evidence.total))
        random.Random(f"layers/{evidence.seed}").shuffle(order)
        return order


LAYER_CRITERIA: Mapping[str, LayerCriterion] = {
    criterion.name: criterion for criterion in (DevLoss(), Influence(), Angular(), Top(), RandomLayers())
}


def _without(kept: Sequence[int], layer: int) -> list[int]:
    return [other for other in kept if other != layer]


def _rise(losses: Mapping[int, float], layer: int, before: float, score: float | None) -> float | None:
    """How much the loss rises without `layer`; `score`, where it was not measured this time."""
    if layer not in losses:
        return score
    rise = losses[layer] - before
    return rise if math.isfinite(rise) else None


def _similarities(evidence: LayerEvidence) -> LayerSimilarities:
    assert evidence.similarities is not None, "the criterion compares hidden states"
    return evidence.similarities


def _too_few(criterion: str, number: int, problem: str, refused: Mapping[int, str]) -> PollardError:
    reasons: dict[str, list[int]] = {}
    for layer, reason in refused.items():
        reasons.setdefault(reason, []).append(layer)
    lines = [f"  {', '.join(map(str, layers))}: {reason}" for reason, layers in list(reasons.items())[:SHOWN_REASONS]]
    lines += [f"  (and {len(reasons) - SHOWN_REASONS} more reasons)"] if len(reasons) > SHOWN_REASONS else []
    return PollardError(
        f"pruning.layers asks for {number} layer{'s' * (number > 1)}, and {criterion} cannot leave so few: {problem}.\n"
        + "\n".join(lines)
        + "\nKeep more, choose by another criterion, or list the layers that stay (pruning.layers=[0, 1, …]).",
        code="selection.layers-refused",
    )
