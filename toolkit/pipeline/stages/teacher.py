"""Training data -> teacher/: the original model's logits on every completion token."""

from dataclasses import dataclass

from transformers import PreTrainedModel

from toolkit.moe.placement import with_model
from toolkit.pipeline.recipe_changes import DECIDING
from toolkit.pipeline.rounds import trains
from toolkit.pipeline.stage import Facts, Stage
from toolkit.pipeline.stages.answers import EACH_RANK_ITS_OWN, Answers
from toolkit.recipe.roles import Role
from toolkit.recovery.teacher import cache_logits
from toolkit.recovery.training_data import read_training_data
from toolkit.runtime.distributed import say


@dataclass(frozen=True)
class TeacherFacts(Facts):
    examples: int
    tokens: int
    bytes_per_token: int


class Teacher(Stage):
    kind = "teacher"
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

    def run(self) -> TeacherFacts:
        recipe, run, tokenizer = self.context.recipe, self.context.directory, self.context.tokenizer
        training = read_training_data(recipe, tokenizer, run.answers, self.context.data)
        temperature, batch_size = recipe.finetuning.distillation.temperature, recipe.calibration.batch_size

        def ask(model: PreTrainedModel) -> TeacherFacts:
            pad = int(tokenizer.pad_token_id)
            made = cache_logits(model, training.encoded, run.teacher, temperature, batch_size, pad, self.fingerprint())
            return TeacherFacts(**made._asdict())

        facts = with_model(recipe, *self.context.checkpoint(Role.ORIGINAL), ask, EACH_RANK_ITS_OWN)
        say(f"  {facts.tokens:,} tokens of {facts.examples:,} examples in {run.teacher}")
        return facts


TEACHING = (Answers.kind, Teacher.kind)
"""The stages of what every training of a run learns from, beside the data."""
