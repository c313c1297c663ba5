"""Checkpoint folders: prune one into another, write one so that every reader finds what it looks for."""

import json
import math
import os
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from toolkit.cuts.apply import apply_plan, masked
from toolkit.cuts.cut import ConfigFile, UnknownLayoutError
from toolkit.cuts.dense_writer import check_dense, write_dense
from toolkit.cuts.experts import ExpertsCut
from toolkit.cuts.grow import plan_growth, write_grown
from toolkit.cuts.plan import KINDS, Plan
from toolkit.cuts.verify import TOLERANCE, sampled_blocks, verification_failed, verify
from toolkit.cuts.writer import PruneJob, plan_prune, source_fingerprint, write_pruned
from toolkit.moe.load import DEQUANTIZED, checkpoint_folder, load_config, load_model, quantization_of
from toolkit.moe.loading_checks import check_opens
from toolkit.moe.model_files import checkpoint_files, copy_companions
from toolkit.moe.names import MTP_COUNT_KEYS
from toolkit.moe.tensor_files import stored_tensors
from toolkit.runtime.distributed import on_all_ranks, on_main, say
from toolkit.runtime.errors import PollardError
from toolkit.runtime.files import write_text
from toolkit.runtime.signed_folders import (
    check_target,
    provenance,
    read_provenance,
    remove_own,
    sign,
    whole_folder,
)

PROBE_TOKENS = 32
EXPERTS_FOLDER = ".moe"  # added to the name of a dense checkpoint's folder: what it is made of, until it is there
QUANTIZATION_KEYS = ("quantization_config", "compression_config")
# Layers that predict further tokens are no part of the model that transformers loads and saves: written without them,
# a checkpoint must not promise them
MTP_KEYS = ("num_nextn_predict_layers", "num_mtp_layers", "mtp_num_hidden_layers")


def prune_checkpoint(
    source: str | Path, plan: Plan, target: str | Path, revision: str | None = None, overwrite: bool = False
) -> None:
    """Writes what `plan` keeps of the checkpoint `source` (a folder or a hub id) to `target`; every rank must call it.

    Tensors keep their names, dtypes and, where they are quantized, their scales; memory holds no more than one MoE block.
    A checkpoint whose layout can only be understood by loading it is loaded whole, by rank 0, which a line reports. The result
    is verified before it gets its name. `overwrite` replaces a checkpoint that Pollard wrote to `target` before; whatever else
    is there stays, and is an error. Raises PollardError for that, and when the plan does not fit the model, the source is
    damaged, the target cannot be written or the verification fails; nothing is changed at `target` then.
    A plan that grows is written with the tensors of the checkpoint that it grows onto (toolkit/cuts/grow.py).
    """
    source, target = os.path.expanduser(source), Path(target).expanduser()
    if target.name in ("", ".."):
        target = Path(os.path.abspath(target))
    folder = on_all_ranks(lambda: checkpoint_folder(source, revision))

    def check() -> None:
        check_apart(folder, target)
        check_target(target, overwrite)

    on_main(check)
    if plan.form == "dense":
        _prune_dense(source, folder, plan, target, revision)
        return
    if (cut := plan.cut(ExpertsCut)) and cut.onto:
        _grow(source, folder, plan, target, revision)
        return
    quantized = quantization_of(load_config(str(folder)))
    facts = provenance("pruned checkpoint", source, revision) | {"plan": plan.summary()}
    try:
        job = on_all_ranks(lambda: plan_prune(folder, plan))
    except UnknownLayoutError as reason:
        if quantized:
            raise PollardError(
                f"{source} is quantized ({quantized}) in a layout that cannot be pruned: {reason}.",
                code="prune.quantized-layout",
            ) from None
        say(f"  the whole model is loaded, for its files alone do not say what is where: {reason}")
        on_main(lambda: _prune_in_memory(source, plan, target, revision, facts))
        return
    write_pruned(job, pruned_config(job), target, partial(verify, job, oracle=not quantized), facts)
    blocks = f"; {', '.join(sampled_blocks(job))} answer as the masked original's" * (not quantized)
    say(f"  every tensor of the pruned checkpoint is the original's, bit for bit{blocks}")
    if job.modules.summary:
        say(f"  {job.modules.summary}")
    if quantized:
        cure = "it cannot be fine-tuned here as it is: train its bfloat16 copy, pruned with the same plan"
        trained = "fine-tuning dequantizes it" if quantized in DEQUANTIZED else cure
        say(f"  it stays quantized ({quantized}) as the original is; {trained}")


def _prune_dense(source: str, folder: Path, plan: Plan, target: Path, revision: str | None) -> None:
    """First what the cuts leave, as a mixture of experts in a folder of its own, then its dense form. Either is resumed."""
    on_all_ranks(lambda: check_dense(load_config(str(folder)), plan))
    experts = target.with_name(f"{target.name}{EXPERTS_FOLDER}")
    stored = on_all_ranks(lambda: stored_tensors(folder) if checkpoint_files(folder).safetensors else {})
    made_by = source_fingerprint(folder, [plan.without_form.choice(), plan.experts_per_token], stored.values())
    if not stored or (read_provenance(experts) or {}).get("made_by_choice") != made_by:
        prune_checkpoint(source, plan.without_form, experts, revision, overwrite=True)
        on_main(lambda: sign(experts, (read_provenance(experts) or {}) | {"made_by_choice": made_by}))
    twin = write_dense(experts, plan, target, provenance("pruned checkpoint", source, revision) | {"plan": plan.summary()})
    on_main(lambda: remove_own(experts))
    family = "the same family with every layer dense" if twin.is_itself else f"a {twin.model.config.model_type} model"
    say(f"  dense: {family}, feed-forward layers of {twin.width:,} channels in place of {len(twin.layers)} MoE blocks")


def _grow(source: str, folder: Path, plan: Plan, target: Path, revision: str | None) -> None:
    """The checkpoint that the plan grows onto, with further experts of the original's."""
    onto = Path(str(plan.experts.onto))
    on_main(lambda: check_apart(onto, target, "grown checkpoint", "checkpoint that grows"))
    job = on_all_ranks(lambda: plan_growth(folder, plan))
    facts = provenance("grown checkpoint", source, revision) | {"plan": plan.summary()}
    write_grown(job, _carried_config(onto, job.grown.config), target, facts)
    say(f"  every tensor of {onto} is there, bit for bit; so is every new expert of the original's{job.casts}")


def check_apart(folder: Path, target: Path, made: str = "pruned checkpoint", of: str = "original") -> None:
    """Raises PollardError where what is made of the checkpoint in `folder` would replace, or lie in, what is not its own."""
    here, there = folder.resolve(), target.resolve()
    if there == here:
        raise PollardError(f"The {made} would replace the {of}, {folder}. Give another place.", code="prune.replaces-original")
    if here in there.parents:
        raise PollardError(
            f"The {made} would lie in the {of}'s folder, {folder}. Give another place.", code="prune.inside-original"
        )
    if there in here.parents:
        raise PollardError(
            f"The {of}, {folder}, lies in {target}, which would be replaced. Give another place.", code="prune.contains-original"
        )


def _prune_in_memory(source: str, plan: Plan, target: Path, revision: str | None, facts: dict[str, Any]) -> None:
    """Loads, prunes and saves the model: verified by its logits, those of the reloaded model exactly, and
    those of the masked original up to rounding (1e-5 of the largest logit in float32)."""
    model = load_model(source, revision, dtype="checkpoint", skipping=False)
    vocabulary = int(model.config.get_text_config().vocab_size)
    probe = torch.randint(vocabulary, (1, PROBE_TOKENS), generator=torch.Generator().manual_seed(0))
    with masked(model, plan):
        expected = _logits(model, probe)
    sliced = _logits(copied_from_file(apply_plan(model, plan)), probe)
    with whole_folder(target, facts) as folder:
        write_checkpoint(model, folder)
        complete_checkpoint(checkpoint_folder(source, revision), folder, model.config)
        del model
        reloaded = _logits(copied_from_file(load_model(str(folder), dtype="checkpoint")), probe)
        if not torch.equal(reloaded, sliced):
            gap = (reloaded - sliced).abs().max().item()
            raise PollardError(
                f"The pruned checkpoint does not reload as it was written (logits differ by {gap:.3g}). Please report this.",
                code="prune.verification-failed",
            )
        gap = ((sliced - expected).abs().max() / expected.abs().max().clamp(min=1.0)).item()
        if not gap <= TOLERANCE[expected.dtype]:
            raise verification_failed(f"logits differ by {gap:.3g}")


def copied_from_file(model: PreTrainedModel) -> PreTrainedModel:
    """`model` with its weights copied out of the memory-mapped file.

    How a CPU rounds a product depends on where in memory the matrix begins: without this, equal weights give logits that
    differ in the last bit, and nothing can be shown to be exactly equal.
    """
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data = tensor.data.clone()
    return model


@torch.no_grad()
def _logits(model: PreTrainedModel, probe: torch.Tensor) -> torch.Tensor:
    return model(probe, use_cache=False).logits


def write_checkpoint(model: PreTrainedModel, folder: Path, state_dict: dict[str, torch.Tensor] | None = None) -> None:
    """`save_pretrained`, with the counts that cuts change under every name that a reader of this family may look for."""
    model.save_pretrained(folder, state_dict=state_dict)
    path = folder / "config.json"
    written = json.loads(path.read_text())
    _complete(written, model.config)
    write_text(path, json.dumps(written, indent=2, sort_keys=True) + "\n")


def complete_checkpoint(source: Path, folder: Path, config: Any, trained_in: torch.dtype | None = None) -> None:
    """Completes a `folder` that has weights only: with the companions of `source`, the checkpoint that they were made from, and
    its configuration with the counts of `config` (of the model that was written).

    `trained_in`: weights that were trained are plain numbers of that type, whatever the source's are. Raises PollardError
    where transformers then cannot open the folder.
    """
    written = _carried_config(source, config)
    if trained_in is not None:
        dtype = str(trained_in).removeprefix("torch.")
        _set_plain(written, dtype)
        written["dtype"] = dtype
    write_text(folder / "config.json", json.dumps(written, indent=2) + "\n")
    (folder / "generation_config.json").unlink(missing_ok=True)  # what save_pretrained made up, where the source has none
    copy_companions(source, folder)
    check_opens(folder, source)


def _carried_config(source: Path, config: Any) -> ConfigFile:
    """The source's configuration file, every key of it, with the numbers that `config` changes."""
    written = _config_file(source)
    part = _part_for(written, config)
    if part is not written:  # the language model alone was written, of one that has several parts
        own = json.loads(config.to_json_string(use_diff=False))
        written = own | {key: value for key, value in part.items() if key in own}
    _complete(written, config)
    return written


def _config_file(folder: Path) -> ConfigFile:
    """The configuration file, without the name of a weights file that is not written under it."""
    written: ConfigFile = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    written.pop("transformers_weights", None)
    return written


def _part_for(written: ConfigFile, config: Any) -> ConfigFile:
    """The part of a configuration file that describes the model of `config`: transformers opens some models of several parts as
    their language model alone."""
    parts = [written, *(part for part in written.values() if isinstance(part, dict))]
    return next((part for part in parts if part.get("model_type") == config.model_type), written)


def _set_plain(written: ConfigFile, dtype: str) -> None:
    """Marks the weights of all parts of a model as plain numbers of this type."""
    for key in QUANTIZATION_KEYS:
        written.pop(key, None)
    for key in {"dtype", "torch_dtype"} & written.keys():
        written[key] = dtype
    for part in written.values():
        if isinstance(part, dict):
            _set_plain(part, dtype)


def pruned_config(job: PruneJob) -> ConfigFile:
    """The original's configuration file as it is, but for the numbers that pruning changes."""
    written = _config_file(job.folder)
    _complete(_part_for(written, job.pruned.config), job.pruned.config)
    return job.modules.renumbered_config(written)


def _complete(written: ConfigFile, config: Any) -> None:
    """Writes every spelling of the counts that cuts change: transformers 5 saves one, version 4 reads another."""
    for kind in KINDS:
        kind.update_config(written, config)
    promises = {*MTP_KEYS, *(key for key, value in written.items() if MTP_COUNT_KEYS.match(key) and type(value) is int)}
    written.update({key: 0 for key in sorted(promises) if written.get(key) or getattr(config, key, None)})
    for part in config.sub_configs:  # text_config of a multimodal model
        if isinstance(written.get(part), dict):
            _complete(written[part], getattr(config, part))


def check_whole(folder: Path, needed: int) -> None:
    """Raises PollardError unless the checkpoint in `folder` holds `needed` numbers or more."""
    if sum(math.prod(shape) for shape in tensor_shapes(folder).values()) < needed:
        raise PollardError(
            "The trained checkpoint lacks tensors of the model. "
            "Is `stage3_gather_16bit_weights_on_model_save` set in the DeepSpeed configuration?",
            code="recovery.checkpoint-incomplete",
        )


def tensor_shapes(folder: str | Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors in a checkpoint folder, read from the files' headers."""
    return {name: tensor.shape for name, tensor in stored_tensors(Path(folder)).items()}
