"""Prune a checkpoint file by file: bytes are copied, no model is built.

The same source and plan give the same bytes on any number of ranks, which share the files. Files that are whole stay in
`<target>.tmp` when something stops the work, and the same command goes on from there (runtime/signed_folders.py).
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from transformers import PreTrainedModel

from toolkit.cuts.apply import apply_plan
from toolkit.cuts.cut import ConfigFile, UnknownLayoutError
from toolkit.cuts.layout import pieces_of
from toolkit.cuts.plan import Plan
from toolkit.moe.load import load_config, meta_model
from toolkit.moe.model_files import SINGLE, checkpoint_files, copy_companions, file_names, write_index
from toolkit.moe.quantized_names import QUANTIZATION, RenamedModules
from toolkit.moe.tensor_files import (
    JoinedPiece,
    Piece,
    StoredTensor,
    explain_write_errors,
    file_bytes,
    stored_tensors,
    write_file,
)
from toolkit.runtime.distributed import on_all_ranks, on_main, say, shard
from toolkit.runtime.errors import PollardError
from toolkit.runtime.files import JsonObject, write_text
from toolkit.runtime.progress import progress
from toolkit.runtime.signed_folders import begin_folder, is_resumable, partial_path, put_in_place, remove_own, sign

Written = TypeVar("Written", Piece, Piece | JoinedPiece)
SHARD_BYTES = 5 * 10**9  # a rerun after a stop repeats at most one such file per rank


class PruneJob(NamedTuple):
    """What is written, decided from headers and configuration; the same on every rank."""

    folder: Path
    plan: Plan
    stored: dict[str, StoredTensor]
    model: PreTrainedModel  # the original and the pruned model, without weights
    pruned: PreTrainedModel
    shards: dict[str, list[Piece]]  # per file of the pruned checkpoint
    left_out: list[str]  # tensors of the original that transformers does not load
    modules: RenamedModules


def plan_prune(folder: Path, plan: Plan) -> PruneJob:
    """Decides every tensor from headers and configuration. Raises PollardError as `apply_plan` and `stored_tensors` do,
    and UnknownLayoutError."""
    if not checkpoint_files(folder).safetensors:
        raise UnknownLayoutError(f"it has no {SINGLE}")
    model, pruned = (meta_model(load_config(str(folder))) for _ in range(2))
    apply_plan(pruned, plan)
    stored = stored_tensors(folder)
    pieces, left_out = pieces_of(stored, model, pruned, plan)
    renamed = {piece.source.name: piece.name for piece in pieces}
    modules = RenamedModules(renamed, stored.keys() - renamed.keys())
    return PruneJob(folder, plan, stored, model, pruned, packed(pieces), left_out, modules)


def planned_bytes(folder: Path, plan: Plan) -> int | None:
    """Of the weights' files that `plan` leaves of the checkpoint, exactly; None where they are not copied but written by
    transformers. Raises PollardError as `plan_prune` does."""
    try:
        return sum(file_bytes(pieces) for pieces in plan_prune(folder, plan).shards.values())
    except UnknownLayoutError:
        return None


def packed(pieces: list[Written]) -> dict[str, list[Written]]:
    """Files of at most SHARD_BYTES each, unless one tensor is larger."""
    shards: list[list[Written]] = [[]]
    size = 0
    for piece in pieces:
        if shards[-1] and size + piece.bytes > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(piece)
        size += piece.bytes
    return dict(zip(file_names(len(shards)), shards, strict=True))


def write_pruned(job: PruneJob, config: ConfigFile, target: Path, verify: Callable[[Path], None], facts: dict[str, Any]) -> None:
    """Writes the pruned checkpoint with that configuration to `target`, by all ranks, and signs it with `facts`.

    `verify` looks at the written folder before it gets its name, also on every rank. Raises PollardError where the disk is
    too small or cannot be written; nothing is changed at `target` then.
    """
    folder = partial_path(target)
    steps = WritingSteps(
        lambda: _open(job, target), lambda: _write(job, folder), lambda: _write_rest(job, folder, config), lambda: verify(folder)
    )
    steps.run(target, facts)


class WritingSteps(NamedTuple):
    """How all ranks write a checkpoint folder, which gets its name and its signature when it is whole and verified."""

    open: Callable[[], None]  # rank 0: makes the folder, or takes over what an earlier attempt left
    write: Callable[[], None]  # every rank: its share of the files
    write_rest: Callable[[], None]  # rank 0
    verify: Callable[[], None]  # every rank

    def run(self, target: Path, facts: JsonObject) -> None:
        """Raises what the steps raise, on every rank, errors of the disk explained."""

        def finish() -> None:
            sign(partial_path(target), facts)
            put_in_place(partial_path(target), target)

        for where, work in (
            (on_main, self.open), (on_all_ranks, self.write), (on_main, self.write_rest), (on_all_ranks, self.verify),
            (on_main, finish),
        ):  # fmt: skip
            where(partial(_explained, work, target))


def _explained(work: Callable[[], None], target: Path) -> None:
    """On the rank that fails, which reports it to the others."""
    with explain_write_errors(target):
        work()


def _open(job: PruneJob, target: Path) -> None:
    """Makes the folder, or takes over what an earlier attempt at the same left. Raises PollardError where the rest of the
    files does not fit on the disk."""
    partial, identity = partial_path(target), _fingerprint(job)
    if not is_resumable(target, identity):
        begin_folder(target, identity)
    check_room(partial, {name: sum(piece.bytes for piece in pieces) for name, pieces in job.shards.items()})


def check_room(partial: Path, files: Mapping[str, int]) -> None:
    """Raises PollardError where those of `files` (their bytes, by name) that are not in the unfinished folder yet do not fit on
    its disk. Says how many are there already."""
    todo = [size for name, size in files.items() if not (partial / name).exists()]
    needed, free = sum(todo), shutil.disk_usage(partial).free
    if needed > free:
        if len(todo) == len(files):
            remove_own(partial)
        raise PollardError(
            f"The pruned checkpoint needs {needed / 1e9:,.1f} GB more in {partial.parent}, where {free / 1e9:,.1f} GB are free. "
            "Make room, or give another place.",
            code="prune.disk-full",
        )
    if len(todo) < len(files):
        say(f"  {len(files) - len(todo)} of {len(files)} files are there already: going on")


def _fingerprint(job: PruneJob) -> str:
    return source_fingerprint(job.folder, [job.plan.choice(), job.plan.experts_per_token, SHARD_BYTES], job.stored.values())


def source_fingerprint(folder: Path, decided_by: list[Any], stored: Iterable[StoredTensor]) -> str:
    """Of what is made of the tensors `stored` in a checkpoint folder, as `decided_by` says."""
    files = sorted({tensor.file for tensor in stored})
    source = [(str(file), (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files]
    decisions = [source, (folder / "config.json").read_text(), *decided_by]
    return hashlib.sha256(json.dumps(decisions).encode()).hexdigest()


def _write(job: PruneJob, partial: Path) -> None:
    """This rank's share of the files."""
    for name in progress(shard(list(job.shards)), "writing files", total=len(job.shards)):
        if not (partial / name).exists():
            write_file(partial / name, job.shards[name])


def _write_rest(job: PruneJob, partial: Path, config: ConfigFile) -> None:
    """Index and configuration, and what else lies beside the weights, as it is."""
    if len(job.shards) > 1:
        total = sum(piece.bytes for pieces in job.shards.values() for piece in pieces)
        where = {piece.name: file for file, pieces in job.shards.items() for piece in pieces}
        write_index(partial, total, where)
    write_text(partial / "config.json", json.dumps(config, indent=2) + "\n")
    files = checkpoint_files(job.folder)
    read = {path.relative_to(job.folder).parts[0] for path in (*files.weights, *([files.index_file] if files.index_file else []))}
    skipped = [name for name in copy_companions(job.folder, partial) if name.rstrip("/") not in read]
    for path in sorted(job.folder.iterdir()):
        # Files beside config.json that say how the checkpoint is quantized
        if path.is_file() and QUANTIZATION.search(path.name) and (partial / path.name).exists():
            write_text(partial / path.name, job.modules.renumbered_file(path))
    if job.left_out:
        say(f"  left out: {len(job.left_out)} tensors of layers that predict further tokens, such as {job.left_out[0]}")
    if skipped:
        say(f"  left out: {', '.join(skipped)}")
