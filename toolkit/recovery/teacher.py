"""The teacher's cache: the original model's largest logits on every completion token, and the weight of all others.

Per token 64 x (int32 index + float16 offset from the largest logit) + a float32 tail, the logarithm of what all other
tokens weigh against the largest at the recipe's temperature: 388 bytes instead of the vocabulary's logits.

Shape legend: N completion tokens, V vocabulary, K = min(64, V) largest logits, B sequences, S positions.
"""

import hashlib
import json
import math
import shutil
from array import array
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel

from toolkit.moe import logits_at
from toolkit.runtime.distributed import on_main, say
from toolkit.runtime.errors import PollardError
from toolkit.runtime.shards import ABOUT_FILE, make_shards, missing_shards, shard_path
from toolkit.tasks import Encoded, padded_batches

TOP_LOGITS = 64
EXAMPLES = 256  # per shard: a kill loses at most one shard
TOKENS_AT_ONCE = 1024  # float32 copies of [tokens, V] are made of so many at a time
SUFFIX = ".safetensors"
LOWEST_OFFSET = torch.finfo(torch.float16).min  # stands for -inf: its probability is 0 all the same, without 0 x inf


class TopAndTail(NamedTuple):
    """A distribution over V tokens at a temperature, as K of them and the rest together."""

    index_NK: torch.Tensor  # int32
    offset_NK: torch.Tensor  # float16: logit - largest logit, not yet divided by the temperature
    tail_N: torch.Tensor  # float32: log sum over the rest of exp(offset / temperature); -inf where there is no rest


def bytes_per_token(vocabulary: int) -> int:
    """388 for every vocabulary of at least 64."""
    return min(TOP_LOGITS, vocabulary) * (4 + 2) + 4


def top_and_tail(logits_NV: torch.Tensor, temperature: float) -> TopAndTail:
    """The K largest logits, and the rest in one number."""
    parts = []
    for part_NV in logits_NV.split(TOKENS_AT_ONCE):
        offset_NV = part_NV.float()
        offset_NV = offset_NV - offset_NV.amax(-1, keepdim=True)
        top = offset_NV.topk(min(TOP_LOGITS, offset_NV.shape[-1]))
        tail_N = (offset_NV.scatter(-1, top.indices, -math.inf) / temperature).logsumexp(-1)
        parts.append(TopAndTail(top.indices.int(), top.values.clamp(min=LOWEST_OFFSET).half(), tail_N))
    return TopAndTail(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


class CacheIdentity(TypedDict):
    """What a cache was made of: these tokens in this order, this temperature, this vocabulary (about.json)."""

    format: int
    top: int
    temperature: float
    vocabulary: int
    examples: int
    tokens: int  # predicted ones
    examples_per_file: int
    bytes_per_token: int
    data: str  # digest of all token ids and prompt lengths


class CacheFacts(NamedTuple):
    """For the manifest."""

    examples: int
    tokens: int
    bytes_per_token: int


def cache_logits(
    model: PreTrainedModel,
    encoded: Sequence[Encoded],
    folder: Path,
    temperature: float,
    batch_size: int,
    pad_token_id: int,
    fingerprint: str,
) -> CacheFacts:
    """Writes the cache of the examples' completion tokens, its shards divided among the ranks; finished shards are kept.

    A shard is 256 examples in their order, whatever the batch size and the number of ranks. Raises PollardError where the
    cache would not fit on the disk, and where the model's logits are not finite.
    """
    identity = cache_identity(encoded, temperature, int(model.config.get_text_config().vocab_size))
    facts = CacheFacts(identity["examples"], identity["tokens"], identity["bytes_per_token"])
    shards = _shards(encoded)
    missing = missing_shards(folder, {**identity, "fingerprint": fingerprint}, len(shards), SUFFIX)
    each = facts.bytes_per_token
    needed = each * sum(predicted_tokens(e) for number in missing for e in shards[number])
    free = on_main(lambda: shutil.disk_usage(folder).free)
    size = f"{facts.tokens:,} tokens x {each} bytes = {facts.tokens * each / 2**20:,.1f} MiB"
    say(f"  {size} in {len(shards)} file{'s' * (len(shards) > 1)}, {len(missing)} to make; {free / 2**30:,.1f} GiB free")
    if needed > free:
        raise PollardError(
            f"The teacher's cache needs {needed / 2**30:,.1f} GiB more ({size}), and {folder} has {free / 2**30:,.1f} GiB free: "
            "make room, take fewer examples (finetuning.examples), or learn without a teacher (finetuning.teacher=null).",
            code="recovery.no-disk-space",
        )

    @torch.no_grad()
    def make(number: int, path: Path) -> None:
        mine = shards[number]
        cached: dict[int, TopAndTail] = {}
        order = sorted(range(len(mine)), key=lambda i: len(mine[i].input_ids))
        for start in range(0, len(order), batch_size):
            chunk = order[start : start + batch_size]
            batch = padded_batches([mine[i] for i in chunk], batch_size, pad_token_id)[0]
            counted_BS = batch["completion_mask"][:, 1:].bool().to(model.device)
            inputs = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}
            logits_NV = logits_at(model, inputs, counted_BS)
            if logits_NV.isnan().any() or (logits_NV.amax(-1).isinf()).any():
                raise PollardError(
                    f"The original model's logits are no finite numbers in training examples {number * EXAMPLES} to "
                    f"{number * EXAMPLES + len(mine) - 1}: it cannot teach in this precision. Try model.dtype=float32.",
                    code="recovery.teacher-not-finite",
                )
            tokens = counted_BS.sum(1).tolist()
            rows = zip(*(column.cpu().split(tokens) for column in top_and_tail(logits_NV, temperature)), strict=True)
            cached |= {i: TopAndTail(*row) for i, row in zip(chunk, rows, strict=True)}
        columns = zip(*(cached[i] for i in range(len(mine))), strict=True)
        save_file(dict(zip(("index", "offset", "tail"), map(torch.cat, columns), strict=True)), path)

    make_shards(folder, missing, SUFFIX, make, "asking the teacher")
    return facts


def predicted_tokens(encoded: Encoded) -> int:
    """Completion tokens with a token before them: those that the model predicts."""
    return len(encoded.input_ids) - max(encoded.prompt_length, 1)


def cache_identity(encoded: Sequence[Encoded], temperature: float, vocabulary: int) -> CacheIdentity:
    tokens = hashlib.sha256()
    for e in encoded:
        tokens.update(array("q", [len(e.input_ids), e.prompt_length, *e.input_ids]).tobytes())
    return {
        "format": 1, "top": min(TOP_LOGITS, vocabulary), "temperature": temperature, "vocabulary": vocabulary,
        "examples": len(encoded), "tokens": sum(map(predicted_tokens, encoded)), "examples_per_file": EXAMPLES,
        "bytes_per_token": bytes_per_token(vocabulary), "data": tokens.hexdigest()[:16],
    }  # fmt: skip


class TeacherCache:
    """The finished cache in `folder`, read example by example.

    Raises PollardError unless it holds exactly these tokens, at this temperature, of a model with this vocabulary.
    """

    def __init__(self, folder: Path, encoded: Sequence[Encoded], temperature: float, vocabulary: int) -> None:
        self.folder = folder
        self._files: dict[int, Any] = {}
        self._ends = [list(accumulate(map(predicted_tokens, chunk))) for chunk in _shards(encoded)]
        try:
            stored = json.loads((folder / ABOUT_FILE).read_text())
        except (OSError, ValueError) as error:
            raise PollardError(
                f"No teacher's cache in {folder} ({error}): run the recipe, which makes it.", code="recovery.no-teacher-cache"
            ) from None
        for key, expected in cache_identity(encoded, temperature, vocabulary).items():
            if stored.get(key) != expected:
                raise PollardError(
                    f"The teacher's cache in {folder} is of other training data: its `{key}` is {stored.get(key)}, here it is "
                    f"{expected}. Teacher and student need the same tokenizer and the same data; --fresh asks the teacher again.",
                    code="recovery.other-teacher-cache",
                )
        for number, ends in enumerate(self._ends):
            if self._file(number).get_slice("tail").get_shape() != [ends[-1]]:
                raise PollardError(
                    f"{shard_path(folder, number, SUFFIX)} is damaged: remove it, and --fresh makes it again.",
                    code="recovery.damaged-teacher-cache",
                )

    def _file(self, number: int) -> Any:
        if number not in self._files:
            path = shard_path(self.folder, number, SUFFIX)
            try:
                self._files[number] = safe_open(path, framework="pt")  # maps the file; nothing is read yet
            except (OSError, SafetensorError) as error:
                raise PollardError(
                    f"The teacher's cache lacks {path}, or it is damaged ({error}): run with --fresh.",
                    code="recovery.damaged-teacher-cache",
                ) from None
        return self._files[number]

    def rows(self, example: int) -> TopAndTail:
        """The teacher's logits on one example's completion tokens. Raises PollardError where they are NaN."""
        number, place = divmod(example, EXAMPLES)
        ends = self._ends[number]
        part = slice(ends[place - 1] if place else 0, ends[place])
        logits = TopAndTail(*(self._file(number).get_slice(name)[part] for name in ("index", "offset", "tail")))
        if logits.offset_NK.isnan().any() or logits.tail_N.isnan().any():
            path = shard_path(self.folder, number, SUFFIX)
            raise PollardError(
                f"The teacher's cache is damaged: {path} holds numbers that are none. Remove it, run with --fresh.",
                code="recovery.damaged-teacher-cache",
            )
        return logits


def _shards(encoded: Sequence[Encoded]) -> list[Sequence[Encoded]]:
    return [encoded[start : start + EXAMPLES] for start in range(0, len(encoded), EXAMPLES)]
