"""Is the pruned checkpoint what the plan leaves of the original? Checked on the files, before the folder gets its name.

Shape legend: T tokens, H hidden size.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import convert_and_load_state_dict_in_model
from transformers.modeling_utils import LoadStateDictConfig

from toolkit.cuts.apply import masked, renamed, shapes_of
from toolkit.cuts.writer import PruneJob
from toolkit.moe.blocks import MoEBlock, find_blocks
from toolkit.moe.load import load_config, meta_model
from toolkit.moe.loading_checks import check_opens
from toolkit.moe.masking import routing_of
from toolkit.moe.names import NameResolver
from toolkit.moe.tensor_files import Piece, StoredTensor, stored_tensors
from toolkit.runtime.distributed import is_main, shard
from toolkit.runtime.errors import PollardError

# The pruned model sums the same products as the masked one, perhaps in another order: rounding of the dtype.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 5e-2, torch.float16: 5e-3}
TOKENS = 16


def verify(job: PruneJob, folder: Path, oracle: bool) -> None:
    """This rank's share of the checks of `folder`; raises PollardError where one fails.

    Every tensor is read back through the safetensors library and compared with the original's bytes, which costs reading
    both once. `oracle`: some blocks are run, too; memory holds one MoE block of the original. At last transformers alone opens
    the folder.
    """
    written = stored_tensors(folder)
    model = meta_model(load_config(str(folder)))
    check_shapes(job, written, model)
    for name in shard(list(job.shards)):
        check_bytes(folder / name, job.shards[name])
    if oracle:
        for name in shard(sampled_blocks(job)):
            check_block(job, written, model, name)
    if is_main():
        check_opens(folder, job.folder)


def sampled_blocks(job: PruneJob) -> list[str]:
    """The original's names of the first, the middle and the last MoE block that stays."""
    names = [block.name for block in find_blocks(job.model) if renamed(job.plan, block.name, block.name)]
    return list(dict.fromkeys([names[0], names[len(names) // 2], names[-1]]))


def check_shapes(job: PruneJob, written: Mapping[str, StoredTensor], model: PreTrainedModel) -> None:
    """Raises PollardError unless configuration, index and headers describe the pruned model."""
    before, expected, described = shapes_of(job.model), shapes_of(job.pruned), shapes_of(model)
    wrong = [name for name, shape in described.items() if shape != expected.get(name)]
    if wrong or len(expected) != len(described):
        raise verification_failed(f"its configuration describes another model ({', '.join(wrong[:3])})")
    planned = [piece for pieces in job.shards.values() for piece in pieces]
    if {name: tensor.shape for name, tensor in written.items()} != {piece.name: piece.shape for piece in planned}:
        raise verification_failed("its files and its index do not hold the tensors they should")
    old_names, new_names = NameResolver(job.model), NameResolver(job.pruned)
    for piece in planned:
        old, new = old_names.destination(piece.source.name), new_names.destination(piece.name)
        as_in_model = not old.converted and piece.source.shape == before.get(old.parameters[0])
        shape = expected.get(new.parameters[0], ())
        if as_in_model and piece.shape != shape:
            raise verification_failed(f"{piece.name} is {list(piece.shape)}, and the pruned model has {list(shape)}")


def check_bytes(file: Path, pieces: Sequence[Piece]) -> None:
    """Raises PollardError unless every tensor of a written file is bit for bit what stays of the original's."""
    with ExitStack() as stack:
        files = {path: stack.enter_context(safe_open(path, framework="pt")) for path in {file, *(p.source.file for p in pieces)}}
        for piece in pieces:
            old, new = files[piece.source.file].get_tensor(piece.source.name), files[file].get_tensor(piece.name)
            if old.dtype != new.dtype or not all(torch.equal(_bits(a), _bits(b)) for a, b in _pairs(old, new, piece)):
                file.unlink()
                raise PollardError(
                    f"{piece.name} in {file} is not what was written there: is the disk sound? The file is removed, and the "
                    "same command writes it again.",
                    code="prune.file-damaged",
                )


def _pairs(old: torch.Tensor, new: torch.Tensor, piece: Piece) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """What must be equal, index by index along the first axis that is cut: picked all at once it would be copied."""
    tables = [axis for axis, indices in piece.indices.items() if indices.ndim > 1]
    if not piece.indices:
        yield old, new
    elif tables:  # of every expert others
        experts = piece.indices.get(0, np.arange(old.shape[0]))
        for row, expert in enumerate(experts):
            rest = {axis - 1: found if found.ndim == 1 else found[row] for axis, found in piece.indices.items() if axis}
            yield from _pairs(old[int(expert)], new[row], Piece(piece.name, piece.source, rest))
    else:
        first, *others = sorted(piece.indices)
        for index, part in zip(piece.indices[first], new.unbind(first), strict=True):
            kept = old.select(first, int(index))
            for axis in others:
                kept = kept.index_select(axis - 1, torch.from_numpy(piece.indices[axis]))
            yield kept, part


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    flat = tensor.reshape(-1)
    return (flat if flat.stride(0) == 1 else flat.clone(memory_format=torch.contiguous_format)).view(torch.uint8)


def check_block(job: PruneJob, written: Mapping[str, StoredTensor], model: PreTrainedModel, name: str) -> None:
    """The oracle on one block, called `name` in the original: the original's, masked, answers as the written one."""
    hidden_TH = torch.randn(TOKENS, model.config.get_text_config().hidden_size, generator=torch.Generator().manual_seed(0))
    block = load_block(job.model, job.stored, name)
    with masked(job.model, job.plan):
        expected = _answer(block, hidden_TH)
    block.module.to("meta")  # the two are never in memory together
    block = load_block(model, written, renamed(job.plan, name, name) or name)
    actual = _answer(block, hidden_TH)
    block.module.to("meta")
    gap, size = (actual - expected).abs().max().item(), expected.abs().max().item()
    if not gap <= TOLERANCE[expected.dtype] * size:
        raise verification_failed(f"outputs of {name} differ by {gap:.3g} of {size:.3g}")


def verification_failed(what: str) -> PollardError:
    """The error for a checkpoint that was written, and is not what it should be."""
    return PollardError(
        f"The pruned checkpoint is not what the plan leaves of the original: {what}. Please report this.",
        code="prune.verification-failed",
    )


def load_block(model: PreTrainedModel, stored: Mapping[str, StoredTensor], name: str) -> MoEBlock:
    """The block of that name of a model without weights, with its weights from the files, as transformers loads them."""
    names = NameResolver(model)
    of_block = [stored[key] for key in stored if any(p.startswith(name + ".") for p in names.destination(key).parameters)]
    with ExitStack() as stack:
        files = {file: stack.enter_context(safe_open(file, framework="pt")) for file in {tensor.file for tensor in of_block}}
        weights = {tensor.name: files[tensor.file].get_slice(tensor.name) for tensor in of_block}
        settings = LoadStateDictConfig(dtype=model.dtype, weight_mapping=get_model_conversion_mapping(model))  # type: ignore[arg-type]
        convert_and_load_state_dict_in_model(model, weights, settings)
    model.eval().set_experts_implementation("eager")  # the others do not know every dtype
    block = next(block for block in find_blocks(model) if block.name == name)
    missing = [part for part, tensor in block.module.state_dict().items() if tensor.is_meta]
    if missing:
        raise PollardError(
            f"{name} cannot be loaded by itself: {len(missing)} tensors ({missing[0]}, …) were not read.",
            code="prune.block-not-loaded",
        )
    return block


@torch.no_grad()
def _answer(block: MoEBlock, hidden_TH: torch.Tensor) -> torch.Tensor:
    hidden_TH = hidden_TH.to(next(block.experts.parameters()).dtype)
    try:
        out = block.module(hidden_TH[None])
    except TypeError:  # the block is the decoder layer itself (Gemma 4): its router and experts, without the attention
        out = block.experts(hidden_TH, *routing_of(block.router(hidden_TH)))
    return out[0] if isinstance(out, tuple) else out
