"""How like the original a model still is, token by token, without generating anything.

    KL          = Σ_v p_v (log p_v − log q_v)    p: the original's distribution over the next token, q: the model's
    acceptance  = Σ_v min(p_v, q_v)              how likely the original, sampling, accepts what the model drafts

Means over the completion tokens of a few examples. The two models need not be in memory together: what the original says
is kept on disk, per token the fewest vocabulary entries that hold all but REST of its probability, exactly (float32), and
all others as one. So acceptance is too high by at most REST; KL is too low, by REST times what the two differ there.
Shape legend: N completion tokens, V vocabulary, M kept entries of N tokens together, K those of
the token that keeps most.
"""

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from toolkit.distributed import barrier, gather, share, share_in_step
from toolkit.errors import PollardError
from toolkit.files import KEPT, explained_full_disk
from toolkit.moe import is_partitioned, logits_at
from toolkit.progress import progress
from toolkit.shards import ABOUT, missing_shards, shard_path

REST = 1e-6
TOKENS_AT_ONCE = 128  # sorted copies of [tokens, V] are made of so many at a time
SUFFIX = ".safetensors"
Batch = dict[str, torch.Tensor]


class Fidelity(NamedTuple):
    """Standard errors are those of means over examples: tokens of one example depend on each other."""

    kl: float  # nats per token
    kl_error: float | None  # None: a single example
    acceptance: float
    acceptance_error: float | None
    tokens: int
    examples: int

    def facts(self) -> dict[str, Any]:
        """For a JSON file, which knows no infinity."""
        return {key: value if value is None or math.isfinite(value) else None for key, value in self._asdict().items()}


class Said(NamedTuple):
    """What the original says of N tokens."""

    count_N: torch.Tensor  # int32: entries kept of each
    index_M: torch.Tensor  # int32, one token's after the other's
    log_p_M: torch.Tensor  # float32, likewise
    rest_N: torch.Tensor  # float32: log of the probability of all others together; -inf where there are none


def said(logits_NV: torch.Tensor) -> Said:
    """The fewest entries of each distribution that hold 1 − REST, and the rest in one number."""
    parts = []
    for part_NV in logits_NV.split(TOKENS_AT_ONCE):
        log_p_NV, index_NV = part_NV.float().log_softmax(-1).sort(-1, descending=True)
        from_here_NV = log_p_NV.double().exp().flip(-1).cumsum(-1).flip(-1)  # the probability of each entry and all after it
        count_N = (from_here_NV > REST).sum(-1)
        kept_NV = torch.arange(log_p_NV.shape[-1], device=count_N.device) < count_N[:, None]
        rest_N = log_p_NV.masked_fill(kept_NV, -math.inf).logsumexp(-1)
        parts.append(Said(count_N.int(), index_NV[kept_NV].int(), log_p_NV[kept_NV], rest_N))
    return Said(*(torch.cat(columns).cpu() for columns in zip(*parts, strict=True)))


def compare(original: Said, logits_NV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """KL and acceptance of each token, in float64."""
    found = []
    counts: list[int] = original.count_N.tolist()
    rows = zip(original.index_M.split(counts), original.log_p_M.split(counts), strict=True)
    for part_NV, rest_N in zip(logits_NV.split(TOKENS_AT_ONCE), original.rest_N.split(TOKENS_AT_ONCE), strict=True):
        index, log_p = zip(*(next(rows) for _ in rest_N), strict=True)
        where = part_NV.device
        index_NK = pad_sequence([row.long() for row in index], batch_first=True, padding_value=-1).to(where)
        index_NK = torch.where(index_NK < 0, index_NK[:, :1], index_NK)  # the rows' ends name an entry that is kept anyway
        log_p_NK = pad_sequence(list(log_p), batch_first=True, padding_value=-math.inf).to(where)
        log_q_NV = part_NV.float().log_softmax(-1)
        rest_q_N = log_q_NV.scatter(-1, index_NK, -math.inf).logsumexp(-1)
        log_p_NK = torch.cat([log_p_NK, rest_N.to(where)[:, None]], -1).double()
        log_q_NK = torch.cat([log_q_NV.gather(-1, index_NK), rest_q_N[:, None]], -1).double()
        p_NK = log_p_NK.exp()
        kl_N = torch.where(p_NK > 0, p_NK * (log_p_NK - log_q_NK), 0).sum(-1)
        found.append((kl_N.cpu(), torch.where(p_NK > 0, torch.minimum(p_NK, log_q_NK.exp()), 0).sum(-1).cpu()))
    kl, acceptance = zip(*found, strict=True)
    return torch.cat(kl), torch.cat(acceptance)


def keep_original(model: PreTrainedModel, batches: Sequence[Batch], folder: Path, fingerprint: str) -> dict[str, Any]:
    """Writes what the original says of the batches' completion tokens, a file for each, shared out over the ranks; files that
    are there already, for the same `fingerprint`, are kept. Returns how much it is."""
    missing = missing_shards(folder, _about(batches, fingerprint), len(batches), SUFFIX)
    for number, logits_NV, _ in _passes(model, batches, missing, "what the original says"):
        path = shard_path(folder, number, SUFFIX)
        partial = path.with_name(path.name + ".tmp")
        with explained_full_disk(path, lambda: KEPT):
            save_file(said(logits_NV)._asdict(), partial)
        partial.replace(path)
    barrier()
    size = sum(shard_path(folder, number, SUFFIX).stat().st_size for number in range(len(batches)))
    return {"tokens": sum(map(_tokens, batches)), "bytes": size}


def measure_fidelity(model: PreTrainedModel, batches: Sequence[Batch], folder: Path, fingerprint: str) -> Fidelity:
    """The model against what `keep_original` left in `folder` of the same batches; every rank returns the mean over all.

    Raises PollardError where that is missing, damaged or of something else.
    """
    _check(folder, _about(batches, fingerprint))
    mine = []
    for number, logits_NV, tokens in _passes(model, batches, list(range(len(batches))), "comparing with the original"):
        kl_N, acceptance_N = compare(_load(shard_path(folder, number, SUFFIX), len(logits_NV)), logits_NV)
        sums = [[part.sum().item() for part in column.split(tokens)] for column in (kl_N, acceptance_N)]
        mine.append((number, list(zip(*sums, tokens, strict=True))))
    by_batch = sorted(found for part in gather(mine) for found in part)  # so that the sum does not depend on the ranks
    examples = [example for _, batch in by_batch for example in batch if example[2]]
    tokens = [count for _, _, count in examples]
    if not examples:
        raise PollardError("Fidelity is measured on completion tokens, and these examples have none.")
    kl, kl_error = _mean([total for total, _, _ in examples], tokens)
    acceptance, acceptance_error = _mean([total for _, total, _ in examples], tokens)
    return Fidelity(kl, kl_error, acceptance, acceptance_error, sum(tokens), len(tokens))


@torch.no_grad()
def _passes(model: PreTrainedModel, batches: Sequence[Batch], numbers: list[int], description: str) -> Any:
    """For each of this rank's batches: its number, the logits [N, V] that predict its completion tokens, and how many of them
    belong to each example. Of a model in parts every rank runs as many batches; what is run only to keep step is dropped."""
    mine: list[int] = share_in_step(numbers, -1) if is_partitioned(model) else share(numbers)
    for number in progress(mine, description):
        batch = batches[max(number, 0)]
        counted_BS = batch["completion_mask"][:, 1:].bool().to(model.device)
        inputs = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}
        logits_NV = logits_at(model, inputs, counted_BS)
        if number >= 0:
            yield number, logits_NV, counted_BS.sum(1).tolist()


def _mean(sums: list[float], counts: list[int]) -> tuple[float, float | None]:
    """The mean per token, and its standard error as a ratio of two sums over examples."""
    total = sum(counts)
    mean = math.fsum(sums) / total
    if len(sums) < 2 or not math.isfinite(mean):
        return mean, None
    around = [part - mean * count for part, count in zip(sums, counts, strict=True)]
    return mean, math.sqrt(len(sums) * statistics.fmean(d * d for d in around) * len(sums) / (len(sums) - 1)) / total


def _tokens(batch: Batch) -> int:
    return int(batch["completion_mask"][:, 1:].sum())


def _about(batches: Sequence[Batch], fingerprint: str) -> dict[str, Any]:
    examples = sum(len(batch["input_ids"]) for batch in batches)
    return {
        "format": 1, "rest": REST, "examples": examples, "tokens": sum(map(_tokens, batches)),
        "examples_per_file": len(batches[0]["input_ids"]), "fingerprint": fingerprint,
    }  # fmt: skip


def _check(folder: Path, about: dict[str, Any]) -> None:
    try:
        theirs = json.loads((folder / ABOUT).read_text())
    except (OSError, ValueError) as error:
        raise PollardError(f"What the original says is not in {folder} ({error}): run with --fresh.") from None
    if theirs != about:
        raise PollardError(f"{folder} holds what the original says of other tokens than these: run with --fresh.")


def _load(path: Path, tokens: int) -> Said:
    try:
        found = Said(**load_file(path))
    except (OSError, SafetensorError, TypeError) as error:
        raise PollardError(f"{path} is missing or damaged ({error}): run with --fresh.") from None
    if len(found.count_N) != tokens:
        raise PollardError(f"{path} is of other tokens than these: run with --fresh.")
    return found
