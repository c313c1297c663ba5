"""The teacher's cache: the original model's largest logits on every completion token, and the weight of all others.

Per token 64 x (int32 index + float16 offset from the largest logit) + a float32 tail, the logarithm of what all other
tokens weigh against the largest at the recipe's temperature: 388 bytes instead of the vocabulary's logits. Where the recipe asks
for the seam loss, also the hidden states at the seams (seam_columns.py).

Shape legend: N completion tokens, V vocabulary, B sequences, S positions.
"""

import hashlib
import shutil
from array import array
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, NotRequired, TypedDict

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel

from toolkit.moe import Batch, logits_at
from toolkit.recovery import seam_columns
from toolkit.recovery.seam_columns import SeamColumns, SeamIdentity, TeacherStates
from toolkit.recovery.seams import Seams, observing_seams
from toolkit.recovery.top_logits import TOP_LOGITS, TopAndTail, bytes_per_token, top_and_tail
from toolkit.runtime.distributed import on_main, say
from toolkit.runtime.errors import PollardError
from toolkit.runtime.files import JsonObject
from toolkit.runtime.shards import make_shards, missing_shards, read_about, shard_path
from toolkit.tasks import Encoded, padded_batches

LOGITS = ("index", "offset", "tail")  # columns
EXAMPLES = 256  # per shard: a kill loses at most one shard
SUFFIX = ".safetensors"


class CacheIdentity(TypedDict):
    """What a cache was made of: these tokens in this order, this temperature, this vocabulary (about.json)."""

    format: int
    top: int
    temperature: float
    vocabulary: int
    examples: int
    tokens: int  # predicted ones
    examples_per_file: int
    bytes_per_token: int  # of the logits
    data: str  # digest of all token ids and prompt lengths
    hidden: NotRequired[SeamIdentity]


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
    seams: Seams | None = None,
    seed: int = 0,
) -> CacheFacts:
    """Writes the cache of the examples' completion tokens, its shards divided among the ranks; finished shards are kept.

    A shard is 256 examples in their order (32 with hidden states), whatever the batch size and the number of ranks. With `seams`
    it holds the hidden states there: whole, or by the `seed` projected where the disk has no room for that when the first shard
    is to be made. Raises PollardError where the cache would not fit on the disk, and where the model's logits are not finite.
    """
    config = model.config.get_text_config()
    new = _NewCache(folder, encoded, temperature, int(config.vocab_size), fingerprint)
    if seams:
        new = new.in_form_for_disk(SeamColumns(seams.of_original, int(config.hidden_size)), seed)
    shards, missing, columns = new.shards, new.missing(), new.columns
    each = bytes_per_token(new.vocabulary) + (columns.bytes_per_token if columns else 0)
    facts = CacheFacts(len(encoded), new.identity["tokens"], each)
    needed, free = new.bytes_of(missing), new.free()
    size = f"{facts.tokens:,} tokens x {each} bytes = {facts.tokens * each / 2**20:,.1f} MiB"
    say(f"  {size} in {len(shards)} file{'s' * (len(shards) > 1)}, {len(missing)} to make; {free / 2**30:,.1f} GiB free")
    if columns:
        say(f"  {columns.description}")
    if needed > free:
        raise PollardError(
            f"The teacher's cache needs {needed / 2**30:,.1f} GiB more ({size}), and {folder} has {free / 2**30:,.1f} GiB free: "
            "make room, take fewer examples (finetuning.examples), or learn without a teacher (finetuning.teacher=null).",
            code="recovery.no-disk-space",
        )

    def make(number: int, path: Path) -> None:
        mine, first = shards[number], number * examples_per_file(columns)
        cached: dict[int, tuple[torch.Tensor, ...]] = {}
        order = sorted(range(len(mine)), key=lambda i: len(mine[i].input_ids))
        for start in range(0, len(order), batch_size):
            chunk = order[start : start + batch_size]
            batch = padded_batches([mine[i] for i in chunk], batch_size, pad_token_id)[0]
            found = _asked(model, batch, new, seams)
            if found is None:
                raise PollardError(
                    f"The original model's logits are no finite numbers in training examples {first} to {first + len(mine) - 1}: "
                    "it cannot teach in this precision. Try model.dtype=float32.",
                    code="recovery.teacher-not-finite",
                )
            cached |= dict(zip(chunk, found, strict=True))
        together = zip(*(cached[i] for i in range(len(mine))), strict=True)
        save_file(dict(zip(new.names, map(torch.cat, together), strict=True)), path)

    make_shards(folder, missing, SUFFIX, make, "asking the teacher")
    return facts


@torch.no_grad()
def _asked(
    model: PreTrainedModel, batch: Batch, cache: "_NewCache", seams: Seams | None
) -> list[tuple[torch.Tensor, ...]] | None:
    """What the cache holds of every example of a batch, by column; None where logits are no finite numbers."""
    counted_BS = batch["completion_mask"][:, 1:].bool().to(model.device)
    inputs = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}
    states: dict[int, torch.Tensor] = {}
    with observing_seams(model, seams.path, seams.of_original, counted_BS, states) if seams else nullcontext():
        logits_NV = logits_at(model, inputs, counted_BS)
    if logits_NV.isnan().any() or logits_NV.amax(-1).isinf().any():
        return None
    columns = [*top_and_tail(logits_NV, cache.temperature), *(cache.columns.stored(states) if cache.columns else ())]
    return [*zip(*(column.cpu().split(counted_BS.sum(1).tolist()) for column in columns), strict=True)]


@dataclass(frozen=True)
class _NewCache:
    """A cache that is to be made, or was begun; with `columns` of hidden states, in one form."""

    folder: Path
    encoded: Sequence[Encoded]
    temperature: float
    vocabulary: int
    fingerprint: str
    columns: SeamColumns | None = None

    @property
    def identity(self) -> CacheIdentity:
        return cache_identity(self.encoded, self.temperature, self.vocabulary, self.columns)

    @property
    def names(self) -> tuple[str, ...]:
        return (*LOGITS, *(self.columns.names if self.columns else ()))

    @property
    def shards(self) -> list[Sequence[Encoded]]:
        return _shards(self.encoded, self.columns)

    @property
    def about(self) -> JsonObject:
        return {**self.identity, "fingerprint": self.fingerprint}

    def missing(self) -> list[int]:
        """Shards of another cache, or of another form, are removed."""
        return missing_shards(self.folder, self.about, len(self.shards), SUFFIX)

    def bytes_of(self, missing: Sequence[int]) -> int:
        each = bytes_per_token(self.vocabulary) + (self.columns.bytes_per_token if self.columns else 0)
        return each * sum(predicted_tokens(e) for number in missing for e in self.shards[number])

    def free(self) -> int:
        return on_main(lambda: shutil.disk_usage(self.folder).free)

    def in_form_for_disk(self, whole: SeamColumns, seed: int) -> "_NewCache":
        """With hidden states whole, or projected where the disk has no room for that. One that was begun keeps its form."""
        projected, unprojected = replace(self, columns=replace(whole, seed=seed)), replace(self, columns=whole)
        if on_main(lambda: read_about(self.folder)) == projected.about:
            return projected
        missing, free = unprojected.missing(), unprojected.free()
        needed = unprojected.bytes_of(missing)
        if len(missing) < len(unprojected.shards) or needed <= free:
            return unprojected
        whole_gib, free_gib = needed / 2**30, free / 2**30
        say(f"  hidden states are projected: whole, the cache would take {whole_gib:,.1f} GiB, and {free_gib:,.1f} GiB are free")
        return projected


def predicted_tokens(encoded: Encoded) -> int:
    """Completion tokens with a token before them: those that the model predicts."""
    return len(encoded.input_ids) - max(encoded.prompt_length, 1)


def examples_per_file(columns: SeamColumns | None) -> int:
    return EXAMPLES if columns is None else min(EXAMPLES, seam_columns.EXAMPLES)


def cache_identity(
    encoded: Sequence[Encoded], temperature: float, vocabulary: int, columns: SeamColumns | None = None
) -> CacheIdentity:
    tokens = hashlib.sha256()
    for e in encoded:
        tokens.update(array("q", [len(e.input_ids), e.prompt_length, *e.input_ids]).tobytes())
    identity: CacheIdentity = {
        "format": 1, "top": min(TOP_LOGITS, vocabulary), "temperature": temperature, "vocabulary": vocabulary,
        "examples": len(encoded), "tokens": sum(map(predicted_tokens, encoded)), "examples_per_file": examples_per_file(columns),
        "bytes_per_token": bytes_per_token(vocabulary), "data": tokens.hexdigest()[:16],
    }  # fmt: skip
    if columns:
        identity["hidden"] = columns.identity
    return identity


class TeacherCache:
    """The finished cache in `folder`, read example by example.

    Raises PollardError unless it holds exactly these tokens, at this temperature, of a model with this vocabulary; with `seams`,
    also its hidden states there. Without, it may hold some all the same (the control has no seams).
    """

    def __init__(
        self, folder: Path, encoded: Sequence[Encoded], temperature: float, vocabulary: int, seams: Seams | None = None
    ) -> None:
        self.folder = folder
        self._files: dict[int, Any] = {}
        stored = read_about(folder)
        if stored is None:
            raise PollardError(
                f"No teacher's cache in {folder}: run the recipe, which makes it.", code="recovery.no-teacher-cache"
            )
        self.columns = SeamColumns.of(stored["hidden"]) if "hidden" in stored else None
        self._examples = examples_per_file(self.columns)
        self._ends = [list(accumulate(map(predicted_tokens, chunk))) for chunk in _shards(encoded, self.columns)]
        wanted: dict[str, object] = {**cache_identity(encoded, temperature, vocabulary, self.columns)}
        if seams:  # in either form
            wanted["hidden"] = {**stored.get("hidden", {}), "seams": list(seams.of_original)}
        for key, expected in wanted.items():
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
        logits = TopAndTail(*(self._read(example, name) for name in LOGITS))
        self._check_numbers(example, logits.offset_NK, logits.tail_N)
        return logits

    def states(self, example: int) -> TeacherStates:
        """The teacher's hidden states at the seams, on the same tokens; of a cache that holds them."""
        assert self.columns is not None
        projected = self.columns.seed is not None
        states = TeacherStates.of(self._read(example, "hidden"), self._read(example, "length") if projected else None)
        self._check_numbers(example, *states)
        return states

    def _read(self, example: int, column: str) -> torch.Tensor:
        number, place = divmod(example, self._examples)
        ends = self._ends[number]
        found: torch.Tensor = self._file(number).get_slice(column)[ends[place - 1] if place else 0 : ends[place]]
        return found

    def _check_numbers(self, example: int, *columns: torch.Tensor) -> None:
        if any(column.isnan().any() for column in columns):
            path = shard_path(self.folder, example // self._examples, SUFFIX)
            raise PollardError(
                f"The teacher's cache is damaged: {path} holds numbers that are none. Remove it, run with --fresh.",
                code="recovery.damaged-teacher-cache",
            )


def _shards(encoded: Sequence[Encoded], columns: SeamColumns | None) -> list[Sequence[Encoded]]:
    size = examples_per_file(columns)
    return [encoded[start : start + size] for start in range(0, len(encoded), size)]
