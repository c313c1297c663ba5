"""Criteria of width: rules that choose the channels of every expert, and of the MLPs that are narrowed with them.

A criterion is a score per channel, float64 [E, W] of a block's experts or [W] of an MLP; each expert keeps its own highest.
a is the input of the down projection W_dn at a token, g the gate weight, L the loss over completion tokens.

Shape legend: E experts, W width (channels).
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch

from toolkit.cuts.statistics import ExpertStatistics, Tokens
from toolkit.runtime.errors import PollardError, did_you_mean

ChannelScore = Callable[[ExpertStatistics, str, Tokens, int], torch.Tensor]


class WidthCriterion:
    """One rule; its name is the function's, its meaning the first line of the docstring."""

    def __init__(self, score: ChannelScore, reads: tuple[str, ...] = (), gradients: bool = False) -> None:
        self.name, self.meaning = score.__name__, (score.__doc__ or "").strip().splitlines()[0]
        self.score = score
        self.reads = reads
        """The statistics that the score is made of."""
        self.gradients = gradients
        """Whether calibration must go backward for it: `calibrate(…, channels="gradients")`."""


def energy(statistics: ExpertStatistics, name: str, tokens: Tokens, seed: int) -> torch.Tensor:
    """‖W_dn[:, c]‖ · sqrt(Σ g²a²): what it adds to the residual stream; Wanda (arXiv 2306.11695) over a column."""
    return statistics.of_weights(name, "down_norm") * statistics.get(name, "channel_energy", tokens).sqrt()


def taylor(statistics: ExpertStatistics, name: str, tokens: Tokens, seed: int) -> torch.Tensor:
    """|Σ a · ∂L/∂a|: how much the loss moves without it, to first order (LLM-Pruner, arXiv 2305.11627)."""
    return statistics.get(name, "channel_taylor", tokens).abs()


def fisher(statistics: ExpertStatistics, name: str, tokens: Tokens, seed: int) -> torch.Tensor:
    """Σ (a · ∂L/∂a)²: the same to second order, by the empirical Fisher information (arXiv 1801.05787)."""
    return statistics.get(name, "channel_fisher", tokens)


def magnitude(statistics: ExpertStatistics, name: str, tokens: Tokens, seed: int) -> torch.Tensor:
    """‖gate row‖ · ‖up row‖ · ‖W_dn[:, c]‖: of the weights alone, without any data."""
    return statistics.of_weights(name, "channel_magnitude")


def random(statistics: ExpertStatistics, name: str, tokens: Tokens, seed: int) -> torch.Tensor:
    """A seeded draw per expert: the control every claim has to beat."""
    facts = statistics.about.channels[name]
    drawn = torch.stack([_draw(f"{seed}/{name}/{expert}", facts.width) for expert in range(facts.experts or 1)])
    return drawn[0] if facts.experts is None else drawn


def _draw(of: str, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(of.encode()).digest()[:7]))
    return torch.rand(width, generator=generator, dtype=torch.float64)


WIDTH_CRITERIA: dict[str, WidthCriterion] = {
    criterion.name: criterion
    for criterion in (
        WidthCriterion(energy, reads=("down_norm", "channel_energy")),
        WidthCriterion(taylor, reads=("channel_taylor",), gradients=True),
        WidthCriterion(fisher, reads=("channel_fisher",), gradients=True),
        WidthCriterion(magnitude, reads=("channel_magnitude",)),
        WidthCriterion(random),
    )
}


class WidthChoice(NamedTuple):
    """What is to be chosen of every expert."""

    keep: int  # channels
    criterion: str = "energy"
    tokens: Tokens = "all"
    seed: int = 0


def model_width(statistics: ExpertStatistics) -> int:
    """The channels of every expert of the observed model. Raises PollardError where they were not observed."""
    widths = {facts.width for facts in statistics.about.channels.values() if facts.experts is not None}
    if not widths:
        raise PollardError(
            "These statistics hold no channels, so no experts can be narrowed by them. Calibrate again with them: "
            "toolkit.calibrate(model, batches, channels=True), or a recipe with pruning.width.",
            code="selection.no-channels",
        )
    return widths.pop()  # a model whose blocks differ is refused in calibration


def choose_channels(
    statistics: ExpertStatistics, choice: WidthChoice, kept_experts: Mapping[str, Sequence[int]]
) -> dict[str, torch.Tensor]:
    """The channels that stay, ascending, int64: of every block [kept experts, keep], in the order of `kept_experts`; of every
    MLP that is narrowed with the experts [its new width], the same part of it.

    Ties: the lower index stays; channels of an expert that no token reached tie under criteria of data. Raises PollardError for
    an unknown criterion, for a width that an MLP cannot follow, and for what the statistics do not hold.
    """
    rule = width_criterion(choice.criterion)
    width = model_width(statistics)
    if rule.gradients and not any(f"/{name}/" in vector for vector in statistics.vectors for name in rule.reads):
        raise PollardError(
            f"These statistics hold no gradients of channels, which {rule.name} needs. Calibrate again with them: "
            f'toolkit.calibrate(model, batches, channels="gradients"), or a recipe with pruning.width_criterion={rule.name}.',
            code="selection.no-gradients",
        )
    channels = {}
    for name, facts in statistics.about.channels.items():
        scores = rule.score(statistics, name, choice.tokens, choice.seed)
        keep = choice.keep
        if facts.experts is None:
            keep = _new_width(name, facts.width, choice.keep, width)
        else:
            scores = scores[list(kept_experts[name])]
        best = scores.argsort(dim=-1, descending=True, stable=True)[..., :keep]
        channels[name] = best.sort(dim=-1).values
    return channels


def width_criterion(name: str) -> WidthCriterion:
    """Raises PollardError where there is none of that name."""
    if name not in WIDTH_CRITERIA:
        raise PollardError(
            f"Unknown criterion of width {name!r}{did_you_mean(name, list(WIDTH_CRITERIA))} "
            f"Criteria: {', '.join(WIDTH_CRITERIA)}.",
            code="selection.width-criterion",
        )
    return WIDTH_CRITERIA[name]


def _new_width(mlp: str, width: int, keep: int, of: int) -> int:
    if width * keep % of:
        raise PollardError(
            f"{mlp} hangs on the same key as the experts, and its {width} channels cannot become {keep}/{of} of that. Give "
            "another pruning.width.",
            code="width.alignment",
        )
    return width * keep // of
