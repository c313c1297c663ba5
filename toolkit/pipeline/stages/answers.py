"""Training data that the original model writes: its own sampled answers to training prompts, the right ones; and to questions of
its own, those that most answers agree with.

Rejection-sampling fine-tuning (arXiv 2308.01825); new questions: RetriKT (arXiv 2310.15594), voted on as in self-consistency
(arXiv 2203.11171).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from toolkit.estimate import DataSize, Machine, StageEstimate
from toolkit.moe.placement import with_model
from toolkit.pipeline.agreement import AnsweredQuestions, answer_new_questions
from toolkit.pipeline.drawing import TOKEN_BYTES, Answered, Drawing
from toolkit.pipeline.outlook import examples_or_all
from toolkit.pipeline.recipe_changes import DECIDING
from toolkit.pipeline.recipe_on_machine import RecipeOnMachine
from toolkit.pipeline.rounds import trains
from toolkit.pipeline.stage import Facts, Stage
from toolkit.recipe.roles import Role
from toolkit.recipe.schema import Recipe
from toolkit.recovery.training_data import sources_without_student
from toolkit.runtime.distributed import say
from toolkit.runtime.errors import PollardError
from toolkit.runtime.files import JsonObject
from toolkit.tasks import DataCache

EACH_RANK_ITS_OWN = "every rank asks the original about examples of its own"
"""Why a model in parts on all ranks cannot serve."""


@dataclass(frozen=True)
class AnswerFacts(Facts):
    drawn: int
    kept: int


@dataclass(frozen=True)
class QuestionFacts(AnswerFacts):
    """Where the original writes questions, too. `kept` counts answers to these as well."""

    texts: int
    malformed: int
    repeated: int
    overlapping: int
    questions: int
    agreed: int

    @classmethod
    def of(cls, facts: AnswerFacts, answered: Sequence[AnsweredQuestions]) -> Self:
        written = [each.written for each in answered]
        return cls(
            **asdict(facts),
            texts=sum(each.texts for each in written),
            malformed=sum(each.malformed for each in written),
            repeated=sum(each.repeated for each in written),
            overlapping=sum(each.overlapping for each in written),
            questions=sum(len(each.examples) for each in written),
            agreed=sum(each.agreed for each in answered),
        )


class Answers(Stage):
    """Training prompts -> answers/: the original model's own right answers."""

    kind = "answers"
    batch_section = "evaluation"
    sections = DECIDING[Role.CONTROL]
    output = "answers"
    resumes = ("answers",)
    remaking = "the original answers again, where a training needs it"

    def is_asked_for(self) -> bool:
        context = self.context
        return context.teaching is None and trains(context.recipe) and context.fingerprints.teaching.answers is not None

    def purpose(self) -> str:
        return "have the original model answer training prompts"

    def fingerprint(self) -> str:
        return str(self.context.fingerprints.teaching.answers)

    def estimate(self, machine: Machine) -> StageEstimate:
        """At most: all answers are right."""
        sizes, prompts = RecipeOnMachine(self.context, machine), self._prompts()
        tokens = (prompts.examples or 0) * (prompts.mean + self.context.recipe.evaluation.max_new_tokens)
        found = sizes.generation(self.name, sizes.original(), prompts, whole=True)
        return replace(found, disk=round(TOKEN_BYTES * tokens))

    def outlook(self) -> str:
        new = self.context.recipe.evaluation.max_new_tokens
        return f"{examples_or_all(self._prompts().examples)} answers drawn, at most {new:,} new tokens each"

    def _prompts(self) -> DataSize:
        prompts = self.context.data_sizes.answers
        assert prompts is not None, "the recipe trains on no answers of the original's own"
        return prompts

    def run(self) -> AnswerFacts:
        recipe, tokenizer, folder = self.context.recipe, self.context.tokenizer, self.context.directory.answers

        def answer(model: PreTrainedModel) -> AnswerFacts:
            return draw_answers(model, tokenizer, recipe, folder, self.fingerprint(), self.context.data)

        return with_model(recipe, *self.context.checkpoint(Role.ORIGINAL), answer, EACH_RANK_ITS_OWN)


def draw_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
    folder: Path,
    fingerprint: str,
    data: DataCache | None = None,
) -> AnswerFacts:
    """Writes `folder`/<number of the source>/00000.jsonl, … : `input_ids` and `prompt_length` of every right answer.

    Returns how many were drawn and kept. Raises PollardError where a source has no right answer.
    """
    data, facts, answered = data or DataCache(), AnswerFacts(0, 0), []
    for number, source in sources_without_student(recipe).items():
        if source.self_generated:
            drawing, place = Drawing(recipe, source, tokenizer, data), folder / str(number)
            if source.questions:
                answered.append(answer_new_questions(drawing, model, place, fingerprint))
                found = AnswerFacts(answered[-1].drawn, answered[-1].agreed)
            else:
                found = _draw(drawing, model, place, fingerprint)
            facts = AnswerFacts(facts.drawn + found.drawn, facts.kept + found.kept)
    return QuestionFacts.of(facts, answered) if answered else facts


def _draw(drawing: Drawing, model: PreTrainedModel, folder: Path, fingerprint: str) -> AnswerFacts:
    source, longest = drawing.source, drawing.recipe.finetuning.max_length

    def right_ones(piece: Sequence[Answered]) -> list[JsonObject]:
        right = {}  # in the order drawn, equal ones once
        for each in piece:
            for answer in each.answers:
                fits = answer.ended and len(each.prompt) + len(answer.tokens) <= longest
                if fits and drawing.is_right(each, answer):
                    right[(*each.prompt, *answer.tokens)] = len(each.prompt)
        return [{"input_ids": ids, "prompt_length": length} for ids, length in right.items()]

    kept, prompts = len(drawing.write(model, folder, fingerprint, right_ones)), len(drawing.asked)
    drawn = prompts * source.samples
    say(f"  {source.name}: {kept:,} of {drawn:,} answers to {prompts:,} prompts kept: right, ended, no two the same")
    if not kept:
        task = drawing.data.task(source.task or drawing.recipe.task)
        raise PollardError(
            f"None of the original model's {drawn:,} answers to training prompts of {task.name} is right and ends within "
            f"{drawing.recipe.evaluation.max_new_tokens} new tokens: leave self_generated out, draw more samples, or raise "
            "evaluation.max_new_tokens.",
            code="answers.none-right",
        )
    return AnswerFacts(drawn, kept)
