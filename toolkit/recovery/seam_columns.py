"""The original's hidden states at the seams, as the teacher's cache holds them beside its logits.

    whole       H numbers of 16 bits per token and seam
    projected   64 numbers of 16 bits, and the length, where the disk has no room for them whole: 132 bytes

The projection is a Gaussian matrix that a seed makes. By Johnson and Lindenstrauss the cosine of two vectors is that of their
projections but for an error of about (1 - cos^2) / 8, which vanishes as the two agree.

Shape legend: N completion tokens, G seams, H hidden size, D numbers of a state in the cache: H, or 64.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple, NotRequired, TypedDict

import torch

from toolkit.runtime.errors import PollardError

PROJECTED = 64
EXAMPLES = 32  # per shard, at most: a shard is in memory while it is made


class SeamIdentity(TypedDict):
    """How a cache holds hidden states (about.json, `hidden`)."""

    seams: list[int]  # layers of the original that read them; the number of its layers: what the last hands on
    size: int  # H
    projected: NotRequired[int]  # 64
    seed: NotRequired[int]  # of the projection


@dataclass(frozen=True)
class SeamColumns:
    """The columns `hidden` and, of projections, `length` of a cache. `seams`: layers of the original, as in SeamIdentity."""

    seams: tuple[int, ...]
    size: int
    seed: int | None = None
    """Of the projection; None: whole."""

    @classmethod
    def of(cls, identity: SeamIdentity) -> "SeamColumns":
        return cls(tuple(identity["seams"]), identity["size"], identity.get("seed"))

    @property
    def identity(self) -> SeamIdentity:
        if self.seed is None:
            return {"seams": list(self.seams), "size": self.size}
        return {"seams": list(self.seams), "size": self.size, "projected": PROJECTED, "seed": self.seed}

    @property
    def bytes_per_token(self) -> int:
        return len(self.seams) * (2 * self.size if self.seed is None else 2 * PROJECTED + 4)

    @property
    def description(self) -> str:
        where = f"hidden states at {len(self.seams)} seam{'s' * (len(self.seams) > 1)}"
        if self.seed is None:
            return f"{where}, whole: {self.size:,} numbers of 16 bits each"
        return f"{where}, each as {PROJECTED} projected numbers (seed {self.seed}) and its length"

    @property
    def projection(self) -> torch.Tensor | None:
        """[H, 64] of mean square 1/64, so that lengths stay on average; None: whole."""
        return None if self.seed is None else _projection(self.size, self.seed)

    @property
    def names(self) -> tuple[str, ...]:
        return ("hidden",) if self.seed is None else ("hidden", "length")

    def stored(self, states: Mapping[int, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """The columns, as `names` says, for the states [N, H] of every seam: `hidden` [N, G, D] bfloat16 (the few very large
        numbers of a residual stream are beyond float16), `length` [N, G] float32."""
        found = [states[number] for number in self.seams]
        if any(state.shape[-1] != self.size for state in found):
            raise PollardError(
                f"The original's layers hand on {found[0].shape[-1]:,} numbers per token, and its hidden_size is {self.size:,}: "
                "several residual streams cannot be compared. Leave finetuning.distillation.hidden out.",
                code="seams.several-streams",
            )
        if (projection := self.projection) is None:
            return (torch.stack([state.bfloat16().cpu() for state in found], 1),)
        hidden = [(state.float() @ projection.to(state.device)).bfloat16().cpu() for state in found]
        return torch.stack(hidden, 1), torch.stack([state.float().norm(dim=-1).cpu() for state in found], 1)


@cache
def _projection(size: int, seed: int) -> torch.Tensor:
    return torch.randn(size, PROJECTED, generator=torch.Generator().manual_seed(seed)) / PROJECTED**0.5


class TeacherStates(NamedTuple):
    """The original's hidden states at the seams, of N tokens."""

    hidden_NGD: torch.Tensor  # bfloat16
    length_NG: torch.Tensor  # float32, of the whole states

    @classmethod
    def of(cls, hidden: torch.Tensor, length: torch.Tensor | None) -> "TeacherStates":
        return cls(hidden, hidden.float().norm(dim=-1) if length is None else length)
