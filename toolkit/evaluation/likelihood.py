"""What a model finds likely, without generating anything: the choices of an item, and the completions of examples.

Each choice's text stands behind the cloze prompt (the question without its letters); the choice with the highest
log-likelihood per byte of its text is the model's. Per byte, because that depends neither on the vocabulary nor on how long
a choice happens to be. The loss is finer than right or wrong, and says something even where a pruned model answers nothing
correctly. Shape legend: B rows (an item and one of its choices) or sequences, S positions, C positions of choices, V vocabulary.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from toolkit.evaluation.scores import Item
from toolkit.evaluation.shared_prefix import CommonPrefix, SharedPrefix, compute_prefix
from toolkit.moe import is_partitioned
from toolkit.runtime.distributed import gather, shard, shard_in_step
from toolkit.runtime.progress import batch_sizes, progress
from toolkit.tasks import Example, encode_cloze


class Row(NamedTuple):
    """One choice of an item, as tokens behind its prompt."""

    item: int
    choice: int
    prompt: list[int]
    text: list[int]


def with_likeliest(
    items: Sequence[Item],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    batch_size: int,
) -> list[Item]:
    """The items with `likeliest` filled in: whether the right choice is the likeliest. Unchanged where no example has a cloze."""
    if not any(example.cloze for example in examples):
        return list(items)
    choices = likeliest(model, tokenizer, examples, batch_size)
    return [
        replace(item, likeliest=choice == example.right) for item, choice, example in zip(items, choices, examples, strict=True)
    ]


def likeliest(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], batch_size: int
) -> list[int]:
    """The index of each example's likeliest choice; of equal ones, the first. The ranks share the batches."""
    rows = []
    for item, example in enumerate(examples):
        for choice, text in enumerate(example.choices):
            encoded = encode_cloze(tokenizer, replace(example.as_cloze(), completion=text))
            prompt, ids = encoded.input_ids[: encoded.prompt_length], encoded.input_ids[encoded.prompt_length :]
            rows.append(Row(item, choice, prompt, ids))
    order = sorted(rows, key=lambda row: (len(row.prompt) + len(row.text), row.item, row.choice))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    # In parts on all ranks, every rank must take part in every forward pass: one without a batch helps with any
    mine = shard_in_step(batches, []) if is_partitioned(model) else shard(batches)
    common = CommonPrefix.of([row.prompt for row in rows])
    prefix = compute_prefix(model, common) if common else None
    own: dict[tuple[int, int], float] = {}
    for batch in progress(mine, "weighing choices", batch_sizes(mine), len(rows)):
        values = log_likelihoods(model, batch or batches[0], int(tokenizer.pad_token_id or 0), prefix)
        own |= {(row.item, row.choice): value for row, value in zip(batch, values, strict=bool(batch))}
    every = {key: value for part in gather(own) for key, value in part.items()}
    best = []
    for item, example in enumerate(examples):
        per_byte = [every[item, choice] / len(text.encode()) for choice, text in enumerate(example.choices)]
        best.append(per_byte.index(max(per_byte)))
    return best


@torch.no_grad()
def log_likelihoods(model: PreTrainedModel, rows: Sequence[Row], pad: int, prefix: SharedPrefix | None = None) -> list[float]:
    """The log-likelihood of each row's text behind its prompt, in nats.

    Rows are padded on the left, so that the logits that count are the last ones and no others need be kept. Every prompt must
    begin with the `prefix`, if there is one, and be longer.
    """
    length, longest = max(len(row.prompt) + len(row.text) for row in rows), max(len(row.text) for row in rows)
    gaps = [length - len(row.prompt) - len(row.text) for row in rows]
    ids_BS = torch.tensor([[pad] * gap + row.prompt + row.text for gap, row in zip(gaps, rows, strict=True)], device=model.device)
    mask_BS = torch.tensor([[0] * gap + [1] * (length - gap) for gap in gaps], device=model.device)
    positions_BS = (mask_BS.cumsum(-1) - 1).clamp(min=0)
    begun = len(prefix.tokens) if prefix else 0
    logits_BCV = model(
        ids_BS[:, begun:], attention_mask=mask_BS, position_ids=positions_BS[:, begun:], use_cache=prefix is not None,
        past_key_values=prefix.cache_for(gaps) if prefix else None, logits_to_keep=longest + 1,
    ).logits[:, :-1]  # fmt: skip
    targets_BC = ids_BS[:, -longest:]
    losses_BC = torch.nn.functional.cross_entropy(
        logits_BCV.flatten(0, 1).float(), targets_BC.flatten(), reduction="none"
    ).view_as(targets_BC)
    return [-float(losses_C[longest - len(row.text) :].double().sum()) for losses_C, row in zip(losses_BC, rows, strict=True)]


class Loss(NamedTuple):
    mean: float  # nats per token
    tokens: int

    @property
    def finite(self) -> float | None:
        """The mean for a JSON file, which knows no NaN."""
        return self.mean if math.isfinite(self.mean) else None


@torch.no_grad()
def completion_loss(model: PreTrainedModel, batches: Sequence[Mapping[str, torch.Tensor]]) -> Loss:
    """Mean cross entropy over the completion tokens of all `batches` (as `tasks.padded_batches` makes them).

    Ranks take whole batches in turn; every rank returns the mean over the tokens of all. NaN without completion tokens.
    """
    total = LossSum(0.0, 0)
    mine = shard(batches)
    sizes = [len(batch["input_ids"]) for batch in mine]
    for batch in progress(mine, "loss", sizes, sum(len(batch["input_ids"]) for batch in batches)):
        total = total.plus(batch_loss(model, batch, model.device))
    return mean_loss(gather(total))


class LossSum(NamedTuple):
    """What a rank has added up."""

    nats: float
    tokens: int

    def plus(self, other: "LossSum") -> "LossSum":
        return LossSum(self.nats + other.nats, self.tokens + other.tokens)


def mean_loss(ranks: Sequence[LossSum]) -> Loss:
    tokens = sum(one.tokens for one in ranks)
    return Loss(math.fsum(one.nats for one in ranks) / tokens if tokens else math.nan, tokens)


@torch.no_grad()
def batch_loss(model: PreTrainedModel, batch: Mapping[str, torch.Tensor], device: torch.device) -> LossSum:
    """Over the completion tokens of one batch. `device`: the model's."""
    ids_BS, mask_BS = batch["input_ids"].to(device), batch["attention_mask"].to(device)
    logits_BSV = model(ids_BS, attention_mask=mask_BS, use_cache=False).logits[:, :-1]
    counted_BS = batch["completion_mask"].to(device)[:, 1:].bool()
    losses = torch.nn.functional.cross_entropy(logits_BSV[counted_BS].float(), ids_BS[:, 1:][counted_BS], reduction="none")
    return LossSum(losses.double().sum().item(), int(counted_BS.sum()))
