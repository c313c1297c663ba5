"""What a refit did, layer by layer: for the manifest and the report."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

Target = Literal["residual", "output"]


@dataclass(frozen=True)
class BlockRefit:
    """One decoder layer's weights."""

    module: str
    """The layer's name in the cut model."""
    weights: list[str]
    """Those that were refit, by their names in the cut model."""
    target: Target
    """"residual": the original's stream behind the layer. "output": the original block's own routed output, where the layer does
    not add the block's output as it is."""
    channels: int
    """Unknowns of each output number: over the experts, their channels."""
    penalties: list[float | None]
    """λ of each group of channels, by held-out error; None: the group stayed as it was."""
    error_before: float
    """Squared error of the target on held-out tokens, over the squared size of what was asked of the weights."""
    error_after: float
    """Never above `error_before`."""
    steps: list[int] = field(default_factory=list)
    """Of conjugate gradients, for the experts' gate and up projections, of each group; 0: they stayed."""

    @property
    def changed(self) -> bool:
        return any(penalty is not None for penalty in self.penalties) or any(self.steps)


@dataclass(frozen=True)
class RefitResult:
    """`tokens` that the weights were fitted to, and `held_out` ones, of all ranks."""

    tokens: int
    held_out: int
    blocks: list[BlockRefit]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        return cls(data["tokens"], data["held_out"], [BlockRefit(**block) for block in data["blocks"]])
