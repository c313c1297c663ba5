"""How close a model still is to the original, token by token, without generating anything.

    KL          = Σ_v p_v (log p_v − log q_v)    p: the original's distribution over the next token, q: the model's
    acceptance  = Σ_v min(p_v, q_v)              how likely the original, sampling, accepts what the model drafts

Means over the completion tokens of a few examples. The two models need not be in memory together: the original's
distributions are kept on disk, in at most 16 KiB each (toolkit/evaluation/distributions.py, which states the error).
Shape legend: N completion tokens, V vocabulary.
"""

import json
import math
import shutil
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from toolkit.evaluation.distributions import ENTRIES, REST, CompressedDistributions, bytes_per_token, compare, compress
from toolkit.moe import is_partitioned, logits_at
from toolkit.runtime.distributed import barrier, gather, on_main, say, shard, shard_in_step
from toolkit.runtime.errors import PollardError
from toolkit.runtime.files import RESUME_ADVICE, explain_full_disk
from toolkit.runtime.progress import progress
from toolkit.runtime.shards import ABOUT_FILE, missing_shards, shard_path

FORMAT = 2  # of the files; another one is not read
SUFFIX = ".safetensors"
Batch = dict[str, torch.Tensor]
Identity = dict[str, int | float | str]


class Fidelity(NamedTuple):
    """Standard errors are those of means over examples: tokens of one example depend on each other."""

    kl: float  # nats per token
    kl_error: float | None  # None: a single example
    acceptance: float
    acceptance_error: float | None
    tokens: int
    examples: int

    def to_json(self) -> dict[str, Any]:
        """Without infinity and NaN, which JSON does not have: None instead."""
        return {key: value if value is None or math.isfinite(value) else None for key, value in self._asdict().items()}


@dataclass(frozen=True)
class ReferenceSize:
    tokens: int
    bytes: int


def write_reference(
    model: PreTrainedModel, batches: Sequence[Batch], folder: Path, fingerprint: str, key: str = "evaluation.fidelity"
) -> ReferenceSize:
    """Writes the original's distributions at the batches' completion tokens, a file for each batch, shared out over the ranks.

    Files of the same `fingerprint` that are there already are kept. `key`: of the recipe, which asks for the comparison. Raises
    PollardError where the disk has no room, and where the model's logits are not finite.
    """
    missing = missing_shards(folder, _identity(batches, fingerprint), len(batches), SUFFIX)
    _check_room(folder, batches, missing, bytes_per_token(int(model.config.get_text_config().vocab_size)), key)
    for number, logits_NV, _ in passes(model, batches, missing, "probabilities of the original"):
        if not logits_NV.amax(-1).isfinite().all():
            raise PollardError(
                f"The original model's logits are no finite numbers in batch {number} of what {key} compares over: nothing can "
                "be compared with them. Try model.dtype=float32.",
                code="fidelity.not-finite",
            )
        path = shard_path(folder, number, SUFFIX)
        partial = path.with_name(path.name + ".tmp")
        with explain_full_disk(path, lambda: RESUME_ADVICE):
            save_file(compress(logits_NV)._asdict(), partial)
        partial.replace(path)
    barrier()
    size = sum(shard_path(folder, number, SUFFIX).stat().st_size for number in range(len(batches)))
    return ReferenceSize(sum(map(_tokens, batches)), size)


def _check_room(folder: Path, batches: Sequence[Batch], missing: list[int], each: int, key: str) -> None:
    """Reports how much will be written, at most `each` bytes per token. Raises PollardError where it does not fit."""
    tokens, free = sum(map(_tokens, batches)), on_main(lambda: shutil.disk_usage(folder).free)
    needed = each * sum(_tokens(batches[number]) for number in missing)
    size = f"{tokens:,} tokens x at most {each:,} bytes = {tokens * each / 2**20:,.1f} MiB"
    say(f"  {size} in {len(batches)} file{'s' * (len(batches) > 1)}, {len(missing)} to make; {free / 2**30:,.1f} GiB free")
    if needed > free:
        raise PollardError(
            f"Comparing with the original may need {needed / 2**30:,.1f} GiB more on the disk ({size}), and {folder} has "
            f"{free / 2**30:,.1f} GiB free: make room, or compare over fewer examples ({key}).",
            code="fidelity.disk",
        )


def measure_fidelity(model: PreTrainedModel, batches: Sequence[Batch], folder: Path, fingerprint: str) -> Fidelity:
    """Compares the model with what `write_reference` wrote into `folder` for the same batches; every rank returns the mean over
    all.

    Raises PollardError where that is missing, damaged or of other batches.
    """
    mine = []
    for (number, logits_NV, tokens), original in compared_passes(model, batches, folder, fingerprint):
        kl_N, acceptance_N = compare(original, logits_NV)
        sums = [[part.sum().item() for part in column.split(tokens)] for column in (kl_N, acceptance_N)]
        mine.append((number, list(zip(*sums, tokens, strict=True))))
    by_batch = sorted(sums for part in gather(mine) for sums in part)  # so that the total does not depend on the ranks
    examples = [example for _, batch in by_batch for example in batch if example[2]]
    tokens = [count for _, _, count in examples]
    if not examples:
        raise PollardError("Fidelity is measured on completion tokens, and these examples have none.", code="fidelity.no-tokens")
    kl, kl_error = _mean([total for total, _, _ in examples], tokens)
    acceptance, acceptance_error = _mean([total for _, total, _ in examples], tokens)
    return Fidelity(kl, kl_error, acceptance, acceptance_error, sum(tokens), len(tokens))


def compared_passes(
    model: PreTrainedModel, batches: Sequence[Batch], folder: Path, fingerprint: str
) -> Iterator[tuple["Pass", CompressedDistributions]]:
    """One pass per batch of this rank, each with what `write_reference` wrote into `folder` for it.

    Raises PollardError where that is missing, damaged or of other batches.
    """
    _check(folder, _identity(batches, fingerprint))
    for one in passes(model, batches, list(range(len(batches))), "comparing with the original"):
        yield one, _load(shard_path(folder, one.number, SUFFIX), len(one.logits_NV))


class Pass(NamedTuple):
    """A batch's number, the logits [N, V] that predict its completion tokens, and how many of those each example has."""

    number: int
    logits_NV: torch.Tensor
    tokens: list[int]


@torch.no_grad()
def passes(model: PreTrainedModel, batches: Sequence[Batch], numbers: list[int], description: str) -> Iterator[Pass]:
    """One pass per batch of this rank. With a model in parts on all ranks, every rank runs as many batches; those that are run
    only to keep step yield nothing."""
    mine: list[int] = shard_in_step(numbers, -1) if is_partitioned(model) else shard(numbers)
    for number in progress(mine, description):
        batch = batches[max(number, 0)]
        counted_BS = batch["completion_mask"][:, 1:].bool().to(model.device)
        inputs = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}
        logits_NV = logits_at(model, inputs, counted_BS)
        if number >= 0:
            yield Pass(number, logits_NV, counted_BS.sum(1).tolist())


def _mean(sums: list[float], counts: list[int]) -> tuple[float, float | None]:
    """The mean per token, and its standard error as a ratio of two sums over examples."""
    total = sum(counts)
    mean = math.fsum(sums) / total
    if len(sums) < 2 or not math.isfinite(mean):
        return mean, None
    deviations = [part - mean * count for part, count in zip(sums, counts, strict=True)]
    return mean, math.sqrt(len(sums) * statistics.fmean(d * d for d in deviations) * len(sums) / (len(sums) - 1)) / total


def _tokens(batch: Batch) -> int:
    return int(batch["completion_mask"][:, 1:].sum())


def _identity(batches: Sequence[Batch], fingerprint: str) -> Identity:
    """What the files in a folder are of, as its about.json says."""
    examples = sum(len(batch["input_ids"]) for batch in batches)
    return {
        "format": FORMAT, "entries": ENTRIES, "rest": REST, "examples": examples, "tokens": sum(map(_tokens, batches)),
        "examples_per_file": len(batches[0]["input_ids"]), "fingerprint": fingerprint,
    }  # fmt: skip


def _check(folder: Path, identity: Identity) -> None:
    try:
        stored = json.loads((folder / ABOUT_FILE).read_text())
    except (OSError, ValueError) as error:
        raise PollardError(
            f"What the original says is not in {folder} ({error}): run with --fresh.", code="fidelity.missing"
        ) from None
    if stored != identity:
        raise PollardError(
            f"{folder} holds what the original says of other tokens than these: run with --fresh.", code="fidelity.other-tokens"
        )


def _load(path: Path, tokens: int) -> CompressedDistributions:
    try:
        distributions = CompressedDistributions(**load_file(path))
    except (OSError, SafetensorError, TypeError) as error:
        raise PollardError(f"{path} is missing or damaged ({error}): run with --fresh.", code="fidelity.damaged") from None
    if len(distributions.count_N) != tokens:
        raise PollardError(f"{path} is of other tokens than these: run with --fresh.", code="fidelity.other-tokens")
    return distributions
