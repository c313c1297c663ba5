"""Refit a checkpoint into another one: of the original and of the cut model one decoder layer each is in memory.

What is written is the cut checkpoint, byte for byte, with other values in the weights that were refit: transformers' own
conversion turns the model's parameters into the names and shapes that the files have.
"""

import os
import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedConfig
from transformers.core_model_loading import revert_weight_conversion

from toolkit.cuts.checkpoint import check_apart, complete_checkpoint, write_checkpoint
from toolkit.moe import (
    Batch,
    StreamedModel,
    checkpoint_files,
    checkpoint_folder,
    load_config,
    meta_model,
    open_layerwise,
    quantization_of,
)
from toolkit.moe.load import resolve_dtype
from toolkit.moe.loading_checks import check_opens
from toolkit.moe.model_files import INDEX, copy_companions
from toolkit.moe.residual_writers import writers_in
from toolkit.moe.tensor_files import Piece, StoredTensor, explain_write_errors, read_header, stored_tensors, write_file
from toolkit.recovery.refit.layer_files import LayerFiles
from toolkit.recovery.refit.passes import RefitModel, refit_layers
from toolkit.recovery.refit.results import RefitResult
from toolkit.runtime.distributed import gather, on_all_ranks, on_main, say
from toolkit.runtime.errors import PollardError
from toolkit.runtime.files import fingerprint_of, fingerprint_of_path
from toolkit.runtime.progress import progress
from toolkit.runtime.signed_folders import begin_folder, check_target, is_resumable, partial_path, provenance, put_in_place, sign


def refit_checkpoint(
    original: str | Path,
    pruned: str | Path,
    target: str | Path,
    batches: Sequence[Batch],
    kept_layers: Sequence[int] | None = None,
    revision: str | None = None,
    overwrite: bool = False,
) -> RefitResult:
    """Writes the checkpoint `pruned`, refit to what `original` (a folder or a hub id) computes on `batches`, to `target`.

    Every rank calls it, with batches of its own as for `calibrate`: `input_ids` and `attention_mask` [B, S]. A fifth of the
    sequences is held out. `kept_layers`: the layers of the original that `pruned` has, where it lacks some. `overwrite` replaces
    a checkpoint that Pollard wrote to `target` before. Interrupted, the same call goes on from the layers that are finished.

    Raises PollardError where `pruned` is not a cut of `original`, is quantized or normalises what its experts write; for too few
    examples; for numbers that are not finite; and for places that cannot be written. `target` is whole or not there.
    """
    original, pruned, target = os.path.expanduser(original), Path(pruned).expanduser(), Path(target).expanduser()
    source = on_all_ranks(lambda: checkpoint_folder(original, revision))
    folder = on_all_ranks(lambda: checkpoint_folder(str(pruned)))

    def check() -> None:
        check_apart(source, target, "refitted checkpoint")
        check_apart(folder, target, "refitted checkpoint", "pruned checkpoint")
        check_target(target, overwrite)
        _check_pair(load_config(str(source)), load_config(str(folder)), kept_layers)

    on_main(check)
    before = RefitModel(open_layerwise(original, revision=revision))
    after = RefitModel(open_layerwise(str(folder), _why_whole(folder)), _dtype(folder))
    kept = list(kept_layers or range(len(before.layers)))
    identity = fingerprint_of(
        fingerprint_of_path(source), fingerprint_of_path(folder), _identity(batches), kept, str(after.whole.dtype)
    )

    def begin() -> None:
        if not is_resumable(target, identity):
            begin_folder(target, identity)

    on_main(begin)
    files = LayerFiles(partial_path(target), after.path, after.stored_dtype)
    if finished := len(on_main(files.paths)):
        say(f"  {finished} of {len(after.layers)} layers are refit already: going on")
    result = refit_layers(before, after, batches, kept, files)

    def write() -> None:
        with explain_write_errors(target):
            _write(folder, after, files)
            check_opens(files.folder, folder)
            sign(files.folder, provenance("refitted checkpoint", str(original), revision) | {"pruned": str(pruned)})
            put_in_place(files.folder, target)

    on_main(write)
    changed = [block for block in result.blocks if block.changed]
    say(f"  {len(changed)} of {len(after.layers)} layers are refit, on {result.tokens:,} tokens and {result.held_out:,} held out")
    return result


def _check_pair(original: PreTrainedConfig, pruned: PreTrainedConfig, kept_layers: Sequence[int] | None) -> None:
    """Raises PollardError unless a model of the second configuration may be a cut of one of the first."""
    if quantized := quantization_of(pruned):
        raise PollardError(
            f"The pruned checkpoint's weights are quantized ({quantized}): refit changes plain numbers. Prune a plain copy of "
            "the original (bfloat16), or leave pruning.refit out.",
            code="refit.quantized",
        )
    texts = [config.get_text_config() for config in (original, pruned)]
    differing = [key for key in ("hidden_size", "vocab_size") if getattr(texts[0], key, None) != getattr(texts[1], key, None)]
    layers = [int(text.num_hidden_layers) for text in texts]
    if differing or layers[1] != (layers[0] if kept_layers is None else len(kept_layers)):
        what = f"their {differing[0]} differs" if differing else f"it has {layers[1]} layers, the original {layers[0]}"
        which = "" if differing or kept_layers is not None else " (which stay must be said: kept_layers, or the plan's)"
        raise PollardError(f"The pruned checkpoint is not cut from this original: {what}{which}.", code="refit.other-model")
    if kept_layers is not None and not [*kept_layers] == sorted({*kept_layers} & {*range(layers[0])}):
        raise PollardError(
            f"kept_layers must be ascending numbers of the original's layers, 0…{layers[0] - 1}, not {list(kept_layers)}.",
            code="refit.other-model",
        )


def _identity(batches: Sequence[Batch]) -> int:
    """Of the sequences of all ranks, however they are batched, and of which of their tokens are an answer's."""
    sums = (
        zlib.crc32(torch.stack([ids, answer])[:, mask.bool()].int().cpu().numpy().tobytes())
        for batch in batches
        for ids, mask, answer in zip(
            batch["input_ids"], batch["attention_mask"], batch.get("completion_mask", batch["attention_mask"]), strict=True
        )
    )
    return sum(gather(sum(sums)))


def _dtype(folder: Path) -> torch.dtype:
    return resolve_dtype("checkpoint", load_config(str(folder))) or torch.float32


def _why_whole(folder: Path) -> str | None:
    """Why the pruned model must be loaded whole: its files hold the weights that may be refit under names that transformers would
    not write them under. None where they do not."""
    if not checkpoint_files(folder).safetensors:
        return "it has no safetensors files"
    model, stored = meta_model(load_config(str(folder))), stored_tensors(folder)
    cut = RefitModel(model)
    parameters = dict(model.named_parameters())
    names = [
        name
        for number, layer in enumerate(cut.layers)
        for writer in writers_in(f"{cut.path}.{number}", layer, cut.blocks[number], cut.hidden_size)
        for name in writer.names
    ]
    written = revert_weight_conversion(model, {name: parameters[name].data for name in names})
    unknown = [name for name, tensor in written.items() if name not in stored or stored[name].shape != tensor.shape]
    return f"its files have no {unknown[0]} as transformers writes it" if unknown else None


def _write(folder: Path, model: RefitModel, files: LayerFiles) -> None:
    """Completes the folder of `files` to a checkpoint: `folder`'s, with the weights in `files`."""
    target = files.folder
    if model.streamed is None:
        model.whole.to(files.dtype)  # type: ignore[arg-type]
        write_checkpoint(model.whole, target)
        complete_checkpoint(folder, target, model.whole.config)
        files.remove()
        return
    stored, described = stored_tensors(folder), meta_model(load_config(str(folder)))
    replaced: dict[str, StoredTensor] = {}
    for number, path in enumerate(files.paths()):
        tensors = revert_weight_conversion(described, load_file(path))
        own = {name: tensor.to(files.dtype).contiguous() for name, tensor in tensors.items()}
        save_file(own, target / f"stored-{number:05}.refit")
        replaced |= read_header(target / f"stored-{number:05}.refit") if own else {}
    by_file: dict[Path, list[Piece]] = {}
    for name, tensor in stored.items():
        by_file.setdefault(tensor.file, []).append(Piece(name, replaced.get(name, tensor)))
    for file, pieces in progress(list(by_file.items()), "writing files"):
        write_file(target / file.name, pieces)
    for name in (INDEX, "config.json"):
        if (folder / name).exists():
            shutil.copyfile(folder / name, target / name)
    copy_companions(folder, target)
    _check_written(target, files)
    files.remove()


def _check_written(target: Path, files: LayerFiles) -> None:
    """Raises PollardError unless transformers reads the weights of every refit layer as they were solved."""
    written = StreamedModel(str(target), dtype="checkpoint")
    for path in files.paths():
        weights = load_file(path)
        if not weights:
            continue
        with written.layer(int(path.stem.removeprefix("layer-"))):
            read = dict(written.model.named_parameters())
            wrong = [
                name for name, weight in weights.items() if not torch.equal(read[name].data.cpu(), weight.to(read[name].dtype))
            ]
        if wrong:
            raise PollardError(
                f"The refitted checkpoint does not hold {wrong[0]} as it was solved. Please report this.",
                code="refit.verification-failed",
            )
