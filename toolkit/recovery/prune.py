"""`toolkit.prune`: a checkpoint cut by a plan and, where batches are given, refit to the original on them.

smaller.pruned/    the pruned checkpoint, until smaller/ is there
smaller.tmp/       the refit layers, until smaller/ is there
"""

import os
from collections.abc import Sequence
from pathlib import Path

from toolkit.cuts.checkpoint import check_apart, prune_checkpoint
from toolkit.cuts.layers import LayersCut
from toolkit.cuts.plan import Plan
from toolkit.moe import Batch, checkpoint_folder
from toolkit.recovery.refit import RefitResult, refit_checkpoint
from toolkit.runtime.distributed import on_all_ranks, on_main
from toolkit.runtime.errors import PollardError
from toolkit.runtime.files import fingerprint_of, fingerprint_of_source
from toolkit.runtime.signed_folders import check_target, foreign_files, read_provenance, remove_own, sign


def prune(
    source: str | Path,
    plan: Plan,
    target: str | Path,
    revision: str | None = None,
    overwrite: bool = False,
    refit: Sequence[Batch] | None = None,
) -> RefitResult | None:
    """Writes what `plan` keeps of the checkpoint `source` (a folder or a hub id) to `target`; every rank must call it.

    Tensors keep their names, dtypes and, where they are quantized, their scales; memory holds no more than one MoE block.
    A checkpoint whose layout can only be understood by loading it is loaded whole, by rank 0, which a line reports. The result
    is verified before it gets its name. `overwrite` replaces a checkpoint that Pollard wrote to `target` before; whatever else
    is there stays, and is an error. Raises PollardError for that, and when the plan does not fit the model, the source is
    damaged, the target cannot be written or the verification fails; nothing is changed at `target` then.

    `refit`: this rank's batches (`input_ids`, `attention_mask` [B, S], as for `calibrate`). What each layer of the pruned model
    adds to its residual stream is then fitted to the original's on them (docs/refit.md), and how well is returned. The pruned
    checkpoint lies beside `target` meanwhile; the same call goes on from there after an interruption. Raises PollardError as well
    for quantized weights, a plan that grows another checkpoint, too few examples, and numbers that are not finite.
    """
    if refit is None:
        prune_checkpoint(source, plan, target, revision, overwrite)
        return None
    if plan.onto:
        raise PollardError(
            "Refit holds a pruned model against one original, and this plan puts experts behind those of another checkpoint "
            f"({plan.onto}), which was trained: prune without refit.",
            code="refit.grown",
        )
    source, target = os.path.expanduser(source), Path(os.path.abspath(Path(target).expanduser()))
    folder = on_all_ranks(lambda: checkpoint_folder(source, revision))
    on_main(lambda: _check_places(folder, target, overwrite))
    between = target.with_name(f"{target.name}.pruned")
    identity = fingerprint_of(fingerprint_of_source(str(folder)), plan.model_dump(), plan.choice())
    if not on_main(lambda: _is_pruned(between, identity)):
        prune_checkpoint(source, plan, between, revision, overwrite=True)
        on_main(lambda: _sign_again(between, identity))
    layers = plan.cut(LayersCut)
    result = refit_checkpoint(source, between, target, refit, layers.kept if layers else None, revision, overwrite)
    on_main(lambda: remove_own(between))
    return result


def _check_places(folder: Path, target: Path, overwrite: bool) -> None:
    """Before anything is pruned."""
    check_apart(folder, target, "refitted checkpoint")
    check_target(target, overwrite)


def _is_pruned(folder: Path, identity: str) -> bool:
    """Whether an earlier call has left the whole pruned checkpoint."""
    return (read_provenance(folder) or {}).get("identity") == identity and not foreign_files(folder)


def _sign_again(folder: Path, identity: str) -> None:
    facts = read_provenance(folder) or {}
    sign(folder, {key: value for key, value in facts.items() if key not in ("format", "files")} | {"identity": identity})
