"""Skip experts that hardly count, token by token, through transformers' registered experts implementation.

The thresholds lie in a file in the checkpoint's folder; stock transformers does not read it, and answers as if it were not there:

    skipping.json
    {"format": 1, "rule": "median", "experts_per_token": 2, "tokens": 131072,
     "blocks": {"model.layers.0.mlp": 0.4494, "model.layers.1.mlp": 0.3896}}

`blocks` holds each block's threshold β (docs/skipping.md). Of two experts, the second is skipped where its gate weight
g2 < β·g1 (NAEE, arXiv 2402.14800, section 4). Of more, the fewest stay beyond which no more than the share β of the token's gate
weights lies (its appendix): the smallest i with g_(i+1) + … + g_K ≤ β·(g_1 + … + g_K). What stays is scaled up to the sum that
was there before, so that a family's own scaling holds (Gemma 4's may make a gate weight negative: its size is meant). Skipped
pairs of token and expert are not computed: each pair that stays becomes a token of its own, with one expert, for the
implementation that the model had before, whatever the family's activation, biases or layout.

Shape legend: B sequences, S positions, T = B · S tokens, K experts per token, H hidden size, P pairs that stay.
"""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, cast

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from toolkit.moe.blocks import find_blocks
from toolkit.runtime.errors import PollardError
from toolkit.runtime.signed_folders import write_own_file

SKIPPING_FILE = "skipping.json"


class Skipping(BaseModel):
    """The threshold of every MoE block (named as in `named_modules()`), and how it was found."""

    model_config = ConfigDict(extra="forbid")
    format: Literal[1] = 1
    rule: Literal["median"] | float
    experts_per_token: int = Field(ge=2)
    tokens: int = 0  # of calibration
    blocks: dict[str, float] = Field(min_length=1)

    @model_validator(mode="after")
    def _ratios(self) -> Self:
        wrong = [f"{name}: {beta}" for name, beta in self.blocks.items() if not (math.isfinite(beta) and 0 <= beta <= 1)]
        if wrong:
            raise ValueError(f"a threshold is a ratio in 0…1, not {', '.join(wrong[:3])}")
        return self

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes the file into a checkpoint's folder."""
        write_own_file(Path(folder), SKIPPING_FILE, json.dumps(self.model_dump(), indent=1) + "\n")

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self | None:
        """The thresholds of the checkpoint in `folder`; None where it has none. Raises PollardError for a damaged file."""
        path = Path(folder) / SKIPPING_FILE
        if not path.exists():
            return None
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            faults = "; ".join(
                f"{'.'.join(map(str, e['loc'])) or 'as a whole'}: {e['msg'].removeprefix('Value error, ')}"
                for e in error.errors()
            )
            raise PollardError(
                f"{path} is damaged ({faults}). Find the thresholds again (pollard run RECIPE --fresh), or remove the file to "
                "run the model without skipping.",
                code="skipping.damaged",
            ) from None


IMPLEMENTATION = "pollard_skip"
PairObserver = Callable[[torch.Tensor], None]


@dataclass
class SkipRule:
    """The rule of one experts module."""

    beta: float
    before: str  # the implementation that computes what stays
    observer: PairObserver | None = None  # called with which pairs stay, bool [T, K]


def gate_ratios(gate_TK: torch.Tensor) -> torch.Tensor:
    """What β is compared with, float64: for two experts g2 / g1 [T, 1]; for more [T, K − 1], per i < K the share of the gate
    weights beyond the i largest. Not a number where a token has no gate weight at all."""
    sorted_TK = gate_TK.double().abs().sort(dim=1, descending=True).values
    if gate_TK.shape[1] == 2:
        return sorted_TK[:, 1:] / sorted_TK[:, :1]
    beyond_TK = sorted_TK.flip(1).cumsum(1).flip(1)
    return beyond_TK[:, 1:] / beyond_TK[:, :1]


def kept_pairs(gate_TK: torch.Tensor, beta: float) -> torch.Tensor:
    """Which pairs stay, bool [T, K]; of every token at least one."""
    k = gate_TK.shape[1]
    if k == 1:
        return torch.ones_like(gate_TK, dtype=torch.bool)
    sorted_TK, order_TK = gate_TK.double().abs().sort(dim=1, descending=True, stable=True)
    stay_TK = torch.ones_like(sorted_TK, dtype=torch.bool)
    if k == 2:
        stay_TK[:, 1] = sorted_TK[:, 1] >= beta * sorted_TK[:, 0]
    else:
        beyond_TK = sorted_TK.flip(1).cumsum(1).flip(1)  # at i: the sum from the i-th on, counted from 0
        stay_TK[:, 1:] = beyond_TK[:, 1:] > beta * beyond_TK[:, :1]
    return torch.zeros_like(stay_TK).scatter_(1, order_TK, stay_TK)


def renormalized_gates(gate_TK: torch.Tensor, stay_TK: torch.Tensor) -> torch.Tensor:
    """The gate weights [T, K] of the pairs that stay, scaled to the sum that all had."""
    size_TK = gate_TK.double().abs()
    before_T1, after_T1 = size_TK.sum(1, keepdim=True), (size_TK * stay_TK).sum(1, keepdim=True)
    return (gate_TK * stay_TK * torch.where(after_T1 > 0, before_T1 / after_T1, 1.0)).to(gate_TK.dtype)


def skipping_forward(experts: nn.Module, hidden_TH: torch.Tensor, index_TK: torch.Tensor, gate_TK: torch.Tensor) -> torch.Tensor:
    """The experts implementation: weighted outputs [T, H] of the pairs that stay."""
    rule = cast(SkipRule, experts.skipping)
    run: Any = ALL_EXPERTS_FUNCTIONS.get_interface(rule.before, cast(Any, type(experts).forward).__wrapped__)
    stay_TK = kept_pairs(gate_TK, rule.beta)
    if rule.observer:
        rule.observer(stay_TK)
    pairs_P = stay_TK.flatten().nonzero().flatten()
    tokens, k = index_TK.shape
    if len(pairs_P) == tokens * k:
        return run(experts, hidden_TH, index_TK, gate_TK)
    index_P, gate_P = index_TK.flatten()[pairs_P], renormalized_gates(gate_TK, stay_TK).flatten()[pairs_P]
    outputs_PH = run(experts, hidden_TH[pairs_P // k], index_P.unsqueeze(1), gate_P.unsqueeze(1))
    if len(pairs_P) == tokens:
        return outputs_PH
    # Not index_add_, which on a GPU adds in any order
    spread = outputs_PH.new_zeros(tokens * k, outputs_PH.shape[1]).index_copy_(0, pairs_P, outputs_PH)
    return spread.view(tokens, k, -1).sum(1)


def apply_skipping(model: PreTrainedModel, skipping: Skipping) -> PreTrainedModel:
    """Makes `model` skip. Raises PollardError where the thresholds are another model's."""
    blocks = find_blocks(model)
    names, k = {block.name for block in blocks}, blocks[0].experts_per_token
    if names != skipping.blocks.keys() or k != skipping.experts_per_token:
        odd = sorted(names ^ skipping.blocks.keys())
        why = f"blocks differ: {', '.join(odd[:3])}" if odd else f"{skipping.experts_per_token} experts per token, not {k}"
        raise PollardError(
            f"{SKIPPING_FILE} beside {model.config._name_or_path or 'this model'} belongs to another model ({why}). Find its own "
            "thresholds (pruning.skipping), or remove the file to run it without skipping.",
            code="skipping.other-model",
        )
    before = model.config._experts_implementation
    ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, skipping_forward)
    for block in blocks:
        cast(Any, block.experts).skipping = SkipRule(skipping.blocks[block.name], before)
    model.set_experts_implementation(IMPLEMENTATION)
    return model


def is_skipping(model: PreTrainedModel) -> bool:
    ruled = [module for module in model.modules() if isinstance(getattr(module, "skipping", None), SkipRule)]
    return any(cast(Any, module).config._experts_implementation == IMPLEMENTATION for module in ruled)


@contextmanager
def skipping(model: PreTrainedModel, thresholds: Skipping) -> Iterator[PreTrainedModel]:
    """`model` skips inside the context, and is as before after it."""
    before = model.config._experts_implementation
    apply_skipping(model, thresholds)
    try:
        yield model
    finally:
        model.set_experts_implementation(before)


class SkipCount(NamedTuple):
    """Per MoE block: tokens that passed, and pairs of token and expert that were skipped."""

    experts_per_token: int
    tokens: list[int]
    skipped: list[int]

    @classmethod
    def merged(cls, counts: Sequence["SkipCount"]) -> "SkipCount":
        """The sum of all ranks' counts."""
        tokens, skipped = ([sum(column) for column in zip(*rows, strict=True)] for rows in list(zip(*counts, strict=True))[1:])
        return cls(counts[0].experts_per_token, tokens, skipped)

    @property
    def rate(self) -> float:
        """The skipped share of the experts after a token's first, which `pruning.skipping: 0.3` sets."""
        return self._share_of(self.experts_per_token - 1)

    @property
    def saved(self) -> float:
        """The skipped share of all experts, by which the experts' operations fall."""
        return self._share_of(self.experts_per_token)

    def _share_of(self, experts: int) -> float:
        return sum(self.skipped) / max(1, experts * sum(self.tokens))


class SkipCounter:
    """Counts while the model runs. Neither padding counts, nor what a batch still feeds to an answer that has ended."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.rules = [getattr(block.experts, "skipping") for block in find_blocks(model)]  # noqa: B009
        self.experts_per_token = find_blocks(model)[0].experts_per_token
        self._counted_BS: torch.Tensor | None = None
        self._ended_B = torch.zeros(0, dtype=torch.bool)  # answers of this batch
        self._sums = [torch.zeros(2, dtype=torch.long) for _ in self.rules]  # not read at once: a GPU would have to wait

    def start_pass(self, model: PreTrainedModel, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Hook before a forward pass: decides which of its tokens count."""
        ids_BS, mask = kwargs.get("input_ids", args[0] if args else None), kwargs.get("attention_mask")
        self._counted_BS = None
        if not isinstance(mask, torch.Tensor) or mask.dim() != 2 or ids_BS is None:
            return
        counted_BS = mask[:, -ids_BS.shape[1] :].bool()
        if mask.shape[1] > ids_BS.shape[1] and self.model.generation_config:  # behind the prompt, token by token
            counted_BS = counted_BS & ~self._ended(ids_BS[:, -1], self.model.generation_config).unsqueeze(1)
        else:
            self._ended_B = mask.new_zeros(len(mask), dtype=torch.bool)
        self._counted_BS = counted_BS

    def _ended(self, last_B: torch.Tensor, settings: Any) -> torch.Tensor:
        """Which answers have ended, now that `last_B` are their last tokens. Where the batch is smaller than it was, those that
        had ended have left it."""
        ends = [end for end in (settings.pad_token_id, *_as_list(settings.eos_token_id)) if end is not None]
        before_B = self._ended_B if len(self._ended_B) == len(last_B) else last_B.new_zeros(len(last_B), dtype=torch.bool)
        self._ended_B = before_B | torch.isin(last_B, torch.tensor(ends, device=last_B.device, dtype=last_B.dtype))
        return self._ended_B

    def record(self, number: int, stay_TK: torch.Tensor) -> None:
        counted_T = stay_TK.new_ones(len(stay_TK))
        if self._counted_BS is not None and self._counted_BS.numel() == len(stay_TK):
            counted_T = self._counted_BS.flatten().to(stay_TK.device)
        found = torch.stack([counted_T.sum(), (~stay_TK & counted_T.unsqueeze(1)).sum()])
        self._sums[number] = self._sums[number].to(stay_TK.device) + found

    def take(self) -> SkipCount:
        """Counts so far, of this rank."""
        tokens, skipped = torch.stack([found.cpu() for found in self._sums], dim=1).tolist()
        return SkipCount(self.experts_per_token, tokens, skipped)


@contextmanager
def counting_skips(model: PreTrainedModel) -> Iterator[SkipCounter]:
    """Counts inside the context, in a model that skips."""
    counter = SkipCounter(model)
    handle = model.register_forward_pre_hook(counter.start_pass, with_kwargs=True)
    rules: list[SkipRule] = counter.rules
    for number, rule in enumerate(rules):
        rule.observer = partial(counter.record, number)
    try:
        yield counter
    finally:
        handle.remove()
        for rule in rules:
            rule.observer = None


def _as_list(ids: int | list[int] | None) -> list[int]:
    return ids if isinstance(ids, list) else [] if ids is None else [ids]
