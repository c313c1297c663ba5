"""Measures shapes on the dev slice: masked where that tells all, else as the run would write them.

    masked                        experts, width, layers: the original as if it were cut, in memory
    written, in a run of its own  what is refit, or dense: fit/trials/<shape>/, which a recovery can go on from

What is known of a shape lies in fit/measured/<shape>-<fingerprint>.json and is never measured again.
"""

import json
import time
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path

from transformers import PreTrainedModel

from toolkit.cuts import masked
from toolkit.cuts.fit_result import AllocationRecord, Answered, FitShape, MeasuredShape
from toolkit.cuts.writer import planned_bytes
from toolkit.evaluation import measure_fidelity, write_reference
from toolkit.evaluation.probe import Probe, measure_probe, read_probe
from toolkit.moe import checkpoint_bytes
from toolkit.moe.placement import with_model
from toolkit.pipeline.allocation import AllocationCache, measure_allocation
from toolkit.pipeline.context import RunContext
from toolkit.pipeline.fit_choice import recipe_of_shape
from toolkit.pipeline.fit_evidence import FitEvidence
from toolkit.pipeline.run_directory import RunDirectory
from toolkit.pipeline.stage_names import MADE_BY
from toolkit.recipe.data import DataRecipe
from toolkit.recipe.roles import Role
from toolkit.recipe.schema import Recipe
from toolkit.runtime.distributed import barrier, is_main, on_main, say
from toolkit.runtime.files import fingerprint_of, write_text
from toolkit.runtime.formatting import loss, percent
from toolkit.runtime.run_files import SHARD_PATTERN, remove_matching

ORIGINAL = "original"
WHY_WHOLE = "shapes are measured by masking the routers of a whole model"


def name_of(shape: FitShape) -> str:
    """As a folder: "3-layers-6-experts-152-wide-2-active"."""
    dense = "-dense" if shape.form == "dense" else f"-{shape.experts_per_token}-active"
    return f"{shape.layers}-layers-{shape.experts}-experts-{shape.width}-wide{dense}"


class ShapeMeasurements:
    """Of one run's fit. `fingerprint`: of the model, and of what it is asked."""

    def __init__(self, evidence: FitEvidence, fingerprint: str) -> None:
        self.evidence, self.context, self.fingerprint = evidence, evidence.context, fingerprint
        self.recipe, self.folder = evidence.recipe, evidence.context.directory.fit / "measured"
        fit = self.recipe.pruning.fit
        assert fit
        self.fit = fit

    @cached_property
    def probe(self) -> Probe:
        data = DataRecipe(task=self.recipe.task, examples=self.fit.examples)
        return read_probe(data, self.recipe, self.context.tokenizer, self.context.data)

    def measure(self, shapes: Sequence[FitShape]) -> dict[FitShape | None, MeasuredShape]:
        """Of all `shapes`, and of the original (None); on every rank."""
        wanted: list[FitShape | None] = [None, *shapes]
        known = {shape for shape in wanted if on_main(partial(self._read, shape))}
        if known:
            say(f"  {len(known)} of {len(wanted)} have been measured already")
        missing = [shape for shape in wanted if shape not in known]
        in_memory = [shape for shape in missing if shape is None or not self._is_written(shape)]
        if in_memory:
            source = self.context.source
            with_model(self.recipe, source.path, source.revision, lambda model: self._masked(model, in_memory), WHY_WHOLE)
            barrier()
        for shape in missing:
            if shape is not None and self._is_written(shape):
                self._written(shape)
        return {shape: on_main(partial(self._known, shape)) for shape in wanted}

    def bytes_of(self, shape: FitShape) -> int | None:
        """Of the weights' files, exactly; None where they are counted in another dtype, or not on this machine."""
        if self.fit.dtype != "checkpoint" or self.evidence.space.folder is None:
            return None
        if shape.form == "dense":
            pruned = self.trial(shape).directory.pruned
            return checkpoint_bytes(pruned) if pruned.exists() else None
        return planned_bytes(self.evidence.space.folder, self.evidence.plans.plan(shape))

    def trial(self, shape: FitShape, **changes: object) -> RunContext:
        """The run of its own in which a shape is written; `changes` of the recipe, by section."""
        space = self.evidence.space
        recipe = recipe_of_shape(self.recipe, shape, space.original, self.evidence.plans.kept_layers[shape.layers])
        role = self._last_role
        evaluation = recipe.evaluation.model_copy(
            update={"models": [role], "split": "dev", "examples": self.fit.examples, "fidelity": None, "harness": None}
        )
        update = {"name": name_of(shape), "control": False, "evaluation": evaluation, **changes}
        directory = RunDirectory(name_of(shape), self.context.directory.fit / "trials")
        return self.context.variant(recipe.model_copy(update=update), directory, self.context.fingerprints.teaching)

    def allocation(self, shape: FitShape) -> AllocationRecord:
        """What other numbers of experts in each block would give at the size of `shape`, masked."""
        plan, fit, source = self.evidence.plans.plan(shape), self.context.directory.fit, self.context.source
        cache = AllocationCache(fit / "allocation.json", fingerprint_of(self._judged(), plan.choice(), plan.experts_per_token))

        def measure(model: PreTrainedModel) -> AllocationRecord:
            statistics, tokenizer = self.evidence.plans.statistics, self.context.tokenizer
            return measure_allocation(model, plan, statistics, self.probe, tokenizer, self.recipe, cache)

        return with_model(self.recipe, source.path, source.revision, measure, WHY_WHOLE)

    @property
    def _last_role(self) -> Role:
        """The model of a shape that is measured."""
        return Role.REFITTED if self.fit.refit else Role.PRUNED

    def _is_written(self, shape: FitShape) -> bool:
        return bool(self.fit.refit) or shape.form == "dense"

    def _masked(self, model: PreTrainedModel, shapes: Sequence[FitShape | None]) -> None:
        said = self.context.directory.fit / "reference"  # what the original says of the gold answers, until all are measured
        gold = self.probe.batches if self.fit.metric == "fidelity" else []
        on_main(lambda: remove_matching(said, SHARD_PATTERN))
        if gold:
            write_reference(model, gold, said, "")
        for shape in shapes:
            started = time.monotonic()
            if shape is None:
                found = self._ask(model, said if gold else None)
            else:
                with masked(model, self.evidence.plans.plan(shape)):
                    found = self._ask(model, said if gold else None)
            self._keep(shape, found, refit=False, started=started)
        on_main(lambda: remove_matching(said, SHARD_PATTERN))

    def _written(self, shape: FitShape) -> None:
        """Cut, and refit where that is asked for; then loaded and asked."""
        started, role = time.monotonic(), self._last_role
        pruning = recipe_of_shape(
            self.recipe, shape, self.evidence.space.original, self.evidence.plans.kept_layers[shape.layers]
        ).pruning
        trial = self.trial(shape, pruning=pruning.model_copy(update={"refit": self.fit.refit}))
        assert self.context.run_stages, "a trial is run by what runs stages"
        self.context.run_stages(trial, MADE_BY[role])
        path = trial.checkpoint(role).path
        found = with_model(self.recipe, path, None, lambda model: self._ask(model, None))
        self._keep(shape, found, refit=bool(self.fit.refit), started=started)

    def _ask(self, model: PreTrainedModel, reference: Path | None) -> Answered:
        found = measure_probe(model, self.context.tokenizer, self.recipe, self.probe)
        kl = measure_fidelity(model, self.probe.batches, reference, "").kl if reference else None
        interval = (found.interval[0], found.interval[1]) if found.interval else None
        return Answered(
            loss=found.loss, score=found.score, n=found.n or 0, interval=interval, right=found.right or "", kl=kl
        )  # fmt: skip

    def _keep(self, shape: FitShape | None, found: Answered, refit: bool, started: float) -> None:
        seconds = round(time.monotonic() - started, 1)
        record = MeasuredShape(**found.model_dump(), refit=refit, seconds=seconds)
        if is_main():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(self._path(shape), record.model_dump_json() + "\n")
        name = ORIGINAL if shape is None else name_of(shape)
        say(f"  {name}: loss {loss(record.loss)}, {percent(record.score)} of {record.n} [dim]{seconds} s[/]")

    def _path(self, shape: FitShape | None) -> Path:
        """What is masked is told by the plan; what is written, by the recipe of its run."""
        if shape is None:
            return self.folder / f"{ORIGINAL}-{fingerprint_of(self._judged())}.json"
        if self._is_written(shape):
            pruning = self.recipe.pruning.model_dump(exclude={"fit", "skipping"})
            layers = self.evidence.plans.kept_layers[shape.layers]
            identity: object = [pruning, layers, self.fit.model_dump(include={"refit"}), self.evidence.recipe.seed]
        else:
            plan = self.evidence.plans.plan(shape)
            identity = [plan.choice(), plan.experts_per_token]
        return self.folder / f"{name_of(shape)}-{fingerprint_of(self._judged(), identity)}.json"

    def _judged(self) -> list[object]:
        return [self.fingerprint, self.fit.examples, self.fit.metric == "fidelity"]

    def _read(self, shape: FitShape | None) -> MeasuredShape | None:
        try:
            return MeasuredShape.model_validate(json.loads(self._path(shape).read_text()))
        except (OSError, ValueError):
            return None

    def _known(self, shape: FitShape | None) -> MeasuredShape:
        return MeasuredShape.model_validate(json.loads(self._path(shape).read_text()))


def recovered_for(recipe: Recipe, share: int) -> Mapping[str, object]:
    """The trainer's settings for one step of so many."""
    trainer = dict(recipe.finetuning.trainer)
    if (steps := int(trainer.get("max_steps", -1))) > 0:
        return trainer | {"max_steps": max(1, steps // share)}
    return trainer | {"num_train_epochs": float(trainer.get("num_train_epochs", 3)) / share}
