"""Write an upcycled checkpoint: one decoder layer in memory, its files shared out over ranks.

Files that are whole stay in `<target>.tmp` when something stops the work, and the same command goes on from there.

Shape legend: B sequences, S positions.
"""

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from transformers.core_model_loading import revert_weight_conversion

from toolkit.cuts import tensor_writer
from toolkit.cuts.cut import ConfigFile
from toolkit.cuts.dense_twins import opens_with
from toolkit.cuts.experts import ExpertsCut
from toolkit.cuts.tensor_writer import difference, part_of, part_sizes, parts_by_file, saved_tensors, stored_files, write_tensors
from toolkit.cuts.upcycling.families import Upcycled, experts_settings
from toolkit.cuts.upcycling.forms import Form
from toolkit.cuts.upcycling.source import DenseCheckpoint, DenseSource, streamed_logits
from toolkit.cuts.upcycling.tensors import upcycled_tensors
from toolkit.cuts.verify import TOLERANCE
from toolkit.cuts.writer import WritingSteps, check_room
from toolkit.moe.layers import decoder_layers
from toolkit.moe.loading_checks import check_opens
from toolkit.moe.model_files import copy_companions, write_index
from toolkit.moe.stream import StreamedModel
from toolkit.runtime.distributed import is_main, shard
from toolkit.runtime.errors import PollardError
from toolkit.runtime.files import JsonObject, fingerprint_of, fingerprint_of_source, write_text
from toolkit.runtime.progress import progress
from toolkit.runtime.signed_folders import begin_folder, is_resumable, partial_path

PROBE = (2, 24)  # [B, S] of the random tokens by which the dense and the upcycled model are compared


class UpcycleJob(NamedTuple):
    """What is written, decided from the configuration; the same on every rank."""

    checkpoint: DenseCheckpoint
    source: DenseSource
    upcycled: Upcycled
    form: Form
    layers_path: str
    files: dict[str, list[str]]  # per file the prefixes of the names of its tensors: of layers, or "" for the rest
    sizes: dict[str, int]  # bytes, by prefix


def plan_upcycle(checkpoint: DenseCheckpoint, upcycled: Upcycled, form: Form) -> UpcycleJob:
    source, layers_path = checkpoint.open(), decoder_layers(upcycled.dense)[0]
    sizes = part_sizes(upcycled.model, layers_path, source.dtype)
    return UpcycleJob(checkpoint, source, upcycled, form, layers_path, parts_by_file(sizes), sizes)


def write_upcycled(job: UpcycleJob, target: Path, facts: JsonObject) -> None:
    """Writes the checkpoint to `target`, by all ranks, and signs it with `facts`. Raises PollardError where the disk is too small
    and where the result is not what it should be; nothing is changed at `target` then."""
    partial_folder = partial_path(target)
    steps = WritingSteps(
        partial(_open, job, target), partial(_write, job, partial_folder), partial(_write_rest, job, partial_folder),
        partial(_verify, job, partial_folder),
    )  # fmt: skip
    steps.run(target, facts)


def _open(job: UpcycleJob, target: Path) -> None:
    source = fingerprint_of_source(str(job.checkpoint.gguf or job.checkpoint.folder))
    identity = fingerprint_of(source, job.form.name, asdict(job.form), tensor_writer.FILE_BYTES)
    if not is_resumable(target, identity):
        begin_folder(target, identity)
    check_room(partial_path(target), {name: sum(job.sizes[p] for p in prefixes) for name, prefixes in job.files.items()})


def _write(job: UpcycleJob, partial_folder: Path) -> None:
    """This rank's share of the files."""
    mine = [name for name in shard(list(job.files)) if not (partial_folder / name).exists()]
    for name in progress(mine, "writing the mixture", total=len(mine)):
        tensors: dict[str, torch.Tensor] = {}
        for prefix in job.files[name]:
            tensors |= revert_weight_conversion(job.upcycled.model, _tensors(job, prefix))
        write_tensors(partial_folder / name, tensors)


def _tensors(job: UpcycleJob, prefix: str) -> dict[str, torch.Tensor]:
    """The tensors of one layer, or of all that is outside of the layers."""
    wanted = [name for name in saved_tensors(job.upcycled.model) if part_of(name, job.layers_path) == prefix]
    if not prefix:
        with job.source.rest() as dense:
            there = dense.state_dict()
            return {name: there[name].contiguous() for name in wanted}
    with job.source.layer(int(prefix.rstrip(".").rpartition(".")[2])) as dense:
        found = upcycled_tensors(dense, job.upcycled.model, job.upcycled.places, job.form, prefix)
        return {name: found[name].contiguous() for name in wanted}


def _write_rest(job: UpcycleJob, partial_folder: Path) -> None:
    """Index and configuration, and the companion files."""
    if len(job.files) > 1:
        write_index(partial_folder, sum(job.sizes.values()), stored_files(partial_folder, list(job.files)))
    if job.checkpoint.gguf:
        job.checkpoint.save_tokenizer(partial_folder)
    else:
        copy_companions(job.checkpoint.folder, partial_folder)
    write_text(partial_folder / "config.json", json.dumps(upcycled_config(job), indent=2) + "\n")


def upcycled_config(job: UpcycleJob) -> ConfigFile:
    """The mixture's configuration file: every key of the dense model's that is none of its family alone."""
    dense, config = job.upcycled.dense.config, job.upcycled.model.config
    file = job.checkpoint.folder / "config.json"
    written: ConfigFile = {} if job.checkpoint.gguf else json.loads(file.read_text(encoding="utf-8"))
    after, differing = (json.loads(config.to_json_string(use_diff=diff)) for diff in (False, True))
    known = {key: after[key] for key in (*written, *experts_settings(job.form, 1)) if key in after}
    dtypes = {key: written[key] for key in ("dtype", "torch_dtype") if key in written}
    if job.checkpoint.gguf:
        dtypes = {"dtype": str(job.source.dtype).removeprefix("torch.")}
    of_family = {*type(dense)().to_dict(), "auto_map", "transformers_weights"}
    others = {key: value for key, value in written.items() if key not in of_family}
    for key in ("_name_or_path", "dtype"):
        differing.pop(key, None)
    spelled = ExpertsCut.config(config)  # transformers 5 saves one spelling, version 4 reads another
    return others | differing | known | spelled | dtypes | {"architectures": [opens_with(config)]}


def _verify(job: UpcycleJob, partial_folder: Path) -> None:
    """The configuration describes the mixture, its tensors and no others are there, it answers as the dense model does where the
    form is exact, and stock transformers opens the folder."""
    if not is_main():
        return
    if fault := difference(partial_folder, job.upcycled.model):
        raise _failed(fault)
    if job.form.is_exact:
        _check_logits(job, partial_folder)
    check_opens(partial_folder, job.checkpoint.folder)


def _check_logits(job: UpcycleJob, partial_folder: Path) -> None:
    """In float32, whatever the numbers are stored as: what both compute is then the same but for rounding."""
    vocabulary = int(job.upcycled.dense.config.vocab_size)
    ids_BS = torch.randint(vocabulary, PROBE, generator=torch.Generator().manual_seed(0))
    expected = job.source.float32_logits(ids_BS)
    found = streamed_logits(StreamedModel(str(partial_folder), dtype="float32"), ids_BS)
    gap, largest = (found - expected).abs().max().item(), expected.abs().max().item()
    if not gap <= TOLERANCE[torch.float32] * max(largest, 1.0):
        raise _failed(f"it does not answer as the dense model (logits differ by {gap:.3g} of {largest:.3g})")


def _failed(what: str) -> PollardError:
    return PollardError(
        f"The upcycled checkpoint is not what it should be: {what}. Please report this.", code="upcycle.verification-failed"
    )
