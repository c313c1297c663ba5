"""How much decoder layers change the hidden states that pass them: what the layer criteria `influence` and `angular` read.

h_0 … h_L of a token: the inputs of the L decoder layers, and the output of the last, before the final norm.

    similarities.safetensors    "0/cosine/prompt"   float64 [L]           sum of cos(h_l, h_{l+1})
                                "0/angle/prompt"    float64 [L+1, L+1]    sum of arccos(cos(h_i, h_j)) / pi
                                metadata            fingerprint; share and tokens of every source

The number is that of the source in a mix. Sums add over tokens, batches and ranks; means are formed where they are used.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from toolkit.cuts.statistics import PARTS, Part, TokenCounts, Tokens
from toolkit.runtime.errors import PollardError


@dataclass(frozen=True)
class SourceSimilarities:
    """Sums over the tokens of one source, by part."""

    cosine: dict[Part, torch.Tensor]
    angle: dict[Part, torch.Tensor]
    tokens: TokenCounts
    share: float = 1.0


@dataclass(frozen=True)
class LayerSimilarities:
    """Of one source, or of the sources of a mix, each counting by its share however many tokens it has."""

    sources: list[SourceSimilarities]

    @property
    def layers(self) -> int:
        return len(self.sources[0].cosine["prompt"])

    def mean_cosine(self, tokens: Tokens = "all") -> torch.Tensor:
        """Entry l: the mean of cos(h_l, h_{l+1}) over the chosen tokens; float64 [L]."""
        return self._mean([source.cosine for source in self.sources], tokens)

    def mean_angle(self, tokens: Tokens = "all") -> torch.Tensor:
        """Entry i, j: the mean of arccos(cos(h_i, h_j)) / pi over the chosen tokens; float64 [L+1, L+1]."""
        return self._mean([source.angle for source in self.sources], tokens)

    def _mean(self, sums: list[dict[Part, torch.Tensor]], tokens: Tokens) -> torch.Tensor:
        parts = PARTS if tokens == "all" else (tokens,)
        counts = [sum(source.tokens[part] for part in parts) for source in self.sources]
        means = [
            source.share / count * torch.stack([by_part[part] for part in parts]).sum(0)
            for source, by_part, count in zip(self.sources, sums, counts, strict=True)
            if count  # plain text has no prompt: its share is left to the others
        ]
        if not means:
            raise PollardError(
                f"The layers were compared on no {tokens} tokens: say pruning.tokens=all, or add examples that have some.",
                code="statistics.no-such-tokens",
            )
        shares = sum(source.share for source, count in zip(self.sources, counts, strict=True) if count)
        return torch.stack(means).sum(0) / shares

    def save(self, path: Path, fingerprint: str) -> None:
        """Writes the file, whole or not at all. `fingerprint`: what it was made from."""
        vectors = {
            f"{number}/{statistic}/{part}": sums[part].contiguous()
            for number, source in enumerate(self.sources)
            for statistic, sums in (("cosine", source.cosine), ("angle", source.angle))
            for part in PARTS
        }
        sources = [{"share": source.share, "tokens": source.tokens} for source in self.sources]
        partial = path.with_name(path.name + ".tmp")
        save_file(vectors, partial, {"fingerprint": fingerprint, "sources": json.dumps(sources)})
        partial.replace(path)

    @classmethod
    def load(cls, path: Path, fingerprint: str) -> "LayerSimilarities | None":
        """None unless the file is there, whole, and made from the same."""
        try:
            with safe_open(path, framework="pt") as file:
                about = file.metadata() or {}
                if about.get("fingerprint") != fingerprint:
                    return None
                sums = [
                    SourceSimilarities(_by_part(file, f"{number}/cosine"), _by_part(file, f"{number}/angle"), **source)
                    for number, source in enumerate(json.loads(about["sources"]))
                ]
        except (OSError, SafetensorError, KeyError, ValueError):
            return None
        return cls(sums)


def _by_part(file: Any, name: str) -> dict[Part, torch.Tensor]:
    return {part: file.get_tensor(f"{name}/{part}") for part in PARTS}
