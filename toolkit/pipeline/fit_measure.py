"""Measures shapes on the dev slice: masked where that tells all, else as the run would write them.

    masked      experts, width, layers: the original as if it were cut, in memory
    written     what is refit, or dense: in a run of its own, which a recovery can go on from (fit_trials.py)

What is known of a shape lies in fit/measured/<shape>-<fingerprint>.json and is never measured again.
"""

import time
from collections.abc import Sequence
from functools import cache, cached_property, partial
from pathlib import Path
from typing import TypeVar

from transformers import PreTrainedModel

from toolkit.cuts import Plan, masked
from toolkit.cuts.fit_result import AllocationRecord, Answered, FitShape, MeasuredShape, TrialRecovery
from toolkit.cuts.writer import planned_bytes
from toolkit.evaluation import Loss, completion_loss, masked_losses, measure_fidelity, write_reference
from toolkit.evaluation.probe import Probe, measure_probe, read_probe
from toolkit.moe import StreamedModel, checkpoint_bytes, load_config, weight_bytes
from toolkit.moe.placement import automatic_placement, with_layers, with_model
from toolkit.pipeline.allocation import answered, measure_allocation
from toolkit.pipeline.fit_evidence import FitEvidence
from toolkit.pipeline.fit_trials import ShapeTrials, name_of
from toolkit.pipeline.loss_file import LossFile
from toolkit.recipe.data import DataRecipe
from toolkit.recipe.roles import Role
from toolkit.runtime.distributed import barrier, is_main, on_main, say
from toolkit.runtime.errors import PollardError
from toolkit.runtime.files import fingerprint_of, write_text
from toolkit.runtime.formatting import loss, percent
from toolkit.runtime.run_files import SHARD_PATTERN, remove_matching
from toolkit.selection.fit.ranking import badness

WHY_WHOLE = "shapes are measured by masking the routers of a whole model"
Kept = TypeVar("Kept", bound=Answered)


class ShapeMeasurements:
    """Of one run's fit. `fingerprint`: of the model, and of what it is asked."""

    def __init__(self, evidence: FitEvidence, fingerprint: str) -> None:
        self.evidence, self.context, self.recipe = evidence, evidence.context, evidence.recipe
        self.trials = ShapeTrials(evidence)
        self.fit, self.folder = self.trials.fit, evidence.context.directory.fit / "measured"
        self.reference = evidence.context.directory.fit / "reference"  # the original's distributions, until all are measured
        self.judged = fingerprint_of(fingerprint, self.fit.examples, self.fit.metric == "fidelity")
        self._path = cache(self._path_of)  # a plan is made for each

    @cached_property
    def probe(self) -> Probe:
        data = DataRecipe(task=self.recipe.task, examples=self.fit.examples)
        return read_probe(data, self.recipe, self.context.tokenizer, self.context.data)

    def measure(self, shapes: Sequence[FitShape], needed: int) -> dict[FitShape | None, MeasuredShape]:
        """Of all `shapes`, and of the original (None); on every rank. Of what is written, the weights of the best `needed` shapes
        stay."""
        wanted: list[FitShape | None] = [None, *shapes]
        missing = [shape for shape in wanted if on_main(partial(self._read, shape)) is None]
        if known := len(wanted) - len(missing):
            say(f"  {known} of {len(wanted)} have been measured already")
        in_memory = [shape for shape in missing if shape is None or not self._is_written(shape)]
        written = [shape for shape in missing if shape is not None and self._is_written(shape)]
        if in_memory or (written and self._compares):
            source = self.context.source
            if self._fits():
                with_model(self.recipe, source.path, source.revision, lambda model: self._masked(model, in_memory), WHY_WHOLE)
            else:
                measure = partial(self._losses_alone, shapes=in_memory)
                with_layers(self.recipe, source.path, source.revision, measure)
            barrier()
        for shape in written:
            self._written(shape)
            self._drop_weights(shapes, needed)
        on_main(lambda: remove_matching(self.reference, SHARD_PATTERN))
        return {shape: on_main(partial(self._known, shape)) for shape in wanted}

    def recover(self, shape: FitShape) -> TrialRecovery:
        """The shape, fine-tuned for a part of the steps, and asked."""
        path = self._trial_path(shape)
        if there := on_main(partial(_read, path, TrialRecovery)):
            return there
        trial, found = self.trials.recover(shape)
        folder, batches = trial.checkpoint(Role.RECOVERED).path, self.probe.batches
        found.loss = with_model(self.recipe, folder, None, lambda model: completion_loss(model, batches).finite)
        self._write(path, found)
        return found

    def allocation(self, shape: FitShape) -> AllocationRecord:
        """What other numbers of experts in each block would give at the size of `shape`, masked."""
        plan, fit, source = self.evidence.plans.plan(shape), self.context.directory.fit, self.context.source
        cache = LossFile(fit / "allocation.json", fingerprint_of(self.judged, plan.choice(), plan.experts_per_token))

        def measure(model: PreTrainedModel) -> AllocationRecord:
            statistics, tokenizer = self.evidence.plans.statistics, self.context.tokenizer
            return measure_allocation(model, plan, statistics, self.probe, tokenizer, self.recipe, cache)

        return with_model(self.recipe, source.path, source.revision, measure, WHY_WHOLE)

    @property
    def _compares(self) -> bool:
        """Whether shapes are compared with the original's distributions."""
        return self.fit.metric == "fidelity"

    def _is_written(self, shape: FitShape) -> bool:
        return bool(self.fit.refit) or shape.form == "dense"

    def _masked(self, model: PreTrainedModel, shapes: Sequence[FitShape | None]) -> None:
        """`model`: the original."""
        if self._compares:
            write_reference(model, self.probe.batches, self.reference, self.judged)
        for shape in shapes:
            started = time.monotonic()
            if shape is None:
                self._keep(None, MeasuredShape(**self._ask(model).model_dump()), started)
                continue
            plan = self.evidence.plans.plan(shape)
            with masked(model, plan):
                found = self._ask(model)
            self._keep(shape, MeasuredShape(**found.model_dump(), bytes=self._planned_bytes(plan)), started)

    def _fits(self) -> bool:
        """Whether the original is loaded whole somewhere, so that it can answer; else its losses alone are measured, layer by
        layer, where these decide. Raises PollardError where they do not."""
        placement, source = self.recipe.model.placement, self.context.source
        try:
            size = weight_bytes(load_config(source.path, source.revision), self.recipe.model.dtype)
            placement = automatic_placement(size) if placement == "auto" else placement
        except PollardError:
            placement = "zero3"
        if placement != "zero3" or self.fit.metric != "dev_loss":
            return True
        say("  the original is nowhere whole: the losses of shapes are measured layer by layer, and no answers")
        return False

    def _losses_alone(self, model: PreTrainedModel | StreamedModel, shapes: Sequence[FitShape | None]) -> None:
        """In one pass over the checkpoint for all shapes."""
        plans = [shape and self.evidence.plans.plan(shape) for shape in shapes]

        def keep(number: int, found: Loss) -> None:
            size = self._planned_bytes(plan) if (plan := plans[number]) else None
            self._keep(shapes[number], MeasuredShape(loss=found.finite, bytes=size), started)

        started = time.monotonic()
        masked_losses(model, plans, self.probe.batches, keep)

    def _planned_bytes(self, plan: Plan) -> int | None:
        """Of the files that the plan leaves; None where they are not told by those of this machine."""
        folder = self.evidence.space.folder
        return on_main(partial(planned_bytes, folder, plan)) if folder else None

    def _written(self, shape: FitShape) -> None:
        started, trial = time.monotonic(), self.trials.write(shape)
        found = with_model(self.recipe, trial.checkpoint(self.trials.measured_role).path, None, self._ask)
        size = on_main(lambda: checkpoint_bytes(trial.directory.pruned)) if self.evidence.space.folder else None
        self._keep(shape, MeasuredShape(**found.model_dump(), refit=bool(self.fit.refit), bytes=size), started)

    def _drop_weights(self, shapes: Sequence[FitShape], needed: int) -> None:
        """Of all written shapes but the best that are measured so far."""

        def drop() -> None:
            known = {shape: found for shape in shapes if self._is_written(shape) and (found := self._read(shape))}
            best = sorted(known, key=lambda shape: badness(known[shape], self.fit.metric))[:needed]
            self.trials.drop_weights(best)

        on_main(drop)

    def _ask(self, model: PreTrainedModel) -> Answered:
        found = measure_probe(model, self.context.tokenizer, self.recipe, self.probe)
        kl = measure_fidelity(model, self.probe.batches, self.reference, self.judged).kl if self._compares else None
        return answered(found).model_copy(update={"kl": kl})

    def _keep(self, shape: FitShape | None, record: MeasuredShape, started: float) -> None:
        record.seconds = round(time.monotonic() - started, 1)
        self._write(self._path(shape), record)
        name = "original" if shape is None else name_of(shape)
        say(f"  {name}: loss {loss(record.loss)}, {percent(record.score)} of {record.n} [dim]{record.seconds} s[/]")

    def _write(self, path: Path, record: Answered) -> None:
        if is_main():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(path, record.model_dump_json() + "\n")

    def _path_of(self, shape: FitShape | None) -> Path:
        """What is masked is told by the plan; what is written, by the recipe of its run."""
        if shape is None:
            return self.folder / f"original-{self.judged}.json"
        if self._is_written(shape):
            identity: list[object] = [self._decided_by(shape, refit=True)]
        else:
            plan = self.evidence.plans.plan(shape)
            identity = [plan.choice(), plan.experts_per_token]
        return self.folder / f"{name_of(shape)}-{fingerprint_of(self.judged, *identity)}.json"

    def _trial_path(self, shape: FitShape) -> Path:
        finetuning = self.recipe.finetuning
        mix = [self.context.fingerprints.teaching.data] if finetuning.data else []  # what its files hold
        decided_by = self._decided_by(shape, refit=False), finetuning.model_dump(), *mix
        return self.folder / f"{name_of(shape)}-trial-{fingerprint_of(self.judged, *decided_by)}.json"

    def _decided_by(self, shape: FitShape, refit: bool) -> list[object]:
        """`refit`: as the fit does it, and not as the run."""
        pruning = self.recipe.pruning.model_dump(exclude={"fit", "skipping", *(["refit"] if refit else [])})
        own = self.fit.model_dump(include={"refit"}) if refit else None
        return [pruning, own, self.evidence.plans.kept_layers[shape.layers], self.recipe.seed]

    def _read(self, shape: FitShape | None) -> MeasuredShape | None:
        return _read(self._path(shape), MeasuredShape)

    def _known(self, shape: FitShape | None) -> MeasuredShape:
        return MeasuredShape.model_validate_json(self._path(shape).read_bytes())


def _read(path: Path, kind: type[Kept]) -> Kept | None:
    """None where there is none, or none that can be read."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except (OSError, ValueError):
        return None
