"""What a model lost elsewhere: its loss on texts beside its task, and how like the original's its next tokens are on them.

    loss       = − mean log q(next token)                                              q: the model's distribution
    KL         = mean Σ_v p_v (log p_v − log q_v)                                      p: the original's
    agreement  = share of the tokens at which the original's likeliest next token is the model's likeliest, too

One forward pass over each text, nothing is generated. The texts are off_task.jsonl beside this file, written for this: prose,
questions and answers, code, and other languages than English, of some 60 to 120 words each; or the user's own data.
Shape legend: B sequences, S positions, N completion tokens, V vocabulary.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from toolkit.evaluation.distributions import TOKENS_AT_ONCE, CompressedDistributions, compare
from toolkit.evaluation.fidelity import Batch, Pass, compared_passes, passes
from toolkit.evaluation.probe import check_probe, encode_data
from toolkit.recipe.off_task import OffTaskRecipe
from toolkit.recipe.schema import Recipe
from toolkit.runtime.distributed import gather
from toolkit.runtime.errors import PollardError
from toolkit.runtime.files import JsonObject
from toolkit.tasks import DataCache, padded_batches

EXAMPLES = 64
"""Of the user's own data, as many count unless the recipe gives a number."""


@dataclass(frozen=True)
class OffTaskTexts:
    """`unknown`: tokens that stand for text which the tokenizer has no tokens for; `left_out`: examples that are too long."""

    name: str
    batches: list[Batch]
    left_out: int
    unknown: int


@dataclass(frozen=True)
class OffTaskLoss:
    """Means over tokens. None: not finite; of `kl` and `agreement` also where there is nothing to compare with."""

    loss: float | None  # nats per token
    kl: float | None  # nats per token
    agreement: float | None  # in [0, 1]
    tokens: int
    texts: int

    def to_json(self) -> JsonObject:
        return asdict(self)


class Reference(NamedTuple):
    """What `write_reference` has written: where, and its fingerprint."""

    folder: Path
    fingerprint: str


def read_off_task(data: OffTaskRecipe, recipe: Recipe, tokenizer: PreTrainedTokenizerBase, cache: DataCache) -> OffTaskTexts:
    """Reads and tokenizes `data`: a task's dev examples, of which the completion counts, or texts, of which every token does but
    the first. Raises PollardError for data that cannot be read, and where no token counts."""
    check_probe(data.source, cache)
    limit = None if data.is_embedded else EXAMPLES
    encoded, left_out = encode_data(data.source, recipe, tokenizer, cache, data.examples or limit)
    unknown = tokenizer.unk_token_id
    counted = [token for one in encoded for token in one.input_ids[max(1, one.prompt_length) :]]
    if not counted:
        raise PollardError(
            f"{data.name} leaves no token to measure a loss on: one counts where another stands before it. Give longer texts, or "
            "evaluation.off_task=false.",
            code="off-task.no-tokens",
        )
    batches = padded_batches(encoded, recipe.calibration.batch_size, int(tokenizer.pad_token_id or 0))
    return OffTaskTexts(data.name, batches, left_out, 0 if unknown is None else counted.count(unknown))


def measure_off_task(model: PreTrainedModel, batches: Sequence[Batch], reference: Reference | None) -> OffTaskLoss:
    """Every rank takes its share of the batches and returns the means over all; without a `reference` the loss alone.

    Raises PollardError where the reference is missing, damaged or of other batches.
    """
    mine = []
    for (number, logits_NV, tokens), original in _with_originals(model, batches, reference):
        ids_BS, counted_BS = batches[number]["input_ids"][:, 1:], batches[number]["completion_mask"][:, 1:].bool()
        nats = _nats(logits_NV, ids_BS[counted_BS].to(logits_NV.device))
        kl, agreed = (compare(original, logits_NV)[0].sum().item(), _agreed(original, logits_NV)) if original else (0.0, 0)
        mine.append((number, nats, kl, agreed, len(logits_NV), sum(map(bool, tokens))))
    found = sorted(batch for part in gather(mine) for batch in part)  # so that the sums do not depend on the ranks
    _, nats_of, kl_of, agreed_of, tokens_of, texts_of = zip(*found, strict=True)
    total = sum(tokens_of)
    return OffTaskLoss(
        loss=_finite(math.fsum(nats_of) / total),
        kl=_finite(math.fsum(kl_of) / total) if reference else None,
        agreement=sum(agreed_of) / total if reference else None,
        tokens=total,
        texts=sum(texts_of),
    )


def _with_originals(
    model: PreTrainedModel, batches: Sequence[Batch], reference: Reference | None
) -> Iterator[tuple[Pass, CompressedDistributions | None]]:
    if reference:
        yield from compared_passes(model, batches, *reference)
    else:
        yield from ((one, None) for one in passes(model, batches, list(range(len(batches))), "loss off the task"))


def _nats(logits_NV: torch.Tensor, targets_N: torch.Tensor) -> float:
    parts = zip(logits_NV.split(TOKENS_AT_ONCE), targets_N.split(TOKENS_AT_ONCE), strict=True)
    losses = [cross_entropy(part_NV.float(), targets, reduction="none").double().sum().item() for part_NV, targets in parts]
    return math.fsum(losses)


def _agreed(original: CompressedDistributions, logits_NV: torch.Tensor) -> int:
    """How many tokens have the original's likeliest one, which stands first, as their likeliest, perhaps among equals."""
    first_N = original.count_N.cumsum(0) - original.count_N
    likeliest_N1 = original.index_M[first_N].long()[:, None].to(logits_NV.device)
    return int((logits_NV.gather(-1, likeliest_N1)[:, 0] >= logits_NV.amax(-1)).sum())


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
