"""What the original model says of every completion token, kept on disk: its largest logits and the weight of the rest.

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
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel

from toolkit.moe import logits_at
from toolkit.runtime.distributed import on_main, say
from toolkit.runtime.errors import PollardError
from toolkit.runtime.shards import ABOUT_FILE, make_shards, missing_shards, shard_path
from toolkit.tasks import Encoded, padded_batches

TOP = 64
EXAMPLES = 256  # per shard: what a kill loses at most
TOKENS_AT_ONCE = 1024  # float32 copies of [tokens, V] are made of so many at a time
SUFFIX = ".safetensors"
LEAST = torch.finfo(torch.float16).min  # stands for -inf: its probability is 0 all the same, without 0 x inf


class TopAndTail(NamedTuple):
    """A distribution over V tokens at a temperature, as K of them and the rest together."""

    index_NK: torch.Tensor  # int32
    offset_NK: torch.Tensor  # float16: logit - largest logit, not yet divided by the temperature
    tail_N: torch.Tensor  # float32: log sum over the rest of exp(offset / temperature); -inf where there is no rest


def bytes_per_token(vocabulary: int) -> int:
    """388 for every vocabulary of at least 64."""
    return min(TOP, vocabulary) * (4 + 2) + 4


def top_and_tail(logits_NV: torch.Tensor, temperature: float) -> TopAndTail:
    """The K largest logits, and the rest in one number."""
    parts = []
    for part_NV in logits_NV.split(TOKENS_AT_ONCE):
        offset_NV = part_NV.float()
        offset_NV = offset_NV - offset_NV.amax(-1, keepdim=True)
        top = offset_NV.topk(min(TOP, offset_NV.shape[-1]))
        tail_N = (offset_NV.scatter(-1, top.indices, -math.inf) / temperature).logsumexp(-1)
        parts.append(TopAndTail(top.indices.int(), top.values.clamp(min=LEAST).half(), tail_N))
    return TopAndTail(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def cache_logits(
    model: PreTrainedModel,
    encoded: Sequence[Encoded],
    folder: Path,
    temperature: float,
    batch_size: int,
    pad_token_id: int,
    fingerprint: str,
) -> dict[str, Any]:
    """Writes the cache of the examples' completion tokens, shared out over the ranks; finished shards are kept.

    A shard is 256 examples in their order, whatever the batch size and the number of ranks. Returns what the cache is.
    Raises PollardError where it would not fit on the disk, and where the model's logits are no numbers.
    """
    about = describe(encoded, temperature, int(model.config.get_text_config().vocab_size)) | {"fingerprint": fingerprint}
    shards = _shards(encoded)
    missing = missing_shards(folder, about, len(shards), SUFFIX)
    each = about["bytes_per_token"]
    needed = each * sum(predicted(e) for number in missing for e in shards[number])
    free = on_main(lambda: shutil.disk_usage(folder).free)
    size = f"{about['tokens']:,} tokens x {each} bytes = {about['tokens'] * each / 2**20:,.1f} MiB"
    say(f"  {size} in {len(shards)} file{'s' * (len(shards) > 1)}, {len(missing)} to make; {free / 2**30:,.1f} GiB free")
    if needed > free:
        raise PollardError(
            f"The teacher's cache needs {needed / 2**30:,.1f} GiB more ({size}), and {folder} has {free / 2**30:,.1f} GiB free: "
            "make room, take fewer examples (finetuning.examples), or learn without a teacher (finetuning.teacher=null)."
        )

    @torch.no_grad()
    def make(number: int, path: Path) -> None:
        mine = shards[number]
        found: dict[int, TopAndTail] = {}
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
                    f"{number * EXAMPLES + len(mine) - 1}: it cannot teach in this precision. Try model.dtype=float32."
                )
            tokens = counted_BS.sum(1).tolist()
            rows = zip(*(column.cpu().split(tokens) for column in top_and_tail(logits_NV, temperature)), strict=True)
            found |= {i: TopAndTail(*row) for i, row in zip(chunk, rows, strict=True)}
        columns = zip(*(found[i] for i in range(len(mine))), strict=True)
        save_file(dict(zip(("index", "offset", "tail"), map(torch.cat, columns), strict=True)), path)

    make_shards(folder, missing, SUFFIX, make, "asking the teacher")
    return {key: about[key] for key in ("examples", "tokens", "bytes_per_token")}


def predicted(encoded: Encoded) -> int:
    """Completion tokens that have one before them to predict them."""
    return len(encoded.input_ids) - max(encoded.prompt_length, 1)


def describe(encoded: Sequence[Encoded], temperature: float, vocabulary: int) -> dict[str, Any]:
    """What a cache belongs to: these tokens in this order, this temperature, this vocabulary."""
    tokens = hashlib.sha256()
    for e in encoded:
        tokens.update(array("q", [len(e.input_ids), e.prompt_length, *e.input_ids]).tobytes())
    return {
        "format": 1, "top": min(TOP, vocabulary), "temperature": temperature, "vocabulary": vocabulary,
        "examples": len(encoded), "tokens": sum(map(predicted, encoded)), "examples_per_file": EXAMPLES,
        "bytes_per_token": bytes_per_token(vocabulary), "data": tokens.hexdigest()[:16],
    }  # fmt: skip


class TeacherCache:
    """The finished cache in `folder`, read example by example.

    Raises PollardError unless it holds exactly these tokens, at this temperature, of a model with this vocabulary.
    """

    def __init__(self, folder: Path, encoded: Sequence[Encoded], temperature: float, vocabulary: int) -> None:
        self.folder = folder
        self._files: dict[int, Any] = {}
        self._ends = [list(accumulate(map(predicted, chunk))) for chunk in _shards(encoded)]
        try:
            theirs = json.loads((folder / ABOUT_FILE).read_text())
        except (OSError, ValueError) as error:
            raise PollardError(f"No teacher's cache in {folder} ({error}): run the recipe, which makes it.") from None
        for key, ours in describe(encoded, temperature, vocabulary).items():
            if theirs.get(key) != ours:
                raise PollardError(
                    f"The teacher's cache in {folder} is of other training data: its `{key}` is {theirs.get(key)}, here it is "
                    f"{ours}. Teacher and student need the same tokenizer and the same data; --fresh asks the teacher again."
                )
        for number, ends in enumerate(self._ends):
            if self._file(number).get_slice("tail").get_shape() != [ends[-1]]:
                raise PollardError(f"{shard_path(folder, number, SUFFIX)} is damaged: remove it, and --fresh makes it again.")

    def _file(self, number: int) -> Any:
        if number not in self._files:
            path = shard_path(self.folder, number, SUFFIX)
            try:
                self._files[number] = safe_open(path, framework="pt")  # maps the file; nothing is read yet
            except (OSError, SafetensorError) as error:
                raise PollardError(f"The teacher's cache lacks {path}, or it is damaged ({error}): run with --fresh.") from None
        return self._files[number]

    def rows(self, example: int) -> TopAndTail:
        """What the teacher says of one example's completion tokens. Raises PollardError for what is no number."""
        number, place = divmod(example, EXAMPLES)
        ends = self._ends[number]
        part = slice(ends[place - 1] if place else 0, ends[place])
        found = TopAndTail(*(self._file(number).get_slice(name)[part] for name in ("index", "offset", "tail")))
        if found.offset_NK.isnan().any() or found.tail_N.isnan().any():
            path = shard_path(self.folder, number, SUFFIX)
            raise PollardError(
                f"The teacher's cache is damaged: {path} holds numbers that are none. Remove it, run with --fresh."
            )
        return found


def _shards(encoded: Sequence[Encoded]) -> list[Sequence[Encoded]]:
    return [encoded[start : start + EXAMPLES] for start in range(0, len(encoded), EXAMPLES)]
