"""What did a model lose beside its task? Its loss on other texts, and how like the original's its next tokens are there.

off_task/<role>     its loss, and how like the original it is   -> evaluation/<role>.off_task.json
off_task/original   its loss likewise, and its distributions    -> off_task/

Where the original is not evaluated (it may fit nowhere), the others' loss is measured alone.
"""

import math
from dataclasses import dataclass, replace
from functools import partial

from transformers import PreTrainedModel

from toolkit.estimate import DataSize, LogitsPass, Machine, StageEstimate, estimate_logits_pass
from toolkit.evaluation.distributions import TOKENS_AT_ONCE, bytes_per_token
from toolkit.evaluation.fidelity import write_reference
from toolkit.evaluation.off_task import EXAMPLES, OffTaskLoss, OffTaskTexts, Reference, measure_off_task, read_off_task
from toolkit.moe.placement import with_model
from toolkit.pipeline.context import RunContext
from toolkit.pipeline.data_sizes import local_tokenizer
from toolkit.pipeline.recipe_on_machine import RecipeOnMachine
from toolkit.pipeline.relief import Change, change
from toolkit.pipeline.stage import Facts
from toolkit.pipeline.stage_names import stage_name
from toolkit.pipeline.stages.fidelity import COPIES
from toolkit.pipeline.stages.measurement import Measurement
from toolkit.recipe.off_task import OffTaskRecipe
from toolkit.recipe.roles import Role
from toolkit.runtime.distributed import say
from toolkit.runtime.errors import PollardError
from toolkit.runtime.files import JsonObject, fingerprint_of
from toolkit.runtime.formatting import loss, percent

TOKENS = 256  # of one of Pollard's texts, at most, with tokenizers of large vocabularies


@dataclass(frozen=True)
class OffTaskFacts(Facts):
    loss: float | None
    kl: float | None
    agreement: float | None


class OffTask(Measurement):
    """Of any model but the original."""

    kind = "off_task"
    batch_section = "calibration"
    suffix = ".off_task.json"

    def __init__(self, context: RunContext, role: Role | None = None) -> None:
        super().__init__(context, role)
        self.needs = (*self.needs, stage_name(self.kind, Role.ORIGINAL))

    @property
    def data(self) -> OffTaskRecipe | None:
        return self.context.recipe.evaluation.measured_off_task

    def is_asked_for(self) -> bool:
        return self.data is not None and super().is_asked_for()

    def purpose(self) -> str:
        return f"measure the {self.role} model beside its task"

    def fingerprint(self) -> str:
        fingerprints = self.context.fingerprints
        return fingerprint_of(fingerprints.models[self.role], fingerprints.off_task)

    def estimate(self, machine: Machine) -> StageEstimate:
        sizes = RecipeOnMachine(self.context, machine)
        data = self._size()
        reading = LogitsPass(self.context.recipe.calibration.batch_size, COPIES, TOKENS_AT_ONCE, self._stored(sizes))
        found = estimate_logits_pass(self.name, machine, sizes.place(self.measured(sizes)), data, reading)
        return replace(found, work=f"{data.examples:,} texts, {'' if data.measured else 'at most '}{data.tokens:,} tokens")

    def outlook(self) -> str:
        return f"{self._size().examples:,} texts beside the task, read once; nothing is generated"

    def omission(self) -> Change | None:
        return change("evaluation.off_task", False)

    @property
    def compares(self) -> bool:
        """Whether the original is there to be compared with."""
        return Role.ORIGINAL in self.context.recipe.evaluation.models

    def _size(self) -> DataSize:
        """Counted where data and tokenizer are on this machine, else at most: nothing is fetched."""
        recipe, data = self.context.recipe, self.data
        key = "off task size", recipe.model.path, recipe.task.name, data and data.model_dump_json(), recipe.calibration.max_length
        return self.context.once(key, lambda: self._counted() or self._bound())

    def _bound(self) -> DataSize:
        longest = self.context.recipe.calibration.max_length
        if self.data and self.data.is_embedded:
            longest = min(TOKENS, longest)
        return DataSize((self.data and self.data.examples) or EXAMPLES, longest, longest, False)

    def _counted(self) -> DataSize | None:
        data, tokenizer = self.data, local_tokenizer(self.context.recipe.model.path)
        if data is None or tokenizer is None or (data.task and not self.context.data.task(data.task).is_local("train")):
            return None
        try:
            texts = read_off_task(data, self.context.recipe, tokenizer, self.context.data)
        except PollardError:  # the checks tell it
            return None
        lengths = [int(row.sum()) for batch in texts.batches for row in batch["attention_mask"]]
        return DataSize(len(lengths), sum(lengths) / len(lengths), max(lengths), True)

    def _stored(self, sizes: RecipeOnMachine) -> int:
        """Bytes of the original's distributions, at most."""
        return (self._size().tokens or 0) * bytes_per_token(self.measured(sizes).vocabulary) if self.compares else 0

    def run(self) -> OffTaskFacts:
        texts, reference = self.texts(), None
        if self.compares:
            reference = Reference(self.context.directory.off_task, str(self.context.fingerprints.off_task))
        measure = partial(measure_off_task, batches=texts.batches, reference=reference)
        return self.save(texts, with_model(self.context.recipe, *self.context.checkpoint(self.role), measure))

    def texts(self) -> OffTaskTexts:
        assert self.data, "the stage is not asked for otherwise"
        return read_off_task(self.data, self.context.recipe, self.context.tokenizer, self.context.data)

    def save(self, texts: OffTaskTexts, found: OffTaskLoss) -> OffTaskFacts:
        """Writes what was found, and says it."""
        figures: JsonObject = {"name": texts.name, **found.to_json(), "left_out": texts.left_out, "unknown": texts.unknown}
        self.write(figures | {"uniform_loss": math.log(len(self.context.tokenizer))})
        likeness = f", KL {loss(found.kl)}, {percent(found.agreement)} of the original's next tokens"
        compared = "" if found.agreement is None else likeness
        say(
            f"  loss {loss(found.loss)} nats per token{compared}; {found.tokens:,} tokens of {found.texts:,} texts ({texts.name})"
        )
        return OffTaskFacts(found.loss, found.kl, found.agreement)


class OffTaskReference(OffTask):
    """Of the original."""

    output = "off_task"
    remaking = "the original is read again, where a model is to be compared with it"
    resumes = ("off_task",)

    def __init__(self, context: RunContext, role: Role | None = None) -> None:
        super().__init__(context, role)
        self.needs, self.output = (), OffTaskReference.output

    def fingerprint(self) -> str:
        return str(self.context.fingerprints.off_task)

    def estimate(self, machine: Machine) -> StageEstimate:
        stored = self._stored(RecipeOnMachine(self.context, machine))
        return replace(super().estimate(machine), disk=stored)

    def run(self) -> OffTaskFacts:
        texts, folder = self.texts(), self.context.directory.off_task

        def measure(model: PreTrainedModel) -> OffTaskLoss:
            write_reference(model, texts.batches, folder, self.fingerprint(), "evaluation.off_task")
            return measure_off_task(model, texts.batches, None)

        return self.save(texts, with_model(self.context.recipe, *self.context.checkpoint(Role.ORIGINAL), measure))
