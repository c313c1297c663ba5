"""How many tokens choose one of some experts, block by block: what a router makes of experts that were added to it.

Shape legend: T tokens (batch and sequence flattened), K experts per token.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from toolkit.moe import Batch, find_blocks, is_partitioned
from toolkit.runtime.distributed import gather, shard, shard_in_step
from toolkit.runtime.progress import progress


class ExpertChoice(NamedTuple):
    """Of all ranks' batches together. `choosing`: by block the tokens that chose one of the experts at least."""

    tokens: int
    choosing: dict[str, int]


@torch.no_grad()
def tokens_choosing(model: PreTrainedModel, batches: Sequence[Batch], experts: Mapping[str, Sequence[int]]) -> ExpertChoice:
    """Reads the batches (`input_ids`, `attention_mask` [B, S]), shared out over the ranks, and counts, without padding, the
    tokens that choose one of `experts` (by block). Call it on every rank."""
    numbers = list(range(len(batches)))
    mine: list[int] = shard_in_step(numbers, -1) if is_partitioned(model) else shard(numbers)
    found: Counter[str] = Counter()
    tokens = 0
    for number in progress(mine, "choices of experts"):
        batch = batches[max(number, 0)]
        inputs = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}
        counts: Counter[str] = Counter()
        counted_T = inputs["attention_mask"].reshape(-1).bool()
        with ExitStack() as stack:
            for block in find_blocks(model):
                count = partial(_count, counts, block.name, list(experts[block.name]), counted_T)
                stack.callback(block.experts.register_forward_pre_hook(count, with_kwargs=True).remove)
            model(**inputs, use_cache=False)
        if number >= 0:  # the others run to keep step
            tokens += int(inputs["attention_mask"].sum())
            found += counts
    every = gather((tokens, dict(found)))
    total = {name: sum(counts.get(name, 0) for _, counts in every) for name in experts}
    return ExpertChoice(sum(tokens for tokens, _ in every), total)


def _count(
    counts: Counter[str], block: str, wanted: list[int], counted_T: torch.Tensor, module: Any, args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> None:  # fmt: skip
    index_TK = kwargs["top_k_index"] if "top_k_index" in kwargs else args[1]
    chosen_T = torch.isin(index_TK, torch.tensor(wanted, device=index_TK.device)).any(-1)
    counts[block] += int((chosen_T & counted_T.to(chosen_T.device)).sum())
