"""Training data -> teacher/: the original model's logits on every completion token and, for the seam loss, its hidden states."""

from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedModel

from toolkit.cuts.plan import Plan
from toolkit.estimate import DataSize, LogitsPass, Machine, StageEstimate, count, estimate_logits_pass
from toolkit.moe.placement import with_model
from toolkit.pipeline.context import RunContext
from toolkit.pipeline.outlook import tokens_read
from toolkit.pipeline.recipe_changes import DECIDING
from toolkit.pipeline.recipe_on_machine import RecipeOnMachine
from toolkit.pipeline.rounds import trains
from toolkit.pipeline.stage import Facts, Stage
from toolkit.pipeline.stage_names import SELECT
from toolkit.pipeline.stages.answers import EACH_RANK_ITS_OWN, Answers
from toolkit.recipe.roles import Role
from toolkit.recovery.seam_columns import SeamColumns
from toolkit.recovery.seams import most_seams, seams_of
from toolkit.recovery.teacher import cache_logits
from toolkit.recovery.top_logits import TOKENS_AT_ONCE, bytes_per_token
from toolkit.recovery.training_data import read_training_data
from toolkit.runtime.distributed import say
from toolkit.runtime.errors import PollardError
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
    output = "teacher"
    resumes = ("teacher",)
    remaking = "the original is asked again, where a training needs it"

    def __init__(self, context: RunContext, role: Role | None = None) -> None:
        super().__init__(context, role)
        self.with_states = bool(context.recipe.finetuning.distillation.hidden)
        self.needs = (Answers.kind, *([SELECT] if self.with_states else []))  # the plan says where the seams are

    def is_asked_for(self) -> bool:
        context = self.context
        return context.teaching is None and trains(context.recipe) and context.fingerprints.teaching.teacher is not None

    def purpose(self) -> str:
        states = ", and its hidden states where layers are gone" if self.with_states else ""
        return f"keep what the original model says of every completion token{states}"

    def fingerprint(self) -> str:
        return str(self.context.fingerprints.teaching.teacher)

    def estimate(self, machine: Machine) -> StageEstimate:
        sizes, data = RecipeOnMachine(self.context, machine), self._size
        placement = sizes.place(sizes.original(), whole=True)
        columns = self._most_columns()
        each = bytes_per_token(placement.model.vocabulary) + (columns.bytes_per_token if columns else 0)
        tokens = round((data.examples or 0) * data.completion_tokens)
        counted = count(None if data.examples is None else tokens)
        batch = self.context.recipe.calibration.batch_size
        reading = LogitsPass(batch, COPIES, TOKENS_AT_ONCE, stored=tokens * each)
        found = estimate_logits_pass(self.name, machine, placement, data, reading)
        notes = [f"{self.name}: {columns.description}, at most; projected where there is no room"] if columns else []
        return replace(
            found,
            work=f"{count(data.examples)} examples, {counted} completion tokens at most, {each} bytes each, "
            f"{placement.description}",
            disk=tokens * each,
            notes=(*found.notes, *notes),
        )

    def _most_columns(self) -> SeamColumns | None:
        """The most that hidden states can take, before it is chosen which layers stay; None without."""
        cuts = self.context.cuts
        if not self.with_states or cuts.layers is None:
            return None
        number = most_seams(cuts.depth, cuts.layers)
        return SeamColumns(tuple(range(number)), int(self.context.config.get_text_config().hidden_size))

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
        seams = seams_of(Plan.load(self.context.directory.plan)) if self.with_states else None
        temperature, batch_size = recipe.finetuning.distillation.temperature, recipe.calibration.batch_size

        def ask(model: PreTrainedModel) -> TeacherFacts:
            pad = int(tokenizer.pad_token_id)
            made = cache_logits(model, encoded, folder, temperature, batch_size, pad, self.fingerprint(), seams, recipe.seed)
            return TeacherFacts(**made._asdict())

        facts = with_model(recipe, *self.context.checkpoint(Role.ORIGINAL), ask, EACH_RANK_ITS_OWN)
        say(f"  {facts.tokens:,} tokens of {facts.examples:,} examples in {folder}")
        return facts


def check_seams(context: RunContext) -> None:
    """Raises PollardError, before anything is calibrated, where the original and the pruned model have the same layers."""
    if context.recipe.finetuning.distillation.hidden and context.cuts.layers is None:
        raise PollardError(
            f"finetuning.distillation.hidden compares hidden states where layers are gone, and pruning.layers "
            f"({context.recipe.pruning.layers}) keeps all of {context.recipe.model.path}: leave hidden out, or keep fewer.",
            code="seams.no-gap",
        )


TEACHING = (Answers.kind, Teacher.kind)
"""The stages of what every training of a run learns from, beside the data."""
