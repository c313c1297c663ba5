"""How like the original is a model still? Its distributions over the completion tokens of a few gold answers are compared with
the original's, which are kept first.

fidelity/original   the original's distributions             -> fidelity/
fidelity/<role>     those of another model, compared with it -> evaluation/<role>.fidelity.json
"""

from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel

from toolkit.estimate import DataSize, LogitsPass, Machine, StageEstimate, estimate_logits_pass
from toolkit.evaluation import measure_fidelity
from toolkit.evaluation.distributions import TOKENS_AT_ONCE, bytes_per_token
from toolkit.moe.placement import with_model
from toolkit.pipeline.context import RunContext
from toolkit.pipeline.recipe_on_machine import RecipeOnMachine
from toolkit.pipeline.relief import Change, change
from toolkit.pipeline.stage import Facts
from toolkit.pipeline.stage_names import stage_name
from toolkit.pipeline.stages.measurement import Measurement
from toolkit.recipe.roles import Role
from toolkit.runtime.distributed import say
from toolkit.runtime.files import fingerprint_of
from toolkit.runtime.formatting import loss, percent
from toolkit.tasks import encode_all, padded_batches

COPIES = 12  # of a part of the logits in float32, while they are sorted and summed up


@dataclass(frozen=True)
class ReferenceFacts(Facts):
    tokens: int
    bytes: int
    left_out: int


@dataclass(frozen=True)
class FidelityFacts(Facts):
    kl: float | None
    acceptance: float | None


class Fidelity(Measurement):
    """Of any model but the original."""

    kind = "fidelity"
    batch_section = "calibration"
    suffix = ".fidelity.json"

    def __init__(self, context: RunContext, role: Role | None = None) -> None:
        super().__init__(context, role)
        self.needs = (*self.needs, stage_name(self.kind, Role.ORIGINAL))

    def is_asked_for(self) -> bool:
        return bool(self.context.recipe.evaluation.fidelity) and super().is_asked_for()

    def purpose(self) -> str:
        return f"compare what the {self.role} model says with the original"

    def fingerprint(self) -> str:
        fingerprints = self.context.fingerprints
        return fingerprint_of(fingerprints.models[self.role], fingerprints.reference_logits)

    def estimate(self, machine: Machine) -> StageEstimate:
        """One pass over gold answers that are as long as the training examples."""
        sizes = RecipeOnMachine(self.context, machine)
        data, tokens, stored = self._gold_size(sizes)
        reading = LogitsPass(self.context.recipe.calibration.batch_size, COPIES, TOKENS_AT_ONCE, stored)
        found = estimate_logits_pass(self.name, machine, sizes.place(self.measured(sizes)), data, reading)
        return replace(found, work=f"{data.examples:,} answers, {tokens:,} tokens")

    def outlook(self) -> str:
        return f"{self.context.recipe.evaluation.fidelity:,} gold answers, read once; nothing is generated"

    def omission(self) -> Change | None:
        return change("evaluation.fidelity", None)

    def _gold_size(self, sizes: RecipeOnMachine) -> tuple[DataSize, int, int]:
        """The gold answers, their completion tokens, and the bytes of the original's distributions over these, at most."""
        data = self.context.data_sizes.calibration.limited(self.context.recipe.evaluation.fidelity)
        tokens = round((data.examples or 0) * data.completion_tokens)
        return data, tokens, tokens * bytes_per_token(self.measured(sizes).vocabulary)

    def run(self) -> Facts:
        batches, left_out = gold_batches(self.context)
        recipe, run = self.context.recipe, self.context.directory

        def measure(model: PreTrainedModel) -> FidelityFacts:
            fidelity = measure_fidelity(model, batches, run.fidelity, self.context.fingerprints.reference_logits)
            figures = fidelity.to_json()
            self.write(figures | {"split": recipe.evaluation.split, "left_out": left_out})
            say(
                f"  KL {loss(figures['kl'])} nats per token, acceptance {percent(figures['acceptance'])}, "
                f"over {fidelity.tokens:,} tokens of {fidelity.examples:,} answers"
            )
            return FidelityFacts(figures["kl"], figures["acceptance"])

        return with_model(recipe, *self.context.checkpoint(self.role), measure)


def gold_batches(context: RunContext) -> tuple[list[dict[str, torch.Tensor]], int]:
    """The first examples of the evaluated split with their gold completions, and how many were too long."""
    recipe, tokenizer = context.recipe, context.tokenizer
    examples = context.task.examples(recipe.evaluation.split)[: recipe.evaluation.fidelity]
    encoded, left_out = encode_all(tokenizer, examples, recipe.calibration.max_length, "calibration.max_length")
    return padded_batches(encoded, recipe.calibration.batch_size, int(tokenizer.pad_token_id or 0)), left_out
