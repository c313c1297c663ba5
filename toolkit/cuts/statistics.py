"""What was watched: the file that calibration leaves, and every additive criterion reads.

    statistics.safetensors    "model.layers.0.mlp/gate_sum/completion" -> float64 [E], …
    statistics.json           model, task, seed, tokens and unobserved experts per block, …

Calibrated on a mix, every name begins with its source's number ("1/model.layers.0.mlp/gate_sum/completion").

Sums add over tokens, batches and ranks (`max_norm` takes the maximum); means are formed only where they are used.
Shape legend: E experts of a block.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from toolkit.runtime.errors import PollardError
from toolkit.runtime.files import write_text

Tokens = Literal["all", "prompt", "completion"]
PARTS: tuple[Literal["prompt"], Literal["completion"]] = ("prompt", "completion")
MAXIMA = {"max_norm"}  # every other statistic is a sum
NOT_EVERY_FAMILY_SHOWS = {
    "probability_sum": "its router's scores are no softmax that transformers returns",
    "residual_shift_sum": "its layers do not show the residual stream",
}


@dataclass
class ExpertStatistics:
    """Statistics per MoE block and expert.

    `vectors` maps "<block>/<statistic>/<prompt|completion>" to float64 [E] (the names are those of docs/methods.md);
    `about` holds what is not a vector: model, task, examples, seed, and under "blocks" per block its `experts`,
    `experts_per_token` and `tokens` (prompt and completion).
    """

    vectors: dict[str, torch.Tensor] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def blocks(self) -> list[str]:
        return list(self.about["blocks"])

    def get(self, block: str, statistic: str, tokens: Tokens = "all") -> torch.Tensor:
        """One statistic of one block over the chosen tokens, float64 [E]. Raises PollardError if it was not watched.

        Of a mix: every source counts by its share, as if it had brought that part of all the tokens of this kind.
        """
        sources = self.about.get("sources")
        if not sources:
            return self._get(block, statistic, tokens)
        found = torch.stack([self._get(f"{number}/{block}", statistic, tokens) for number in range(len(sources))])
        if statistic in MAXIMA:
            return found.amax(0)
        return (found * torch.tensor(_scales(sources, tokens), dtype=found.dtype).unsqueeze(1)).sum(0)

    def _get(self, block: str, statistic: str, tokens: Tokens) -> torch.Tensor:
        try:
            parts = [self.vectors[f"{block}/{statistic}/{part}"] for part in (PARTS if tokens == "all" else (tokens,))]
        except KeyError:
            raise PollardError(
                f"The statistics hold no `{statistic}` of {tokens} tokens for block {block}{_why_missing(statistic)}. "
                "Calibrate again with this version, or choose another criterion."
            ) from None
        stacked = torch.stack(parts)
        return stacked.amax(0) if statistic in MAXIMA else stacked.sum(0)

    def save(self, folder: str | Path) -> None:
        """Writes both files into `folder`; the JSON, written last, is what says that they are whole."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._summarise()
        partial = folder / "statistics.safetensors.tmp"
        save_file({name: vector.contiguous() for name, vector in self.vectors.items()}, partial)
        partial.replace(folder / "statistics.safetensors")
        write_text(folder / "statistics.json", json.dumps(self.about, indent=1) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> "ExpertStatistics":
        """Raises PollardError where `folder` holds no whole statistics."""
        folder = Path(folder)
        try:
            about = json.loads((folder / "statistics.json").read_text())
            if not (isinstance(about, dict) and isinstance(about.get("blocks"), dict)):
                raise ValueError("statistics.json names no blocks")
            return cls(load_file(folder / "statistics.safetensors"), about)
        except (OSError, ValueError, SafetensorError) as error:
            raise PollardError(f"No readable statistics in {folder} ({error}). Run the calibration first.") from None

    def _summarise(self) -> None:
        """Adds what a reader asks first: per block the experts no token reached, and the entropy of their use in bits."""
        for block, about in self.about["blocks"].items():
            count = self.get(block, "count")
            use = count / count.sum().clamp(min=1)
            about["unobserved"] = (count == 0).nonzero().flatten().tolist()
            about["entropy_bits"] = round(float(-(use * use.clamp(min=1e-30).log2()).sum()), 4)


def mix(parts: Sequence[ExpertStatistics], names: Sequence[str], weights: Sequence[float]) -> ExpertStatistics:
    """The statistics of several sources as one: kept apart in the file, weighted where they are used (`get`).

    A single source is returned as it is. What was found for a source alone and does not add up is not carried over.
    """
    if len(parts) == 1:
        return parts[0]
    about: dict[str, Any] = {"model": parts[0].about["model"], "blocks": {}, "sources": []}
    for block, facts in parts[0].about["blocks"].items():
        tokens = {name: sum(part.about["blocks"][block]["tokens"][name] for part in parts) for name in PARTS}
        about["blocks"][block] = {**facts, "tokens": tokens}
    for name, weight, part in zip(names, weights, parts, strict=True):
        seen = next(iter(part.about["blocks"].values()))["tokens"]  # every block sees the same tokens
        about["sources"].append({"name": name, "share": weight / sum(weights), "tokens": seen})
    vectors = {f"{n}/{name}": vector for n, part in enumerate(parts) for name, vector in part.vectors.items()}
    return ExpertStatistics(vectors, about)


def _scales(sources: list[dict[str, Any]], tokens: Tokens) -> list[float]:
    """Per source what its sums are multiplied with: share / (its part of all tokens of this kind).

    A source without such tokens (plain text has no prompt) leaves its share to the others.
    """
    seen = [sum(source["tokens"][part] for part in (PARTS if tokens == "all" else (tokens,))) for source in sources]
    shares = sum(source["share"] for source, n in zip(sources, seen, strict=True) if n)
    return [source["share"] / shares * sum(seen) / n if n else 0.0 for source, n in zip(sources, seen, strict=True)]


def _why_missing(statistic: str) -> str:
    why = NOT_EVERY_FAMILY_SHOWS.get(statistic.replace("_square", ""))
    return f" (perhaps this model family cannot have it: {why})" if why else ""
