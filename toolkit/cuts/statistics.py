"""The statistics of calibration, which every criterion reads.

    statistics.safetensors    "model.layers.0.mlp/gate_sum/completion" -> float64 [E], …
                              "model.layers.0.mlp/aimer/weights" -> float64 [E], …: what no token decides
                              "model.layers.0.mlp/channel_energy/completion" -> float64 [E, W], …
    statistics.json           model, task, seed, tokens and unobserved experts per block, …

Calibrated on a mix, every name begins with its source's number ("1/model.layers.0.mlp/gate_sum/completion").

Sums add over tokens, batches and ranks (`max_norm` takes the maximum); means are formed only where they are used.
Shape legend: E experts of a block, W width (channels of an expert), S sources of a mix.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from toolkit.runtime.display import Displayed, Overview
from toolkit.runtime.errors import PollardError
from toolkit.runtime.files import write_text
from toolkit.runtime.formatting import MISSING

Tokens = Literal["all", "prompt", "completion"]
SearchMode = Literal["layerwise", "progressive"]
Part = Literal["prompt", "completion"]
TokenCounts = dict[Part, int]
PARTS: tuple[Part, Part] = ("prompt", "completion")
WEIGHTS = "weights"  # in place of a part: a fact of the weights, the same whatever was observed
MAXIMA = {"max_norm"}  # every other statistic is a sum
MISSING_IN_SOME_FAMILIES = {
    "probability_sum": "its router's scores are no softmax that transformers returns",
    "residual_shift_sum": "its layers do not show the residual stream",
}


@dataclass
class BlockStatistics:
    """One MoE block, beside its vectors."""

    experts: int
    experts_per_token: int
    groups: int = 1
    tokens: TokenCounts = field(default_factory=dict)
    unobserved: list[int] | None = None  # experts that no token reached; set when saved
    entropy_bits: float | None = None  # of the experts' use; set when saved


@dataclass
class ChannelFacts:
    """The channels of a block's experts, or of an MLP that is narrowed with them."""

    width: int
    experts: int | None = None  # None of an MLP


@dataclass
class SourceStatistics:
    """One source of a mix."""

    name: str
    share: float
    tokens: TokenCounts


@dataclass
class SubsetResult:
    """The best set of experts of one size that a subset search has found."""

    kept: list[int]
    loss: float
    lower_bound: float | None = None  # of the loss of any set of this size; where the search was greedy
    table: dict[str, float] | None = None  # the loss of every set ("0,1,2,3"); where the search was exhaustive


@dataclass
class BlockSearchResult:
    """A subset search in one block."""

    search: str  # how: "exhaustive" or "greedy and swaps"
    tokens: int
    tokens_searched: int  # fewer where tokens were subsampled
    keep: dict[int, SubsetResult]  # by the number of kept experts


@dataclass
class StatisticsFacts:
    """statistics.json: everything that is not a vector."""

    blocks: dict[str, BlockStatistics]
    model: str = ""
    sources: list[SourceStatistics] = field(default_factory=list)  # of a mix
    channels: dict[str, ChannelFacts] = field(default_factory=dict)  # where they were observed: by block, or MLP
    reconstruction: dict[SearchMode, dict[str, BlockSearchResult]] = field(default_factory=dict)  # by mode and block
    task: str | None = None
    seed: int | None = None
    fingerprint: str | None = None
    examples: int | None = None
    beyond_context: int | None = None  # examples longer than the model's context
    left_out: int | None = None  # examples longer than calibration.max_length
    not_kept: int | None = None  # the model's own answers that were wrong, or too long
    bad_lines: int | None = None

    @property
    def tokens(self) -> int:
        """Observed tokens, prompt and completion; every block sees the same."""
        return sum(next(iter(self.blocks.values())).tokens.values())

    def to_json(self) -> str:
        values = _without_none(asdict(self))
        first = ("model", "blocks", "sources") if self.sources else ("blocks", "model")
        rest = [key for key in values if key not in first]
        return json.dumps({key: values[key] for key in (*first, *rest) if values[key] not in ("", [], {})}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "StatisticsFacts":
        """Raises ValueError where `text` is not such a file."""
        return TypeAdapter(cls).validate_json(text)


@dataclass(repr=False)
class ExpertStatistics(Displayed):
    """Statistics per MoE block and expert.

    `vectors` maps "<block>/<statistic>/<prompt|completion>" to float64 [E] (the names are those of docs/methods.md);
    for channels to [E, W], and for an MLP that is narrowed with the experts, under its module's name, to [W].
    """

    vectors: dict[str, torch.Tensor]
    about: StatisticsFacts

    @property
    def blocks(self) -> list[str]:
        return list(self.about.blocks)

    def get(self, block: str, statistic: str, tokens: Tokens = "all") -> torch.Tensor:
        """One statistic of one block over the chosen tokens, float64 [E] ([E, W] of channels, [W] of an MLP's). Raises
        PollardError if it was not observed.

        In a mix every source counts by its share, as if it had brought that part of all the tokens of this kind.
        """
        sources = self.about.sources
        if not sources:
            return self._get(block, statistic, tokens)
        parts_SE = torch.stack([self._get(f"{number}/{block}", statistic, tokens) for number in range(len(sources))])
        if statistic in MAXIMA:
            return parts_SE.amax(0)
        scales = torch.tensor(_scales(sources, tokens), dtype=parts_SE.dtype)
        return (parts_SE * scales.view(-1, *[1] * (parts_SE.ndim - 1))).sum(0)

    def of_weights(self, block: str, fact: str) -> torch.Tensor:
        """What the weights of one block say by themselves, float64 [E] or [E, W]; zeros where no token entered the block.
        Raises PollardError if it was not taken down."""
        prefixes = [f"{number}/" for number in range(len(self.about.sources))] or [""]  # the same in every source
        found = [self.vectors.get(f"{prefix}{block}/{fact}/{WEIGHTS}") for prefix in prefixes]
        there = [vector for vector in found if vector is not None]
        if not there:
            raise _missing(block, fact, "the weights")
        return torch.stack(there).amax(0)

    def _get(self, block: str, statistic: str, tokens: Tokens) -> torch.Tensor:
        try:
            parts = [self.vectors[f"{block}/{statistic}/{part}"] for part in (PARTS if tokens == "all" else (tokens,))]
        except KeyError:
            raise _missing(block, statistic, f"{tokens} tokens") from None
        stacked = torch.stack(parts)
        return stacked.amax(0) if statistic in MAXIMA else stacked.sum(0)

    def overview(self) -> Overview:
        about, first = self.about, next(iter(self.about.blocks.values()), None)
        facts = [about.model] * bool(about.model)
        if first:
            shape = f"{len(about.blocks)} blocks of {first.experts} experts, {first.experts_per_token} active per token"
            facts += [shape, f"{about.tokens:,} tokens"]
        facts += [f"{len(about.sources)} sources"] * bool(about.sources) + ["channels"] * bool(about.channels)
        facts += [f"{mode} reconstruction" for mode in about.reconstruction]
        return Overview(facts, ("block", "experts", "without a token", "entropy of their use"), [*map(self._row, about.blocks)])

    def _row(self, block: str) -> tuple[str, ...]:
        facts = self.about.blocks[block]
        try:
            use = self._use(block)
        except PollardError:  # made by hand, without counts
            return block, str(facts.experts), MISSING, MISSING
        return block, str(facts.experts), str(len(use.unobserved)), f"{use.entropy_bits:.2f} bits"

    def save(self, folder: str | Path) -> None:
        """Writes both files into `folder`; the JSON is written last and marks them as complete."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._summarise()
        partial = folder / "statistics.safetensors.tmp"
        save_file({name: vector.contiguous() for name, vector in self.vectors.items()}, partial)
        partial.replace(folder / "statistics.safetensors")
        write_text(folder / "statistics.json", self.about.to_json())

    @classmethod
    def load(cls, folder: str | Path) -> "ExpertStatistics":
        """Raises PollardError where `folder` holds no complete statistics."""
        folder = Path(folder)
        try:
            about = StatisticsFacts.from_json((folder / "statistics.json").read_text())
            return cls(load_file(folder / "statistics.safetensors"), about)
        except (OSError, ValueError, SafetensorError) as error:
            raise PollardError(
                f"No readable statistics in {folder} ({error}). Run the calibration first.", code="statistics.unreadable"
            ) from None

    def _summarise(self) -> None:
        for block, facts in self.about.blocks.items():
            facts.unobserved, facts.entropy_bits = self._use(block)

    def _use(self, block: str) -> "_Use":
        count = self.get(block, "count")
        use = count / count.sum().clamp(min=1)
        bits = round(float(-(use * use.clamp(min=1e-30).log2()).sum()), 4)
        return _Use((count == 0).nonzero().flatten().tolist(), bits)


class _Use(NamedTuple):
    """How a block's experts were used."""

    unobserved: list[int]  # that no token reached
    entropy_bits: float


def mix(parts: Sequence[ExpertStatistics], names: Sequence[str], weights: Sequence[float]) -> ExpertStatistics:
    """The statistics of several sources as one: separate in the file, weighted where they are used (`get`).

    A single source is returned as it is. A subset search belongs to the part it was made for and is not carried over.
    """
    if len(parts) == 1:
        return parts[0]
    blocks = {}
    for block, facts in parts[0].about.blocks.items():
        tokens: TokenCounts = {name: sum(part.about.blocks[block].tokens[name] for part in parts) for name in PARTS}
        blocks[block] = replace(facts, tokens=tokens)
    sources = []
    for name, weight, part in zip(names, weights, parts, strict=True):
        tokens = next(iter(part.about.blocks.values())).tokens  # every block sees the same tokens
        sources.append(SourceStatistics(name, weight / sum(weights), tokens))
    vectors = {f"{n}/{name}": vector for n, part in enumerate(parts) for name, vector in part.vectors.items()}
    return ExpertStatistics(vectors, StatisticsFacts(blocks, parts[0].about.model, sources, parts[0].about.channels))


def _scales(sources: list[SourceStatistics], tokens: Tokens) -> list[float]:
    """Per source the factor of its sums: share / (its part of all tokens of this kind).

    A source without such tokens (plain text has no prompt) leaves its share to the others.
    """
    counts = [sum(source.tokens[part] for part in (PARTS if tokens == "all" else (tokens,))) for source in sources]
    shares = sum(source.share for source, n in zip(sources, counts, strict=True) if n)
    return [source.share / shares * sum(counts) / n if n else 0.0 for source, n in zip(sources, counts, strict=True)]


def is_maximum(name: str) -> bool:
    """Whether the vector of this name is combined by maximum, over batches and ranks: every other is a sum."""
    _, statistic, part = name.rsplit("/", 2)
    return statistic in MAXIMA or part == WEIGHTS


def _missing(block: str, statistic: str, of: str) -> PollardError:
    return PollardError(
        f"The statistics hold no `{statistic}` of {of} for block {block}{_why_missing(statistic)}. "
        "Calibrate again with this version, or choose another criterion.",
        code="statistics.missing",
    )


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    return [_without_none(inner) for inner in value] if isinstance(value, list) else value


def _why_missing(statistic: str) -> str:
    why = MISSING_IN_SOME_FAMILIES.get(statistic.replace("_square", ""))
    return f" (perhaps this model family cannot have it: {why})" if why else ""
