"""The two forms of an upcycled model: what becomes of a dense model's feed-forward layer.

    shared   shared expert: the dense layer, its down projection × 2, behind a gate of sigmoid(0) = ½   ≡ the dense layer
             routed experts: drawn, with down projections of zeros                                      + 0
    copies   routed experts: the dense layer, in each a share of the channels drawn anew                ≡ where the share is 0

× 2 · ½ is exact in floating point, and the gate weights of the chosen experts sum to 1. `shared` begins where the dense model
stands and learns beside it: parameter-efficient sparsity crafting (PESC, arXiv 2401.02731), with experts of the model's own
architecture in place of adapters. `copies` is sparse upcycling (arXiv 2212.05055); equal copies stay equal to the router, so a
share of each is drawn anew, as in Drop-Upcycling (arXiv 2502.19261).

Shape legend: E experts, H hidden size, W width.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, Self

import torch

from toolkit.cuts.mlp_layout import MlpWeights
from toolkit.runtime.errors import PollardError

WIDTH_MULTIPLE = 8  # transformers' grouped products take rows of a multiple of 16 bytes, and no others
SILENT_WIDTH = 16  # of a shared expert that nothing asked for, where a family has one in every block


class Widths(NamedTuple):
    """Channels of each routed expert, and of the shared one in families that have it."""

    routed: int
    shared: int


class Draws:
    """Random numbers that depend on a seed and on what they are for, and on nothing that was drawn before."""

    def __init__(self, seed: int, block: str) -> None:
        self.seed, self.block = seed, block

    def generator(self, purpose: str) -> torch.Generator:
        digest = hashlib.sha256(f"{self.seed} {self.block} {purpose}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))

    def normal(self, shape: tuple[int, ...], std: float, purpose: str) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator(purpose)) * std


@dataclass(frozen=True, kw_only=True)
class Form(ABC):
    """How the upcycled model is made. Raises PollardError for numbers that make no mixture."""

    experts: int = 8
    """Of every layer."""
    experts_per_token: int = 2
    seed: int = 0
    """Of all that is drawn."""

    name: ClassVar[str]
    families: ClassVar[tuple[str, ...]]
    """The `model_type` of families that can hold the form; the first one that can represent a dense model is taken."""

    def __post_init__(self) -> None:
        if self.experts < 2:
            raise wrong_number("experts", self.experts, "a mixture has at least 2")
        if not 1 <= self.experts_per_token <= self.experts:
            raise wrong_number("experts_per_token", self.experts_per_token, f"a token activates 1 to {self.experts} experts")

    @property
    @abstractmethod
    def is_exact(self) -> bool:
        """Whether the upcycled model computes what the dense one does."""

    @abstractmethod
    def exact(self) -> Self:
        """The same form, with settings under which it is exact, and small."""

    @abstractmethod
    def widths(self, dense: int) -> Widths:
        """`dense`: channels of the dense layer."""

    @abstractmethod
    def routed(self, dense: MlpWeights, draws: Draws) -> Iterator[MlpWeights]:
        """Each of the routed experts."""

    @abstractmethod
    def shared(self, dense: MlpWeights, draws: Draws) -> MlpWeights:
        """The shared expert, whose output is halved."""


@dataclass(frozen=True, kw_only=True)
class SharedForm(Form):
    """The dense layer as shared expert, beside narrow routed experts that give nothing at first."""

    width: int = 64
    """Channels of each routed expert."""

    name = "shared"
    families = ("qwen2_moe",)
    is_exact = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width < 1 or self.width % WIDTH_MULTIPLE:
            raise wrong_number("width", self.width, f"experts have a multiple of {WIDTH_MULTIPLE} channels")

    def exact(self) -> Self:
        return replace(self, experts=3, experts_per_token=2, width=8)

    def widths(self, dense: int) -> Widths:
        return Widths(self.width, dense)

    def routed(self, dense: MlpWeights, draws: Draws) -> Iterator[MlpWeights]:
        return (silent(self.width, dense, draws, f"expert {expert}") for expert in range(self.experts))

    def shared(self, dense: MlpWeights, draws: Draws) -> MlpWeights:
        return dense._replace(down=dense.down * 2)


@dataclass(frozen=True, kw_only=True)
class CopiesForm(Form):
    """Every expert a copy of the dense layer, a share of whose channels is drawn anew."""

    redraw: float = 0.1
    """The share of channels, from 0 to 1."""

    name = "copies"
    families = ("mixtral", "qwen3_moe", "qwen2_moe")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.redraw <= 1:
            raise wrong_number("redraw", self.redraw, "it is a share of the channels, from 0 to 1")

    @property
    def is_exact(self) -> bool:
        return self.redraw == 0

    def exact(self) -> Self:
        return replace(self, experts=3, experts_per_token=2, redraw=0.0)

    def widths(self, dense: int) -> Widths:
        return Widths(dense, SILENT_WIDTH)

    def redrawn_channels(self, width: int) -> int:
        """At least one of `width`, where a share is drawn at all."""
        return max(round(self.redraw * width), 1) if self.redraw else 0

    def routed(self, dense: MlpWeights, draws: Draws) -> Iterator[MlpWeights]:
        count = self.redrawn_channels(len(dense.first))
        return (redrawn(dense, count, draws, f"expert {expert}") for expert in range(self.experts))

    def shared(self, dense: MlpWeights, draws: Draws) -> MlpWeights:
        return silent(SILENT_WIDTH, dense, draws, "shared expert")


FORMS: dict[str, type[Form]] = {form.name: form for form in (SharedForm, CopiesForm)}


def wrong_number(setting: str, value: float, reason: str) -> PollardError:
    return PollardError(f"Upcycling with {setting} = {value}: {reason}.", code="upcycle.wrong-number")


def silent(width: int, like: MlpWeights, draws: Draws, purpose: str) -> MlpWeights:
    """An expert that gives zeros, and learns: its first two projections are drawn like those of `like`."""
    size = like.down.shape[0]
    first, second = (
        draws.normal((width, size), _std(weight), f"{purpose} {name}").to(weight.dtype)
        for name, weight in (("first", like.first), ("second", like.second))
    )
    return MlpWeights(first, second, like.down.new_zeros(size, width))


def redrawn(dense: MlpWeights, channels: int, draws: Draws, purpose: str) -> MlpWeights:
    """`dense`, so many of whose channels, anywhere, are drawn anew with the standard deviation of each projection's weights."""
    if not channels:
        return dense
    chosen = torch.randperm(len(dense.first), generator=draws.generator(f"{purpose} channels"))[:channels]
    size = dense.down.shape[0]
    first, second, down = (weight.clone() for weight in dense)
    for name, weight, original in (("first", first, dense.first), ("second", second, dense.second)):
        weight[chosen] = draws.normal((channels, size), _std(original), f"{purpose} {name}").to(weight.dtype)
    down[:, chosen] = draws.normal((size, channels), _std(dense.down), f"{purpose} down").to(down.dtype)
    return MlpWeights(first, second, down)


def _std(weight: torch.Tensor) -> float:
    return float(weight.float().std())
