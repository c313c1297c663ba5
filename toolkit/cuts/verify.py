"""Is the pruned checkpoint the original without its pruned experts? Asked of the files, before the folder gets its name.

Shape legend: T tokens, H hidden size.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import convert_and_load_state_dict_in_model
from transformers.modeling_utils import LoadStateDictConfig

from toolkit.cuts.writer import PruneJob
from toolkit.moe.blocks import MoEBlock, find_blocks
from toolkit.moe.load import load_config, meta_model
from toolkit.moe.loading_checks import check_opens
from toolkit.moe.masking import restricted, routing_of
from toolkit.moe.names import NameResolver
from toolkit.moe.tensor_files import Piece, StoredTensor, stored_tensors
from toolkit.runtime.distributed import is_main, shard
from toolkit.runtime.errors import PollardError

# The sliced model sums the same products as the masked one, perhaps in another order: rounding of the dtype.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 5e-2, torch.float16: 5e-3}
TOKENS = 16
VERIFICATION_FAILED = "The pruned checkpoint is not the original without its pruned experts: {}. Please report this."


def verify(job: PruneJob, folder: Path, oracle: bool) -> None:
    """This rank's share of the checks of `folder`; raises PollardError where one fails.

    Every tensor is read back through the safetensors library and compared with the original's bytes, which costs reading
    both once. Memory: one MoE block of the original, for the oracle. At last transformers alone opens the folder.
    """
    written = stored_tensors(folder)
    model = meta_model(load_config(str(folder)))
    check_shapes(job, written, model)
    for name in shard(list(job.shards)):
        check_bytes(folder / name, job.shards[name])
    if oracle:
        for name in shard(sampled_blocks(job.model)):
            check_block(job, written, model, name)
    if is_main():
        check_opens(folder, job.folder)


def sampled_blocks(model: PreTrainedModel) -> list[str]:
    """Names of the first, the middle and the last block."""
    names = [block.name for block in find_blocks(model)]
    return list(dict.fromkeys([names[0], names[len(names) // 2], names[-1]]))


def check_shapes(job: PruneJob, written: Mapping[str, StoredTensor], model: PreTrainedModel) -> None:
    """Configuration, index and headers say what the sliced model is."""
    expected = {name: tensor.shape for name, tensor in job.sliced.state_dict().items()}
    wrong = {name: shape for name, shape in _shapes(model).items() if shape != expected.get(name)}
    if wrong or len(expected) != len(model.state_dict()):
        raise PollardError(
            VERIFICATION_FAILED.format(f"its configuration describes another model ({', '.join(list(wrong)[:3])})")
        )
    planned = {piece.name: piece.shape for pieces in job.shards.values() for piece in pieces}
    if {name: tensor.shape for name, tensor in written.items()} != planned:
        raise PollardError(VERIFICATION_FAILED.format("its files and its index do not hold the tensors they should"))
    names, before = NameResolver(job.sliced), _shapes(job.model)
    for name, shape in planned.items():
        home = names.destination(name)
        parameter = home.parameters[0]
        stays = name in job.stored and job.stored[name].shape == before.get(parameter)  # stored in the model's own shape
        if not home.converted and stays and shape != expected[parameter]:
            raise PollardError(
                VERIFICATION_FAILED.format(f"{name} is {list(shape)}, and the sliced model has {list(expected[parameter])}")
            )


def _shapes(model: PreTrainedModel) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def check_bytes(file: Path, pieces: Sequence[Piece]) -> None:
    """Every tensor of a written file is bit for bit what stays of the original's."""
    with ExitStack() as stack:
        files = {path: stack.enter_context(safe_open(path, framework="pt")) for path in {file, *(p.source.file for p in pieces)}}
        for piece in pieces:
            old, new = files[piece.source.file].get_tensor(piece.source.name), files[file].get_tensor(piece.name)
            if old.dtype != new.dtype or not all(torch.equal(_bits(a), _bits(b)) for a, b in _pairs(old, new, piece)):
                file.unlink()
                raise PollardError(
                    f"{piece.name} in {file} is not what was written there: is the disk sound? The file is removed, and the "
                    "same command writes it again."
                )


def _pairs(old: torch.Tensor, new: torch.Tensor, piece: Piece) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Row by row where rows stay: picked together they would be copied."""
    if piece.rows is None:
        yield old, new
    else:
        yield from zip((old.flatten(0, piece.axis)[row] for row in piece.rows), new.flatten(0, piece.axis), strict=True)


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def check_block(job: PruneJob, written: Mapping[str, StoredTensor], model: PreTrainedModel, name: str) -> None:
    """The oracle on one block: the original's, its router restricted to the kept experts, answers as the written one."""
    hidden_TH = torch.randn(TOKENS, model.config.get_text_config().hidden_size, generator=torch.Generator().manual_seed(0))
    kept = job.plan.blocks[name].kept
    block = load_block(job.model, job.stored, name)
    with restricted(block, kept, job.plan.experts_per_token):
        expected = _answer(block, hidden_TH)
    block.module.to("meta")  # the two are never in memory together
    block = load_block(model, written, name)
    found = _answer(block, hidden_TH)
    block.module.to("meta")
    gap, size = (found - expected).abs().max().item(), expected.abs().max().item()
    if not gap <= TOLERANCE[expected.dtype] * size:
        raise PollardError(VERIFICATION_FAILED.format(f"outputs of {name} differ by {gap:.3g} of {size:.3g}"))


def load_block(model: PreTrainedModel, stored: Mapping[str, StoredTensor], name: str) -> MoEBlock:
    """The block of that name of a model without weights, with its weights from the files, as transformers loads them."""
    names = NameResolver(model)
    mine = [stored[key] for key in stored if any(p.startswith(name + ".") for p in names.destination(key).parameters)]
    with ExitStack() as stack:
        files = {file: stack.enter_context(safe_open(file, framework="pt")) for file in {tensor.file for tensor in mine}}
        weights = {tensor.name: files[tensor.file].get_slice(tensor.name) for tensor in mine}
        settings = LoadStateDictConfig(dtype=model.dtype, weight_mapping=get_model_conversion_mapping(model))  # type: ignore[arg-type]
        convert_and_load_state_dict_in_model(model, weights, settings)
    model.eval().set_experts_implementation("eager")  # the others do not know every dtype
    block = next(block for block in find_blocks(model) if block.name == name)
    missing = [part for part, tensor in block.module.state_dict().items() if tensor.is_meta]
    if missing:
        raise PollardError(f"{name} cannot be loaded by itself: {len(missing)} tensors ({missing[0]}, …) were not read.")
    return block


@torch.no_grad()
def _answer(block: MoEBlock, hidden_TH: torch.Tensor) -> torch.Tensor:
    hidden_TH = hidden_TH.to(next(block.experts.parameters()).dtype)
    try:
        out = block.module(hidden_TH[None])
    except TypeError:  # the block is the decoder layer itself (Gemma 4): its router and experts, without the attention
        out = block.experts(hidden_TH, *routing_of(block.router(hidden_TH)))
    return out[0] if isinstance(out, tuple) else out
