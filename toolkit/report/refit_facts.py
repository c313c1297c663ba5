"""What a report tells of a refit, typed and in sentences.

    "refit": {"examples": 512, "tokens": 4096, "held_out": 1024, "layers": [{"module": "model.layers.0", …}, …]}

Errors are squared, on held-out tokens, relative to the squared size of what was asked of the weights.
"""

from collections.abc import Sequence
from statistics import fmean
from typing import Literal

from toolkit.report.measurements import Facts, Number
from toolkit.runtime.formatting import percent


class RefitLayerFacts(Facts):
    """One layer's weights. `channels`: unknowns of each output number; `penalties`: λ by group of channels, None where the group
    stayed as it was; `target`: the original's residual stream behind the layer, or its block's own output."""

    module: str
    weights: list[str]
    target: Literal["residual", "output"]
    channels: int
    penalties: list[Number | None]
    error_before: Number
    error_after: Number

    @property
    def changed(self) -> bool:
        return any(penalty is not None for penalty in self.penalties)

    @property
    def penalty_text(self) -> str:
        """ "0.01", "0.001 to 0.1", or "stays"."""
        chosen = sorted({penalty for penalty in self.penalties if penalty is not None})
        if not chosen:
            return "stays"
        return f"{chosen[0]:g}" if len(chosen) == 1 else f"{chosen[0]:g} to {chosen[-1]:g}"


class RefitFacts(Facts):
    """`tokens` that the weights were fitted to, and `held_out` ones, by which the penalties were chosen. `layers`: empty where
    refit.json is gone."""

    examples: int | None
    tokens: int | None
    held_out: int | None
    layers: list[RefitLayerFacts]

    @property
    def unchanged(self) -> int:
        return sum(not layer.changed for layer in self.layers)

    @property
    def means(self) -> tuple[float, float] | None:
        """The errors before and after, over the layers."""
        if not self.layers:
            return None
        return fmean(layer.error_before for layer in self.layers), fmean(layer.error_after for layer in self.layers)

    @property
    def worst(self) -> RefitLayerFacts:
        """The layer with the largest error left."""
        return max(self.layers, key=lambda layer: layer.error_after)

    @property
    def sentence(self) -> str:
        """ "Refit by least squares on 512 training examples, no gradients: held-out error 53.5 % -> 35.0 %, over 2 layers."."""
        examples = f"{self.examples:,} training examples" if self.examples is not None else "training examples"
        text = f"Refit by least squares on {examples}, no gradients"
        if not self.means:
            return f"{text}."
        before, after = map(percent, self.means)
        return f"{text}: held-out error {before} -> {after} on average over {len(self.layers)} layers."


def refit_warnings(refit: RefitFacts | None) -> Sequence[str]:
    """What makes a refit doubtful."""
    if not refit or not refit.layers:
        return []
    lines, unknowns = [], max(layer.channels for layer in refit.layers)
    if refit.unchanged:
        lines.append(
            f"Refit left {refit.unchanged:,} of {len(refit.layers):,} layers as they were: no weights that it found came nearer "
            "to the original on held-out tokens."
        )
    if refit.tokens is not None and refit.tokens < unknowns:
        lines.append(
            f"Refit fitted up to {unknowns:,} unknowns per number to {refit.tokens:,} tokens: the penalty decides where the "
            "tokens do not. More examples (pruning.refit.examples) may carry further."
        )
    return lines
