"""Place a model for work: a copy for every rank, spread over one node's GPUs, or partitioned over all ranks; for calibration,
where possible, one decoder layer at a time.
"""

from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

import torch
from transformers import PreTrainedModel

from toolkit.moe import (
    CannotStream,
    StreamedModel,
    check_loaded,
    is_partitioned,
    load_config,
    load_model,
    load_thresholds,
    partitioned_model,
    weight_bytes,
)
from toolkit.recipe.schema import Recipe
from toolkit.runtime.distributed import device, gather, on_main, say, shard, shard_in_step
from toolkit.runtime.errors import PollardError
from toolkit.runtime.zero import partitioned_config, start_deepspeed

T = TypeVar("T")
HEADROOM = 1.2  # weights times this must fit: activations and the cache of keys and values want room, too
Placement = Literal["copies", "spread", "zero3"]


def with_model(
    recipe: Recipe,
    path: str,
    revision: str | None,
    function: Callable[[PreTrainedModel], T],
    why_whole: str | None = None,
    skipping: bool = False,
) -> T:
    """Calls `function` with the model, placed as `model.placement` says. Call it on every rank.

    `why_whole`: why `function` needs a model that is not in parts, where it does. Where the checkpoint says when experts are
    skipped, they are only if `skipping` is true; else a line says so. Raises PollardError for a model that fits nowhere,
    and for one whose weights, loaded in parts, are not the checkpoint's.
    """
    dtype, asked = recipe.model.dtype, recipe.model.placement
    placement = automatic_placement(weight_bytes(load_config(path, revision), dtype)) if asked == "auto" else asked
    report_unskipped(path, revision, skipping)
    if placement == "copies":
        return function(load_model(path, revision, dtype, device(), skipping=skipping))
    if placement == "spread":
        say("  one copy, its layers spread over the GPUs of the first node (model.placement)")
        return on_main(lambda: function(load_model(path, revision, dtype, spread=True, skipping=skipping)))
    if why_whole:
        leads = "is" if asked == "zero3" else "leads to"
        raise PollardError(
            f"{why_whole}, and model.placement {asked} {leads} zero3, which holds it in parts: "
            "say model.placement=spread (layers that do not fit on the GPUs stay on the host, slowly).",
            code="model.needs-whole-placement",
        )
    say("  in parts over all ranks (model.placement: ZeRO-3)")
    start_deepspeed()
    with partitioned_model(path, revision, dtype, partitioned_config(recipe.finetuning.zero), skipping) as model:
        check_loaded(model, path, revision)
        return function(model)


def with_layers(
    recipe: Recipe,
    path: str,
    revision: str | None,
    function: Callable[[PreTrainedModel | StreamedModel], T],
    why_loaded: str | None = None,
    why_whole: str | None = None,
) -> T:
    """Calls `function` with the model, of which every rank holds one decoder layer at a time; or with the loaded model where that
    cannot be, which a line reports (`why_loaded`: the caller's own; `why_whole` as for `with_model`)."""
    if not why_loaded:
        try:
            model = StreamedModel(path, revision, recipe.model.dtype, device())
        except CannotStream as reason:
            why_loaded = str(reason)
        else:
            report_unskipped(path, revision)
            return function(model)
    say(f"  the whole model is loaded: {why_loaded}")
    return with_model(recipe, path, revision, function, why_whole)


def report_unskipped(path: str, revision: str | None, skipping: bool = False) -> None:
    """Prints a line where a checkpoint's thresholds are not followed."""
    if not skipping and load_thresholds(path, revision):
        say(f"  without skipping experts, although {path} has a skipping.json")


def shard_batches(
    model: PreTrainedModel | StreamedModel, batches: Sequence[dict[str, torch.Tensor]]
) -> list[dict[str, torch.Tensor]]:
    """This rank's batches; of a model in parts every rank runs as many, the last perhaps with nothing but padding."""
    if isinstance(model, StreamedModel) or not is_partitioned(model):
        return shard(batches)
    padding = {name: tensor if name == "input_ids" else torch.zeros_like(tensor) for name, tensor in batches[0].items()}
    return shard_in_step(batches, padding)


def automatic_placement(size: int) -> Placement:
    """The plainest placement that has room for weights of `size` bytes. Raises PollardError where none has.

    On a machine without a GPU always copies.
    """
    if device().type != "cuda":
        return "copies"
    one = torch.cuda.mem_get_info()[1]
    node = sum(torch.cuda.mem_get_info(number)[1] for number in range(torch.cuda.device_count()))
    memory = gather((one, node))
    wanted = HEADROOM * size
    if wanted <= min(one for one, _ in memory):
        return "copies"
    if wanted <= memory[0][1]:
        return "spread"
    everything = sum(one for one, _ in memory)
    if wanted <= everything:
        return "zero3"
    raise PollardError(
        f"The model's {size / 1e9:,.0f} GB of weights fit neither on one GPU, nor on the first node's, nor on those of all ranks "
        f"({everything / 1e9:,.0f} GB; a fifth is left for activations). Use more GPUs or nodes; or keep the parts on the "
        "hosts (finetuning.zero=3-offload model.placement=zero3); or leave this model out of the evaluation, e.g. "
        "evaluation.models=[pruned,recovered].",
        code="model.fits-nowhere",
    )
