"""The keys with which a recipe mixes data for calibration and training, and with which the models themselves write some."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from toolkit.recipe.data import DataRecipe, optional

SHOWN = 4  # training examples before a new question
SAMPLES, SAMPLING_TEMPERATURE = 4, 0.7  # the temperature of rejection-sampling fine-tuning (arXiv 2308.01825)


class SourceRecipe(DataRecipe):
    """One source of a calibration mix."""

    weight: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """The source's share of the mix, relative to the other weights. Default: its number of examples."""


def all_weights_or_none(sources: list[Any] | None) -> list[Any] | None:
    if len({source.weight is None for source in sources or ()}) > 1:
        raise ValueError("some sources have a weight and some have none: give every source one, or none")
    return sources


class TrainingSourceRecipe(SourceRecipe):
    """One source of the training data."""

    self_generated: bool = False
    """Train on the original model's own sampled answers to the prompts of `task` (default: the recipe's), if scored correct."""
    samples: int = Field(default=SAMPLES, ge=1)
    """For `self_generated`: answers sampled per prompt; duplicates are removed."""
    temperature: float = Field(default=SAMPLING_TEMPERATURE, gt=0, allow_inf_nan=False)
    """For `self_generated`: sampling temperature."""
    writer: Literal["original", "student"] = Field(default="original", exclude_if=lambda writer: writer == "original")
    """For `self_generated`: who answers. student: the model as it stands before recovery. All its answers are kept, and teach by
    what the teacher says of them alone, never by cross entropy (docs/recovery.md)."""
    rounds: int = Field(default=1, ge=1, exclude_if=lambda rounds: rounds == 1)
    """For `writer: student`: so many trainings, each on answers of the model that the one before has left."""

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if self.self_generated and self.text:
            raise ValueError("self_generated answers the prompts of a `task`, and a `text` has none")
        if not self.self_generated and (self.task is None) == (self.text is None):
            raise ValueError("give either a `task`, a `text` (a .jsonl or .txt file), or `self_generated: true`")
        if not self.self_generated and (self.samples, self.temperature) != (SAMPLES, SAMPLING_TEMPERATURE):
            raise ValueError("samples and temperature belong to answers of the model's own: add `self_generated: true`")
        return self

    questions: int | None = optional(ge=1)
    """For `self_generated`: the original writes so many new questions first, after `shown` of the training examples, and answers
    those instead. One answer is kept where most of the `samples` agree (docs/recovery.md)."""
    shown: int = Field(default=SHOWN, ge=0, exclude_if=lambda shown: shown == SHOWN)
    """For `questions`: training examples that stand before a new question. 0: the first words of one, which it goes on from."""

    @model_validator(mode="after")
    def _questions_are_answered(self) -> Self:
        if self.questions is None and self.shown != SHOWN:
            raise ValueError("shown says what stands before a new question, and none is written: add `questions: …`")
        if self.questions is None:
            return self
        if not self.self_generated:
            raise ValueError("questions are written, and answered, by the original model: add `self_generated: true`")
        if self.written_by_student:
            raise ValueError("the student answers training prompts; new questions are the original's to answer: leave one out")
        if self.samples < 2:
            raise ValueError(
                "nobody knows the answers to new questions, so one is kept where several agree: samples must be at least 2"
            )
        return self

    @model_validator(mode="after")
    def _student_writes_answers(self) -> Self:
        if self.written_by_student and not self.self_generated:
            raise ValueError("writer says who answers the prompts: add `self_generated: true`")
        if self.rounds > 1 and not self.written_by_student:
            raise ValueError(
                "rounds are of answers that the student writes, and the original is always the same: add `writer: student`"
            )
        return self

    @property
    def written_by_student(self) -> bool:
        """Whether it is text of the model that is trained."""
        return self.writer == "student"

    @property
    def name(self) -> str:
        """The name in messages."""
        if self.questions:
            return f"own questions{f' like those of {self.task.title}' if self.task else ''}"
        if self.written_by_student:
            return f"the student's answers{f' to {self.task.title}' if self.task else ''}"
        return f"own answers{f' to {self.task.title}' if self.task else ''}" if self.self_generated else super().name
