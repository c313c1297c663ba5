"""Trainings on what the student writes (`writer: student`), each in three stages; of the last training, `recover` is the third.

    pruned/ or refitted/ ─► student/1/answers ─► student/1/teacher ─► student/1/recover ─► student/1/recovered/
                                                                                              │
              student/1/recovered/ ─► student/2/answers ─► student/2/teacher ─► recover ─► recovered/

The student answers training prompts; the original says what it thinks of every token; the student is trained on that and on the
other data. All of its answers are kept, right or wrong: what they teach is the way back from its own mistakes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal, Self

from transformers import PreTrainedModel

from toolkit.estimate import DataSize, Machine, StageEstimate, StudentSizes
from toolkit.moe.placement import with_model
from toolkit.pipeline.context import RunContext
from toolkit.pipeline.drawing import TOKEN_BYTES, Answered, Drawing
from toolkit.pipeline.outlook import examples_or_all
from toolkit.pipeline.recipe_changes import DECIDING
from toolkit.pipeline.recipe_on_machine import RecipeOnMachine
from toolkit.pipeline.stage import Facts, Stage
from toolkit.pipeline.stage_names import STUDENT, student_stage
from toolkit.pipeline.stages.recover import Recover, TrainingFacts, needs_of_training
from toolkit.pipeline.stages.teacher import TEACHING, Teacher
from toolkit.recipe.roles import Role
from toolkit.recovery.method import training_of
from toolkit.recovery.student_answers import read_student_answers, student_sources
from toolkit.runtime.distributed import say
from toolkit.runtime.files import JsonObject, fingerprint_of
from toolkit.runtime.formatting import percent
from toolkit.runtime.run_paths import RunPaths
from toolkit.tasks import Encoded

EACH_RANK_ITS_OWN = "every rank asks the student about examples of its own"


@dataclass(frozen=True)
class StudentAnswerFacts(Facts):
    """Of all answers that were drawn; `kept` are those that differ."""

    drawn: int
    kept: int
    right: int
    ended: int  # by themselves; the others were cut


class StudentStage(Stage):
    """One part of one training."""

    kind = STUDENT
    part: ClassVar[Literal["answers", "teacher", "recover"]]
    sections = DECIDING[Role.RECOVERED]
    output = STUDENT
    resumes = (STUDENT,)
    remaking = "the student answers, and the original is asked about it again, where a training needs it"

    def __init__(self, context: RunContext, number: int) -> None:
        """`number`: of the training, from 1."""
        super().__init__(context)
        self.number = number

    @classmethod
    def planned(cls, context: RunContext, role: Role | None, before: Sequence[Stage]) -> Sequence[Stage]:
        """Those of all trainings, in the order in which they are done: stages of several classes."""
        trained = Role.RECOVERED in context.recipe.evaluation.models
        rounds = context.recipe.finetuning.student_rounds if trained else 0
        found: list[Stage] = []
        for number in range(1, rounds + 1):
            found += [StudentAnswers(context, number), StudentTeacher(context, number)]
            found += [StudentTraining(context, number)] if number < rounds else []
        return found

    def is_asked_for(self) -> bool:
        """Always, where it is planned: unlike the stages whose work it shares, it does not hang on other data."""
        return True

    @property
    def name(self) -> str:
        return student_stage(self.number, self.part)

    def with_context(self, context: RunContext) -> Self:
        return type(self)(context, self.number)

    @property
    def _round(self) -> str:
        rounds = self.context.recipe.finetuning.student_rounds
        return f" (round {self.number} of {rounds})" * (rounds > 1)

    @property
    def _paths(self) -> RunPaths:
        return self.context.directory.student_round(self.number)

    @property
    def _sizes(self) -> StudentSizes:
        sizes = self.context.data_sizes.student
        assert sizes is not None, "the recipe trains on nothing that the student writes"
        return sizes


class StudentAnswers(StudentStage):
    """The model as it stands before this training -> student/<number>/answers/: its own answers to training prompts."""

    part = "answers"
    batch_section = "evaluation"
    result = "by plan"

    def __init__(self, context: RunContext, number: int) -> None:
        super().__init__(context, number)
        self.output = f"{STUDENT}/{number}/answers"
        self.needs = needs_of_training(context.recipe, number)[:1]

    def purpose(self) -> str:
        return f"have the model that is to be trained answer training prompts{self._round}"

    def fingerprint(self) -> str:
        return self.context.fingerprints.student[self.number - 1].answers

    def estimate(self, machine: Machine) -> StageEstimate:
        """At most: no two answers are the same."""
        sizes, prompts = RecipeOnMachine(self.context, machine), self._sizes.prompts
        tokens = (prompts.examples or 0) * (prompts.mean + self.context.recipe.evaluation.max_new_tokens)
        found = sizes.generation(self.name, sizes.pruned(), prompts, whole=True)
        return replace(found, disk=round(TOKEN_BYTES * tokens))

    def outlook(self) -> str:
        new = self.context.recipe.evaluation.max_new_tokens
        return f"{examples_or_all(self._sizes.prompts.examples)} answers drawn, at most {new:,} new tokens each"

    def run(self) -> StudentAnswerFacts:
        recipe, directory = self.context.recipe, self.context.directory
        writer = training_of(recipe, directory, Role.RECOVERED, self.number).source
        # Of the very model: what an interrupted stage has left of another one under the same fingerprint is none to go on from
        identity = fingerprint_of(self.fingerprint(), directory.identity_of(self.needs[0]))
        return with_model(recipe, writer, None, lambda model: self._draw(model, identity), EACH_RANK_ITS_OWN)

    def _draw(self, model: PreTrainedModel, identity: str) -> StudentAnswerFacts:
        context, facts = self.context, []
        for number, source in student_sources(context.recipe).items():
            first = (self.number - 1) * source.samples
            drawing = Drawing(context.recipe, source, context.tokenizer, context.data, first_sample=first)
            folder = self._paths.answers / str(number)
            lines = drawing.write(model, folder, identity, partial(all_different, drawing))
            drawn, right, ended = (sum(line[key] for line in lines) for key in ("drawn", "right", "ended"))
            say(
                f"  {source.name}: {len(lines):,} of {drawn:,} to {len(drawing.asked):,} prompts kept, no two the same; "
                f"{percent(right / drawn)} of all are right, {drawn - ended:,} were cut"
            )
            facts.append(StudentAnswerFacts(drawn, len(lines), right, ended))
        return StudentAnswerFacts(*map(sum, zip(*((f.drawn, f.kept, f.right, f.ended) for f in facts), strict=True)))


def all_different(drawing: Drawing, piece: Sequence[Answered]) -> list[JsonObject]:
    """Every answer, once: cut to `finetuning.max_length`, since what the teacher says of a token needs nothing behind it. With
    how often it was drawn, and of these, how often it was right, and had ended."""
    longest = drawing.recipe.finetuning.max_length
    found: dict[tuple[int, ...], JsonObject] = {}
    for each in piece:
        for answer in each.answers:
            ids = (*each.prompt, *answer.tokens)[:longest]
            line = found.setdefault(
                ids, {"input_ids": ids, "prompt_length": len(each.prompt), "drawn": 0, "right": 0, "ended": 0}
            )
            line["drawn"] += 1
            line["right"] += drawing.is_right(each, answer)
            line["ended"] += answer.ended
    return [*found.values()]


class StudentTeacher(StudentStage, Teacher):
    """Those answers -> student/<number>/teacher/: the original model's logits on every token of them."""

    part = "teacher"
    result = "by plan"

    def __init__(self, context: RunContext, number: int) -> None:
        super().__init__(context, number)
        self.output, self.needs = f"{STUDENT}/{number}/teacher", (student_stage(number, "answers"),)

    def purpose(self) -> str:
        return f"keep what the original model says of every token of these answers{self._round}"

    def fingerprint(self) -> str:
        return self.context.fingerprints.student[self.number - 1].teacher

    @property
    def _size(self) -> DataSize:
        return self._sizes.written

    @property
    def _folder(self) -> Path:
        return self._paths.teacher

    def _encoded(self) -> list[Encoded]:
        return read_student_answers(self.context.recipe, self._paths.answers)


class StudentTraining(StudentStage, Recover):
    """A training before the last -> student/<number>/recovered/: the student whose answers the next one is about."""

    part = "recover"
    result = "unique"
    resumes = Recover.resumes
    remaking = ""

    def __init__(self, context: RunContext, number: int) -> None:
        super().__init__(context, number)
        self.output = f"{STUDENT}/{number}/recovered"
        self.checkpoints = (self.output, f"{STUDENT}/{number}/adapter")
        self.scratch = f"checkpoints/student-{number}"
        self.needs = (*needs_of_training(context.recipe, number), *TEACHING)

    def purpose(self) -> str:
        start = f"model that round {self.number - 1} has left" if self.number > 1 else f"{self.start} model"
        return f"fine-tune the {start} {self._training()}{self._round}"

    def fingerprint(self) -> str:
        return self.context.fingerprints.student[self.number - 1].model

    def run(self) -> TrainingFacts:
        return self._train("recovered", self.number)
