"""A checkpoint grown by experts of the original, file by file: bytes are copied, no model is built.

    onto   runs/sorting/recovered   experts 0, 2, 5, 7 of the original, as its recovery has left them; attention, embeddings, …
    model  the original             experts 1, 4
    grown  pruned/                  onto's tensors, bit for bit, with experts 1 and 4 and their router rows behind them

    …experts.3.w1.weight            onto's, under the same number
    …experts.4.w1.weight            the original's …experts.1.w1.weight
    …experts.gate_up_proj [6, …]    rows of both, as is …gate.weight [6, H]

What `onto` has of the original is what the plan that made it leaves (layout.py): which tensors hold a row per expert, and under
which name and number each of its experts lies, is read off from there, and no family is named.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from transformers import PreTrainedModel

from toolkit.cuts.apply import apply_plan, shapes_of
from toolkit.cuts.cut import ConfigFile, UnknownLayoutError
from toolkit.cuts.plan import Plan
from toolkit.cuts.writer import PruneJob, WritingSteps, check_room, packed, plan_prune, source_fingerprint
from toolkit.moe.completeness import EXPERT_NUMBER
from toolkit.moe.load import load_config, meta_model, quantization_of
from toolkit.moe.loading_checks import check_opens
from toolkit.moe.model_files import copy_companions, write_index
from toolkit.moe.names import NameResolver
from toolkit.moe.tensor_files import FLOATS, JoinedPiece, Piece, StoredTensor, row_axis, stored_tensors, write_file
from toolkit.runtime.distributed import is_main, shard
from toolkit.runtime.errors import PollardError
from toolkit.runtime.files import JsonObject, write_text
from toolkit.runtime.signed_folders import begin_folder, is_resumable, partial_path

Written = Piece | JoinedPiece


class GrowJob(NamedTuple):
    """What is written, decided from headers and configurations; the same on every rank."""

    folder: Path  # of the original
    onto: Path
    plan: Plan
    grown: PreTrainedModel  # without weights
    shards: Mapping[str, Sequence[Written]]  # per file of the grown checkpoint

    @property
    def casts(self) -> str:
        """ ", as F32, not BF16": where the original is stored in another type; empty where it is not."""
        pieces = [piece for shard in self.shards.values() for piece in shard if isinstance(piece, JoinedPiece)]
        types = {(piece.dtype, row.dtype) for piece in pieces for row in piece.rows if row.dtype != piece.dtype}
        return "".join(f", as {there}, not {stored}" for there, stored in sorted(types))


def plan_growth(folder: Path, plan: Plan) -> GrowJob:
    """`folder`: the original's. Raises PollardError where the two checkpoints do not fit together."""
    cut = plan.experts
    onto, first = Path(str(cut.onto)), cut.before_growth
    for path, what in ((folder, "the original"), (onto, "the checkpoint that grows")):
        if quantized := quantization_of(load_config(str(path))):
            raise PollardError(
                f"{path}, {what}, is quantized ({quantized}), and what grows is trained as plain numbers: start from a plain "
                "copy (bfloat16).",
                code="grow.quantized",
            )
    active = min(plan.experts_per_token, first.keep)
    try:
        base = plan_prune(folder, plan.model_copy(update={"cuts": [first], "experts_per_token": active}))
    except UnknownLayoutError as reason:
        raise PollardError(
            f"{folder} cannot be read expert by expert, so none of its experts can be added to another checkpoint: {reason}.",
            code="grow.layout",
        ) from None
    stored = stored_tensors(onto)
    there = {piece.name: piece for pieces in base.shards.values() for piece in pieces}
    _check_same_model(onto, stored, there, base)
    grown = apply_plan(meta_model(load_config(str(folder))), plan)
    pieces = [*_old(stored, there, base, plan), *_new(stored, there, base, plan)]
    return GrowJob(folder, onto, plan, grown, packed(pieces))


def _check_same_model(onto: Path, stored: Mapping[str, StoredTensor], there: Mapping[str, Piece], base: PruneJob) -> None:
    """Raises PollardError unless the checkpoint holds what the original leaves it, as far as names and shapes tell."""
    before, after = shapes_of(base.pruned), shapes_of(meta_model(load_config(str(onto))))
    wrong = next((name for name, shape in before.items() if after.get(name) != shape), None)
    if wrong or len(before) != len(after):
        shape = list(before.get(str(wrong), ()))
        raise PollardError(
            f"{onto} is not what its plan leaves of {base.folder}: {wrong or 'it'} would be {shape}, and its configuration "
            f"says {list(after.get(str(wrong), ()))}. Grow a checkpoint that was pruned from the same model.",
            code="grow.other-model",
        )
    for name, piece in there.items():
        if name not in stored and (piece.indices or EXPERT_NUMBER.search(name)):
            raise PollardError(
                f"{onto} stores its experts otherwise than {base.folder} (it has no {name}): their tensors cannot be joined. "
                "Save the original anew with transformers (save_pretrained), and prune and grow that.",
                code="grow.other-layout",
            )
        if name in stored and stored[name].shape != piece.shape:
            raise PollardError(
                f"{name} is {list(stored[name].shape)} in {onto}, and {list(piece.shape)} of it would be left of {base.folder}: "
                "grow a checkpoint that was pruned from the same model.",
                code="grow.other-model",
            )


def _old(stored: Mapping[str, StoredTensor], there: Mapping[str, Piece], base: PruneJob, plan: Plan) -> Iterator[Written]:
    """What is in the checkpoint already, with the rows of new experts where a tensor has a row for each."""
    names = NameResolver(base.pruned)
    for name, tensor in stored.items():
        block = _block_of(names.destination(name).parameters[0], plan)
        number = EXPERT_NUMBER.search(name)
        if block and number:
            yield Piece(EXPERT_NUMBER.sub(str(_places(plan, block)[int(number[0])]), name, count=1), tensor)
        elif name in there and there[name].indices and block:
            yield _joined(tensor, there[name], block, plan)
        else:
            yield Piece(name, tensor)


def _joined(tensor: StoredTensor, piece: Piece, block: str, plan: Plan) -> JoinedPiece:
    """`piece`: what the first plan leaves of the original's tensor; there may be rows behind those of experts."""
    cut, axis = plan.experts, row_axis(tensor.shape)
    held = cut.origin[block].count("onto")
    rows: list[tuple[StoredTensor, int]] = []
    olds = iter(range(held))
    for expert, where in zip(cut.kept[block], cut.origin[block], strict=True):
        rows.append((tensor, next(olds)) if where == "onto" else (piece.source, expert))
    rows += [(tensor, row) for row in range(held, tensor.shape[axis])]
    parts = [
        Piece(piece.name, source, {axis: np.array([row for _, row in run])})
        for source, run in groupby(rows, key=lambda found: found[0])
    ]
    return JoinedPiece(piece.name, tensor.dtype, axis, tuple(parts))


def _new(stored: Mapping[str, StoredTensor], there: Mapping[str, Piece], base: PruneJob, plan: Plan) -> Iterator[Written]:
    """The tensors of new experts that are stored one by one, in the type in which the checkpoint has the others."""
    names = NameResolver(base.model)
    types = {EXPERT_NUMBER.sub("*", name): tensor.dtype for name, tensor in stored.items()}
    for name, tensor in base.stored.items():
        number, block = EXPERT_NUMBER.search(name), _block_of(names.destination(name).parameters[0], plan)
        if not number or not block or (expert := int(number[0])) in plan.experts.before_growth.kept[block]:
            continue
        if expert in plan.experts.kept[block]:
            new_name = EXPERT_NUMBER.sub(str(plan.experts.kept[block].index(expert)), name, count=1)
            whole = Piece(new_name, tensor, {0: np.arange(tensor.shape[0])})
            yield JoinedPiece(new_name, types[EXPERT_NUMBER.sub("*", name)], 0, (whole,))


def _block_of(parameter: str, plan: Plan) -> str | None:
    return next((name for name in plan.experts.kept if parameter.startswith(f"{name}.")), None)


def _places(plan: Plan, block: str) -> list[int]:
    """Where the experts of the checkpoint stand in the grown one."""
    return [at for at, where in enumerate(plan.experts.origin[block]) if where == "onto"]


def write_grown(job: GrowJob, config: ConfigFile, target: Path, facts: JsonObject) -> None:
    """Writes the grown checkpoint to `target`, by all ranks, verifies it and signs it with `facts` and the places of the new
    experts. Goes on from what an earlier attempt left. Raises PollardError where the disk is too small or cannot be written."""
    folder = partial_path(target)
    steps = WritingSteps(
        partial(_open, job, target), partial(_write, job, folder), partial(_write_rest, job, folder, config),
        partial(_verify, job, folder),
    )  # fmt: skip
    steps.run(target, facts | {"new": job.plan.experts.new})


def _open(job: GrowJob, target: Path) -> None:
    sources = [*stored_tensors(job.folder).values(), *stored_tensors(job.onto).values()]
    identity = source_fingerprint(job.onto, [job.plan.choice(), job.plan.experts_per_token], sources)
    if not is_resumable(target, identity):
        begin_folder(target, identity)
    check_room(partial_path(target), {name: sum(piece.bytes for piece in pieces) for name, pieces in job.shards.items()})


def _write(job: GrowJob, folder: Path) -> None:
    for name in shard(list(job.shards)):
        if not (folder / name).exists():
            write_file(folder / name, job.shards[name])


def _write_rest(job: GrowJob, folder: Path, config: ConfigFile) -> None:
    if len(job.shards) > 1:
        total = sum(piece.bytes for pieces in job.shards.values() for piece in pieces)
        write_index(folder, total, {piece.name: file for file, pieces in job.shards.items() for piece in pieces})
    write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")
    copy_companions(job.folder, folder)


def _verify(job: GrowJob, folder: Path) -> None:
    """This rank's share: every tensor, read through the safetensors library, is what its sources hold, bit for bit; the
    configuration describes the grown model; transformers opens the folder."""
    described, expected = shapes_of(meta_model(load_config(str(folder)))), shapes_of(job.grown)
    if described != expected:
        raise _not_as_planned("its configuration describes another model")
    for name in shard(list(job.shards)):
        with ExitStack() as stack:
            written = stack.enter_context(safe_open(folder / name, framework="pt"))
            for piece in job.shards[name]:
                if not _same_bits(written.get_tensor(piece.name), _expected(piece)):
                    (folder / name).unlink()
                    raise _not_as_planned(f"{piece.name} in {name} is not what was written there (is the disk sound?)")
    if is_main():
        check_opens(folder, job.onto)


def _expected(piece: Written) -> torch.Tensor:
    if isinstance(piece, Piece):
        return _stored(piece)
    parts = [_stored(row).index_select(piece.axis, torch.from_numpy(row.indices[piece.axis])) for row in piece.rows]
    return torch.cat([part.to(FLOATS[piece.dtype]) if piece.is_cast else part for part in parts], piece.axis)


def _stored(piece: Piece) -> torch.Tensor:
    with safe_open(piece.source.file, framework="pt") as file:
        tensor: torch.Tensor = file.get_tensor(piece.source.name)
        return tensor


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    alike = one.dtype == other.dtype and one.shape == other.shape
    return alike and torch.equal(one.reshape(-1).view(torch.uint8), other.contiguous().reshape(-1).view(torch.uint8))


def _not_as_planned(what: str) -> PollardError:
    return PollardError(
        f"The grown checkpoint is not what its two sources make: {what}. The same command writes it again; please report this if "
        "it stays.",
        code="grow.verification-failed",
    )
