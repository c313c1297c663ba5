"""How often a model that skips does so.

Shape legend: B sequences, S positions, T = B · S tokens, K experts per token.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from toolkit.moe.blocks import find_blocks
from toolkit.moe.skipping import Rule


class SkipCount(NamedTuple):
    """Per MoE block: tokens that passed, and pairs of token and expert that were skipped."""

    experts_per_token: int
    tokens: list[int]
    skipped: list[int]

    @classmethod
    def of_all(cls, counts: Sequence["SkipCount"]) -> "SkipCount":
        """Of all ranks together."""
        tokens, skipped = ([sum(column) for column in zip(*rows, strict=True)] for rows in list(zip(*counts, strict=True))[1:])
        return cls(counts[0].experts_per_token, tokens, skipped)

    @property
    def rate(self) -> float:
        """Of the experts after a token's first: what `pruning.skipping: 0.3` asks for."""
        return self._of(self.experts_per_token - 1)

    @property
    def saved(self) -> float:
        """Of all experts: by this the experts' operations fall."""
        return self._of(self.experts_per_token)

    def _of(self, experts: int) -> float:
        return sum(self.skipped) / max(1, experts * sum(self.tokens))


class SkipCounter:
    """Counts while the model runs. Padding counts as nothing, nor does what a batch still feeds to an answer that has ended."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.rules = [getattr(block.experts, "skipping") for block in find_blocks(model)]  # noqa: B009
        self.experts_per_token = find_blocks(model)[0].experts_per_token
        self._counted_BS: torch.Tensor | None = None
        self._ended_B = torch.zeros(0, dtype=torch.bool)  # answers of this batch
        self._sums = [torch.zeros(2, dtype=torch.long) for _ in self.rules]  # not read at once: a GPU would have to wait

    def begin(self, model: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A forward pass begins: which of its tokens count."""
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

    def see(self, number: int, stay_TK: torch.Tensor) -> None:
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
    handle = model.register_forward_pre_hook(counter.begin, with_kwargs=True)
    rules: list[Rule] = counter.rules
    for number, rule in enumerate(rules):
        rule.saw = partial(counter.see, number)
    try:
        yield counter
    finally:
        handle.remove()
        for rule in rules:
            rule.saw = None


def _as_list(ids: int | list[int] | None) -> list[int]:
    return ids if isinstance(ids, list) else [] if ids is None else [ids]
