"""Skip experts that hardly count, token by token, through transformers' registered experts implementation.

The thresholds lie in a file in the checkpoint's folder; stock transformers does not read it, and answers as if it were not there:

    skipping.json
    {"format": 1, "rule": "median", "experts_per_token": 2, "tokens": 131072,
     "blocks": {"model.layers.0.mlp": 0.4494, "model.layers.1.mlp": 0.3896}}

`blocks` holds each block's threshold β (docs/skipping.md); skipped_pairs.py has the rule, and how skipped pairs of token and
expert are not computed.

Shape legend: B sequences, S positions, T = B · S tokens, K experts per token.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, cast

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from toolkit.moe.blocks import find_blocks
from toolkit.moe.skipped_pairs import SkipRule, set_rule, skipping_forward
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
    if any(getattr(block.experts, "_is_expert_parallel", False) for block in blocks):
        raise PollardError(
            "This model's experts are spread over the ranks (expert parallelism), where no rank sees all gate weights of a "
            "token: it cannot skip experts. Load it whole or in parts (ZeRO-3), or remove skipping.json.",
            code="skipping.expert-parallel",
        )
    before = model.config._experts_implementation
    if before == IMPLEMENTATION:  # it skips already: other thresholds take the place of these
        before = cast(Any, blocks[0].experts).skipping.before
    ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, skipping_forward)
    for block in blocks:
        set_rule(block.experts, SkipRule(skipping.blocks[block.name], before))
    model.set_experts_implementation(IMPLEMENTATION)
    return model


def is_skipping(model: PreTrainedModel) -> bool:
    ruled = [module for module in model.modules() if isinstance(getattr(module, "skipping", None), SkipRule)]
    return any(cast(Any, module).config._experts_implementation == IMPLEMENTATION for module in ruled)


@contextmanager
def skipping(model: PreTrainedModel, thresholds: Skipping) -> Iterator[PreTrainedModel]:
    """`model` skips inside the context, and is as before after it."""
    before, experts = model.config._experts_implementation, [block.experts for block in find_blocks(model)]
    rules: list[SkipRule | None] = [getattr(module, "skipping", None) for module in experts]
    apply_skipping(model, thresholds)
    try:
        yield model
    finally:
        model.set_experts_implementation(before)
        for module, rule in zip(experts, rules, strict=True):
            set_rule(module, rule)


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
        self._passing: list[tuple[int, torch.Tensor]] = []  # block, and which pairs it skips, of a pass at work
        self._sums: dict[tuple[int, ...], torch.Tensor] = {}  # of blocks that are counted together: tokens, and skipped pairs

    def start_pass(self, model: PreTrainedModel, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Hook before a forward pass: decides which of its tokens count."""
        self._end_pass()
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

    def record(self, number: int, skip_TK: torch.Tensor) -> None:
        if self._passing and self._passing[-1][0] >= number:
            self._end_pass()
        self._passing.append((number, skip_TK))

    def _end_pass(self) -> None:
        """Counts all blocks of a pass in one go, and reads nothing: a GPU has no small steps for each block, and nobody waits."""
        passed, self._passing = self._passing, []
        for shape in dict.fromkeys(skip_TK.shape for _, skip_TK in passed):
            alike = [(number, skip_TK) for number, skip_TK in passed if skip_TK.shape == shape]
            device = alike[0][1].device
            skip_LTK = torch.stack([skip_TK.to(device) for _, skip_TK in alike])
            counted_T = skip_LTK.new_ones(shape[0])
            if self._counted_BS is not None and self._counted_BS.numel() == shape[0]:
                counted_T = self._counted_BS.flatten().to(device)
            skipped_L = (skip_LTK & counted_T.unsqueeze(1)).sum((1, 2))
            found = torch.stack([counted_T.sum().expand_as(skipped_L), skipped_L])
            blocks = tuple(number for number, _ in alike)
            self._sums[blocks] = self._sums[blocks] + found if blocks in self._sums else found

    def take(self) -> SkipCount:
        """Counts so far, of this rank."""
        self._end_pass()
        tokens, skipped = [0] * len(self.rules), [0] * len(self.rules)
        for blocks, found in self._sums.items():
            for number, passed, left_out in zip(blocks, *found.tolist(), strict=True):
                tokens[number] += passed
                skipped[number] += left_out
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
