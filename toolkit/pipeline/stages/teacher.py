"""Training data -> teacher/: the original model's logits on every completion token."""

from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedModel

from toolkit.estimate import DataSize, LogitsPass, Machine, StageEstimate, count, estimate_logits_pass
from toolkit.moe.placement import with_model
from toolkit.pipeline.outlook import tokens_read
from toolkit.pipeline.recipe_changes import DECIDING
from toolkit.pipeline.recipe_on_machine import RecipeOnMachine
from toolkit.pipeline.rounds import trains
from toolkit.pipeline.stage import Facts, Stage
from toolkit.pipeline.stages.answers import EACH_RANK_ITS_OWN, Answers
from toolkit.recipe.roles import Role
from toolkit.recovery.teacher import TOKENS_AT_ONCE, bytes_per_token, cache_logits
from toolkit.recovery.training_data import read_training_data
from toolkit.runtime.distributed import say
from toolkit.tasks import Encoded

COPIES = 3  # of a part of the logits in float32: offsets, the rest, at the temperature


@dataclass(frozen=True)
class TeacherFacts(Facts):
    examples: int
    tokens: int
    bytes_per_token: int


class Teacher(Stage):
    kind = "teacher"
    batch_section = "calibration"
    sections = DECIDING[Role.CONTROL]
    needs = (Answers.kind,)
    output = "teacher"
    resumes = ("teacher",)
    remaking = "the original is asked again, where a training needs it"

    def is_asked_for(self) -> bool:
        context = self.context
        return context.teaching is None and trains(context.recipe) and context.fingerprints.teaching.teacher is not None

    def purpose(self) -> str:
        return "keep what the original model says of every completion token"

    def fingerprint(self) -> str:
        return str(self.context.fingerprints.teaching.teacher)

    def estimate(self, machine: Machine) -> StageEstimate:
        sizes, data = RecipeOnMachine(self.context, machine), self._size
        placement = sizes.place(sizes.original(), whole=True)
        tokens, each = round((data.examples or 0) * data.completion_tokens), bytes_per_token(placement.model.vocabulary)
        counted = count(None if data.examples is None else tokens)
        batch = self.context.recipe.calibration.batch_size
        reading = LogitsPass(batch, COPIES, TOKENS_AT_ONCE, stored=tokens * each)
        return replace(
            estimate_logits_pass(self.name, machine, placement, data, reading),
            work=f"{count(data.examples)} examples, {counted} completion tokens at most, {each} bytes each, "
            f"{placement.description}",
            disk=tokens * each,
        )

    def outlook(self) -> str:
        return tokens_read(self._size)

    @property
    def _size(self) -> DataSize:
        return self.context.data_sizes.shared

    @property
    def _folder(self) -> Path:
        return self.context.directory.teacher

    def _encoded(self) -> list[Encoded]:
        context = self.context
        return read_training_data(context.recipe, context.tokenizer, context.directory.answers, context.data).encoded

    def run(self) -> TeacherFacts:
        recipe, folder, tokenizer = self.context.recipe, self._folder, self.context.tokenizer
        encoded = self._encoded()
        temperature, batch_size = recipe.finetuning.distillation.temperature, recipe.calibration.batch_size

        def ask(model: PreTrainedModel) -> TeacherFacts:
            pad = int(tokenizer.pad_token_id)
            made = cache_logits(model, encoded, folder, temperature, batch_size, pad, self.fingerprint())
            return TeacherFacts(**made._asdict())

        facts = with_model(recipe, *self.context.checkpoint(Role.ORIGINAL), ask, EACH_RANK_ITS_OWN)
        say(f"  {facts.tokens:,} tokens of {facts.examples:,} examples in {folder}")
        return facts


TEACHING = (Answers.kind, Teacher.kind)
"""The stages of what every training of a run learns from, beside the data."""
