"""What a report tells of cuts of width and of layers, typed; the experts' facts are in facts.py.

    "cuts": {"sizes": {"original": {"layers": 12, …}, "layers": {…}, "experts": {…}, "width": {…}},
             "width": {"criterion": "energy", "keep": 32, "width": 64, "blocks": {…}, …}, "layers": {"kept": [0, 1, 3], …}}

Shares and scores are fractions in [0, 1], losses nats per token. Shape legend: K kept experts of a block, L layers.
"""

from toolkit.report.measurements import Facts, Number


class CriteriaAgreement(Facts):
    """Per criterion the share of the plan's experts that it would have kept as well, by block and on average; two choices that
    know nothing of each other share `by_chance`."""

    by_chance: Number
    agreement: dict[str, dict[str, Number]]
    mean: dict[str, Number]


class SizeFacts(Facts):
    """A model's shape, and how many parameters that is. `experts`: per block; `width`: channels per expert, None where blocks
    differ."""

    layers: int
    experts: int
    experts_per_token: int
    width: int | None
    parameters: int
    active_parameters: int


class ChannelFacts(Facts):
    """The channels that stay in one MoE block. `kept_by`: entry n says how many channels n of the kept experts keep [K + 1].
    `energy`: per kept expert, in ascending order, the share of Σ ‖W_dn[:, c]‖² g²a² over calibration that its kept channels hold
    [K]; None for an expert that no token reached."""

    kept_by: list[int]
    energy: list[Number | None] | None


class WidthFacts(Facts):
    """How narrow the experts are, and which of their channels stay. `mlps`: what else is narrowed with them, its channels after
    and before. `criteria`: the share of the plan's channels that each criterion keeps as well."""

    criterion: str
    keep: int
    width: int | None
    blocks: dict[str, ChannelFacts]
    mlps: dict[str, tuple[int, int]]
    criteria: CriteriaAgreement | None


class RemovedLayerFacts(Facts):
    """A layer that went; `loss`: on the dev slice without it and those before it, where that was measured."""

    layer: int
    loss: Number | None


class DevAnswerFacts(Facts):
    """Dev questions answered rightly with all layers, and with those that stay, before any recovery."""

    n: int
    before: int
    after: int


class LayersFacts(Facts):
    """Which of `layers` decoder layers stay. `scores` [L]: what is lost without each. `removed`: in the order in which they went.
    `refused`: layers that would have gone, and why they stay. `criteria`: what each criterion would have kept.
    `written_answers`: whether the task's answers are written, not chosen."""

    criterion: str
    layers: int
    kept: list[int]
    scores: list[Number | None] | None
    removed: list[RemovedLayerFacts]
    refused: dict[int, str]
    loss: Number | None
    dev_examples: int | None
    dev_answers: DevAnswerFacts | None
    written_answers: bool | None
    criteria: dict[str, list[int]]


class CutFacts(Facts):
    """The cuts of a run that cut more than experts. `sizes`: of the original, and after each cut, one after the other."""

    sizes: dict[str, SizeFacts]
    width: WidthFacts | None
    layers: LayersFacts | None
