"""Write the dense form of a checkpoint of experts: one decoder layer in memory, its files shared out over ranks.

    pruned.moe/   what the plan's cuts leave, as a mixture of experts; removed when the dense form is there
    pruned/       its dense twin: every tensor outside the experts as it was, one feed-forward layer in place of each block

Files that are whole stay in `<target>.tmp` when something stops the work, and the same command goes on from there.

Shape legend: T tokens, H hidden size.
"""

import copy
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from toolkit.cuts import tensor_writer
from toolkit.cuts.apply import apply_plan
from toolkit.cuts.cut import ConfigFile
from toolkit.cuts.dense import DenseBlock, check_coefficients, dense_tensors, with_fixed_gates
from toolkit.cuts.dense_twins import DenseLayer, DenseTwin, dense_twin, no_twin, opens_with
from toolkit.cuts.plan import Plan
from toolkit.cuts.tensor_writer import difference, part_of, part_sizes, parts_by_file, saved_tensors, stored_files, write_tensors
from toolkit.cuts.verify import TOKENS, TOLERANCE
from toolkit.cuts.writer import WritingSteps, check_room, source_fingerprint
from toolkit.moe.blocks import EXPERT_KEYS, TOP_K_KEYS
from toolkit.moe.load import load_config, meta_model, quantization_of
from toolkit.moe.loading_checks import check_opens
from toolkit.moe.model_files import copy_companions, write_index
from toolkit.moe.names import NameResolver
from toolkit.moe.partition import layer_prefix
from toolkit.moe.stream import StreamedModel
from toolkit.moe.tensor_files import StoredTensor, stored_tensors
from toolkit.runtime.distributed import is_main, on_all_ranks, shard
from toolkit.runtime.errors import PollardError
from toolkit.runtime.files import JsonObject, write_text
from toolkit.runtime.progress import progress
from toolkit.runtime.signed_folders import begin_folder, is_resumable, partial_path


def check_dense(config: Any, plan: Plan) -> None:
    """Raises PollardError where what `plan` leaves of a model cannot be written in the dense form."""
    if quantized := quantization_of(config):
        raise PollardError(
            f"The weights are quantized ({quantized}), and the dense form multiplies them by numbers: start from the "
            "model's bfloat16 copy, or leave pruning.form out.",
            code="dense.quantized",
        )
    dense_twin(apply_plan(meta_model(copy.deepcopy(config)), plan))


class DenseJob(NamedTuple):
    """What is written, decided from headers and configuration; the same on every rank."""

    folder: Path  # the checkpoint of experts
    model: PreTrainedModel  # without weights
    twin: DenseTwin
    blocks: Mapping[str, DenseBlock]
    stored: dict[str, StoredTensor]
    files: dict[str, list[str]]  # per file the prefixes of the names of its tensors: of layers, or "" for the rest
    sizes: dict[str, int]  # bytes, by prefix


def plan_dense(folder: Path, blocks: Mapping[str, DenseBlock]) -> DenseJob:
    """Raises PollardError as `dense_twin`, `check_coefficients` and `stored_tensors` do."""
    model = meta_model(load_config(str(folder)))
    check_coefficients(model, blocks)
    twin = dense_twin(model)
    sizes = part_sizes(twin.model, _layers_path(twin), model.dtype)
    files = parts_by_file(sizes)
    return DenseJob(folder, model, twin, blocks, stored_tensors(folder), files, sizes)


def _layers_path(twin: DenseTwin) -> str:
    return layer_prefix(f"{twin.layers[0].block}.").rpartition(".")[0]


def write_dense(folder: Path, plan: Plan, target: Path, facts: JsonObject) -> DenseTwin:
    """Writes the dense form of the checkpoint in `folder`, which `plan` has left, to `target`, and signs it with `facts`. Every
    rank must call it.

    Raises PollardError where there is none, where the disk is too small and where the result is not what it should be; nothing
    is changed at `target` then.
    """
    job = on_all_ranks(lambda: plan_dense(folder, renamed_blocks(plan)))
    partial_folder = partial_path(target)
    steps = WritingSteps(
        partial(_open, job, target), partial(_write, job, partial_folder), partial(_write_rest, job, partial_folder),
        partial(_verify, job, partial_folder),
    )  # fmt: skip
    steps.run(target, facts)
    return job.twin


def renamed_blocks(plan: Plan) -> dict[str, DenseBlock]:
    """The plan's coefficients, by the names that blocks have in the pruned model."""
    names = {name: name for name in plan.dense or {}}
    for cut in plan.cuts:
        names = {name: cut.rename(now, now) or now for name, now in names.items()}
    return {names[name]: block for name, block in (plan.dense or {}).items()}


def _open(job: DenseJob, target: Path) -> None:
    decided_by = [{name: block.model_dump() for name, block in job.blocks.items()}, tensor_writer.FILE_BYTES]
    identity = source_fingerprint(job.folder, decided_by, job.stored.values())
    if not is_resumable(target, identity):
        begin_folder(target, identity)
    check_room(partial_path(target), {name: sum(job.sizes[p] for p in prefixes) for name, prefixes in job.files.items()})


def _write(job: DenseJob, partial_folder: Path) -> None:
    """This rank's share of the files."""
    mine = [name for name in shard(list(job.files)) if not (partial_folder / name).exists()]
    if not mine:
        return
    streamed = StreamedModel(str(job.folder), dtype="checkpoint")
    for name in progress(mine, "writing the dense form", total=len(mine)):
        tensors: dict[str, torch.Tensor] = {}
        for prefix in job.files[name]:
            tensors |= revert_weight_conversion(job.twin.model, _tensors(job, streamed, prefix))
        write_tensors(partial_folder / name, tensors)


def _tensors(job: DenseJob, streamed: StreamedModel, prefix: str) -> dict[str, torch.Tensor]:
    """The twin's tensors of one layer, or of all that is outside of the layers."""
    path = _layers_path(job.twin)
    wanted = [name for name in saved_tensors(job.twin.model) if part_of(name, path) == prefix]
    if prefix:
        with streamed.layer(int(prefix.rstrip(".").rpartition(".")[2])):
            found = dense_tensors(streamed.model, job.twin, job.blocks, prefix)
            return {name: found[name].contiguous() for name in wanted}
    there = streamed.model.state_dict()
    return {name: (_head(job, name) if there[name].is_meta else there[name]).contiguous() for name in wanted}


def _head(job: DenseJob, name: str) -> torch.Tensor:
    """A tensor that the base model does without, from the files: as it is, in the model's type."""
    names = NameResolver(job.model)
    stored = next(tensor for key, tensor in job.stored.items() if names.destination(key).parameters == (name,))
    with safe_open(stored.file, framework="pt") as file:
        return file.get_tensor(stored.name).to(job.model.dtype)


def _write_rest(job: DenseJob, partial_folder: Path) -> None:
    """Index and configuration, and the companion files."""
    if len(job.files) > 1:
        write_index(partial_folder, sum(job.sizes.values()), stored_files(partial_folder, list(job.files)))
    write_text(partial_folder / "config.json", json.dumps(dense_config(job), indent=2) + "\n")
    copy_companions(job.folder, partial_folder)


def dense_config(job: DenseJob) -> ConfigFile:
    """The twin's configuration file: every key of the original's that is no key of experts."""
    written: ConfigFile = json.loads((job.folder / "config.json").read_text(encoding="utf-8"))
    before, after = (json.loads(model.config.to_json_string(use_diff=False)) for model in (job.model, job.twin.model))
    if job.twin.is_itself:
        part = next(
            (p for p in [written, *written.values()] if isinstance(p, dict) and p.get("model_type") == before["model_type"]),
            written,
        )
        _update(part, before, after)
        for key in part.keys() & getattr(job.twin.model.config, "attribute_map", {}).keys():  # pruning writes every spelling
            part[key] = getattr(job.twin.model.config, key)
        return written
    after.pop("_name_or_path", None)
    known = {key: after[key] for key in written if key in after}  # also what is the default in this version: others may differ
    dtypes = {key: written[key] for key in ("dtype", "torch_dtype") if key in written}
    of_experts = {*type(job.model.config)().to_dict(), *EXPERT_KEYS, *TOP_K_KEYS, "auto_map"}
    others = {key: value for key, value in written.items() if key not in of_experts}
    differing = json.loads(job.twin.model.config.to_json_string())
    differing.pop("_name_or_path", None)
    return others | differing | known | dtypes | {"architectures": [opens_with(job.twin.model.config)]}


def _update(written: ConfigFile, before: ConfigFile, after: ConfigFile) -> None:
    """Writes what differs between two configurations."""
    for key, value in after.items():
        if isinstance(value, dict) and isinstance(before.get(key), dict) and isinstance(written.get(key), dict):
            _update(written[key], before[key], value)
        elif before.get(key) != value:
            written[key] = value


def _verify(job: DenseJob, partial_folder: Path) -> None:
    """This rank's share of the checks: the configuration describes the twin, its tensors and no others are there, sampled layers
    answer as the experts with fixed gate weights do, and stock transformers opens the folder."""
    if fault := difference(partial_folder, job.twin.model):
        raise _failed(fault)
    layers = job.twin.layers
    sampled = list(dict.fromkeys([layers[0], layers[len(layers) // 2], layers[-1]]))
    if mine := shard(sampled):
        experts, dense = (StreamedModel(str(path), dtype="checkpoint") for path in (job.folder, partial_folder))
        for layer in mine:
            _check_layer(job, experts, dense, layer)
    if is_main():
        check_opens(partial_folder, job.folder)


@torch.no_grad()
def _check_layer(job: DenseJob, experts: StreamedModel, dense: StreamedModel, layer: DenseLayer) -> None:
    number = int(layer_prefix(f"{layer.block}.").rpartition(".")[2])
    size = int(job.model.config.get_text_config().hidden_size)
    hidden_TH = torch.randn(TOKENS, size, generator=torch.Generator().manual_seed(0)).to(job.model.dtype)
    experts.model.set_experts_implementation("eager")  # the others do not know every dtype
    with experts.layer(number), with_fixed_gates(experts.model, {layer.block: job.blocks[layer.block]}):
        expected = _output(experts.model, layer.block, hidden_TH)
        for name in layer.shared:
            if not name.startswith(f"{layer.block}."):
                expected = expected + _output(experts.model, name, hidden_TH)
    with dense.layer(number):
        found = _output(dense.model, layer.mlp, hidden_TH)
    gap, largest = (found - expected).abs().max().item(), expected.abs().max().item()
    if not gap <= TOLERANCE[expected.dtype] * largest:
        raise no_twin(
            job.model, f"{layer.block} computes more than a sum over its experts (outputs differ by {gap:.3g} of {largest:.3g})"
        )


def _output(model: PreTrainedModel, name: str, hidden_TH: torch.Tensor) -> torch.Tensor:
    found = model.get_submodule(name)(hidden_TH[None])
    return (found[0] if isinstance(found, tuple) else found).reshape(hidden_TH.shape)


def _failed(what: str) -> PollardError:
    return PollardError(
        f"The dense checkpoint is not what it should be: {what}. Please report this.", code="prune.verification-failed"
    )
