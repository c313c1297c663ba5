"""Answers to questions that nobody knows the answers to: the original's own questions, and those answers of its own that most of
the others agree with (self-consistency, arXiv 2203.11171).

    Ann has 5 cups and buys 3. How many cups …?     "5 + 3 = 8. #### 8"   "#### 8"   "5 + 3 = 9. #### 9"   "#### 8"      3 of 4

Two answers agree where the task's scorer finds either right by the other. The first of those that agree is kept: samples are
drawn alike, so it is a random one of them, by the recipe's seed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedModel

from toolkit.evaluation import count_votes
from toolkit.pipeline.drawing import Answer, Answered, Drawing
from toolkit.pipeline.questions import NewQuestions, QuestionWriting
from toolkit.runtime.distributed import say
from toolkit.runtime.errors import PollardError
from toolkit.runtime.files import JsonObject
from toolkit.tasks import Task, gold_of


class AnsweredQuestions(NamedTuple):
    written: NewQuestions
    drawn: int  # answers
    agreed: int  # questions of which an answer is kept


def answer_new_questions(drawing: Drawing, model: PreTrainedModel, folder: Path, fingerprint: str) -> AnsweredQuestions:
    """Writes the new questions of a source into `folder`/questions, and into `folder` `input_ids` and `prompt_length` of an
    answer to each of those whose answers agree. Raises PollardError where there are none."""
    source, tokenizer = drawing.source, drawing.tokenizer
    writing = QuestionWriting(drawing.recipe, source, tokenizer, drawing.data)
    written = writing.write(model, folder / "questions", fingerprint)
    majority = Majority(writing.task, gold_of(tokenizer, writing.examples[0]), source.samples, drawing.recipe.finetuning.max_length)
    agreed = len(replace(drawing, questions=written.examples).write(model, folder, fingerprint, majority.lines))
    number = len(written.examples)
    say(f"  {source.name}: {agreed:,} of {number:,} kept: more than half of {source.samples} answers agree")
    if not agreed:
        raise PollardError(
            f"The original model's answers to {number:,} new questions for task {writing.task.name} never agree (more than half "
            f"of {source.samples} that end within {drawing.recipe.evaluation.max_new_tokens} new tokens): leave `questions` "
            "out, or raise evaluation.max_new_tokens.",
            code="questions.none-agreed",
        )
    return AnsweredQuestions(written, number * source.samples, agreed)


@dataclass(frozen=True)
class Majority:
    """Keeps one answer to each question that more than half of its `samples` agree on. Only those have a vote that ended by
    themselves and fit, with the prompt, into `longest` tokens. `gold`: an answer whose format says where in a text it stands."""

    task: Task
    gold: str
    samples: int
    longest: int

    def lines(self, piece: Sequence[Answered]) -> list[JsonObject]:
        whole = [[answer for answer in each.answers if self._has_vote(each, answer)] for each in piece]
        texts = [[answer.text.strip() for answer in answers] for answers in whole]
        found = []
        for each, answers, votes in zip(piece, whole, count_votes(self.task, texts, [self.gold] * len(piece)), strict=True):
            most = max(votes, default=0)
            if 2 * most > self.samples:
                tokens = answers[votes.index(most)].tokens
                found.append({"input_ids": [*each.prompt, *tokens], "prompt_length": len(each.prompt)})
        return found

    def _has_vote(self, answered: Answered, answer: Answer) -> bool:
        return answer.ended and len(answered.prompt) + len(answer.tokens) <= self.longest
