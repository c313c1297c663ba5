"""`toolkit.upcycle`: a stock mixture of experts from a dense checkpoint."""

import os
from dataclasses import asdict
from pathlib import Path

from toolkit.cuts.checkpoint import check_apart
from toolkit.cuts.upcycling.families import upcycled
from toolkit.cuts.upcycling.forms import CopiesForm, Form, SharedForm
from toolkit.cuts.upcycling.source import DenseCheckpoint
from toolkit.cuts.upcycling.writer import UpcycleJob, plan_upcycle, write_upcycled
from toolkit.moe.model_size import sizes
from toolkit.runtime.distributed import on_all_ranks, on_main, say
from toolkit.runtime.formatting import amount, percent
from toolkit.runtime.signed_folders import check_target, provenance


def upcycle(
    source: str | Path, target: str | Path, form: Form | None = None, revision: str | None = None, overwrite: bool = False
) -> None:
    """Writes the dense checkpoint `source` (a folder, a hub id, or a GGUF file) to `target` as a mixture of experts of a stock
    family, in `form` (`SharedForm()` unless given, or `CopiesForm()`); every rank must call it.

    Attention, norms and embeddings keep their numbers and dtype, tokenizer and all other companions come along; memory holds one
    decoder layer, except of checkpoints that are no safetensors files. The result is verified before it gets its name: where the
    form is exact, its logits are the dense model's. `overwrite` replaces a checkpoint that Pollard wrote to `target` before;
    whatever else is there stays, and is an error. Raises PollardError for that, for a model that is no dense one or that no
    family of experts can hold, and when the source is damaged or the target cannot be written; nothing is changed at `target`
    then.
    """
    form, source, target = form or SharedForm(), os.path.expanduser(source), Path(os.path.abspath(Path(target).expanduser()))
    checkpoint = on_all_ranks(lambda: DenseCheckpoint(source, revision))

    def check() -> None:
        check_apart(checkpoint.folder, target, "upcycled checkpoint", "dense model")
        check_target(target, overwrite)

    on_main(check)
    found = on_all_ranks(lambda: upcycled(checkpoint.config, form))
    job = on_all_ranks(lambda: plan_upcycle(checkpoint, found, form))
    facts = provenance("upcycled checkpoint", source, revision) | {"form": form.name, **asdict(form)}
    write_upcycled(job, target, facts)
    say(f"  {_summary(job)}")


def _summary(job: UpcycleJob) -> str:
    """ "a mixtral of 8 experts, 2 per token: 692 M parameters, 214 M of them active; …" """
    model, form = job.upcycled.model, job.form
    size = sizes(model)
    what = "the logits are the dense model's"
    if isinstance(form, CopiesForm) and not form.is_exact:
        what = f"{percent(form.redraw, 0)} of each expert's channels are drawn anew"
    return (
        f"a {model.config.model_type} of {form.experts} experts, {form.experts_per_token} per token: {amount(size.parameters)} "
        f"parameters, {amount(size.active_parameters)} of them active; {what}"
    )
