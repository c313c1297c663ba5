"""Gold answers -> fidelity/: the original's distributions over their tokens, with which the other models are compared."""

from transformers import PreTrainedModel

from toolkit.evaluation import write_reference
from toolkit.moe.placement import with_model
from toolkit.pipeline.context import RunContext
from toolkit.pipeline.stages.fidelity import Fidelity, ReferenceFacts, gold_batches
from toolkit.recipe.roles import Role
from toolkit.runtime.distributed import say


class ReferenceLogits(Fidelity):
    output = "fidelity"
    remaking = "the original is read again, where a model is to be compared with it"
    resumes = ("fidelity",)

    def __init__(self, context: RunContext, role: Role | None = None) -> None:
        super().__init__(context, role)
        self.needs, self.output = (), ReferenceLogits.output

    def is_asked_for(self) -> bool:
        return bool(self.context.recipe.evaluation.fidelity)

    def purpose(self) -> str:
        return "keep what the original model says of the gold answers"

    def fingerprint(self) -> str:
        return self.context.fingerprints.reference_logits

    def run(self) -> ReferenceFacts:
        batches, left_out = gold_batches(self.context)
        folder = self.context.directory.fidelity

        def keep(model: PreTrainedModel) -> ReferenceFacts:
            kept = write_reference(model, batches, folder, self.fingerprint())
            return ReferenceFacts(kept.tokens, kept.bytes, left_out)

        facts = with_model(self.context.recipe, *self.context.checkpoint(Role.ORIGINAL), keep)
        say(f"  {facts.tokens:,} tokens in {folder}: {facts.bytes / 2**20:,.1f} MiB")
        return facts
