"""Two models on the same questions: which of them is right where says more than two scores do.

Questions are matched by their text and gold answer, wherever they stand in the files; a question that is put twice is
matched with its like, in order.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from toolkit.recipe.roles import Role
from toolkit.report.facts import AnswerChanges, ChangedAnswer, ChangedAnswers, ModelResult, RolePair
from toolkit.runtime.intervals import Pair, pair

Question = tuple[str, str, int]  # its text, gold, which of its like
Correctness = dict[Question, bool]  # whether it was answered rightly
REFERENCES = (Role.ORIGINAL, Role.CONTROL, Role.PRUNED, Role.REFITTED, Role.RECOVERED)  # a model is compared with those before it
SHOWN = 5  # changed answers of each kind
LONGEST = 1_500  # characters of a text: an endless answer is not worth more


@dataclass(frozen=True)
class Answer:
    """One line of a predictions file, as far as reports read it."""

    index: int
    prompt: str
    gold: str
    prediction: str
    correct: bool
    credit: float | None = None  # where the scorer gives degrees

    @property
    def degree(self) -> float:
        return float(self.correct) if self.credit is None else self.credit


def by_question(answers: Sequence[Answer]) -> dict[Question, Answer]:
    """Keyed by what was asked and not by its place, so that two runs can be matched."""
    count: Counter[tuple[str, str]] = Counter()
    found = {}
    for answer in sorted(answers, key=lambda answer: answer.index):
        asked = answer.prompt, answer.gold
        found[*asked, count[asked]] = answer
        count[asked] += 1
    return found


def correctness(answers: Sequence[Answer]) -> Correctness:
    return {question: answer.correct for question, answer in by_question(answers).items()}


def credit_differences(first: Sequence[Answer], second: Sequence[Answer]) -> list[float]:
    """The first's degree minus the second's, question by question; none where neither has any. The two must have answered the
    same questions."""
    if all(answer.credit is None for answer in (*first, *second)):
        return []
    others = by_question(second)
    return [answer.degree - others[question].degree for question, answer in by_question(first).items()]


def compare_paired(first: Correctness, second: Correctness) -> Pair:
    """The statistics of two models, which must have answered the same questions."""
    outcomes = Counter((first[question], second[question]) for question in first)
    return pair(outcomes[True, True], outcomes[True, False], outcomes[False, True], outcomes[False, False])


def compare_all(models: Mapping[Role, ModelResult], answers: Mapping[Role, Sequence[Answer]]) -> list[RolePair]:
    """Every two models of a run that answered the same questions of the same split; the reference is the second."""
    order = [*REFERENCES, *(role for role in models if role not in REFERENCES)]
    correct = {role: correctness(answers[role]) for role in sorted(models, key=order.index) if answers.get(role)}
    return [
        RolePair.of(
            first, second, compare_paired(correct[first], correct[second]), credit_differences(answers[first], answers[second])
        )
        for second, first in combinations(correct, 2)
        if models[first].split == models[second].split and correct[first].keys() == correct[second].keys()
    ]


def changed_answers(role: Role, original: Sequence[Answer], result: Sequence[Answer]) -> AnswerChanges | None:
    """What the result, the model `role`, answers wrongly and the original rightly, and the reverse; None where the two did not
    answer the same questions in the same places."""
    before, after = ({answer.index: answer for answer in answers} for answers in (original, result))
    if not before or {i: answer.prompt for i, answer in before.items()} != {i: answer.prompt for i, answer in after.items()}:
        return None
    lost = [i for i in sorted(before) if before[i].correct and not after[i].correct]
    won = [i for i in sorted(before) if after[i].correct and not before[i].correct]

    def shown(indices: Sequence[int]) -> ChangedAnswers:
        examples = [_changed_answer(before[i], after[i]) for i in indices[:SHOWN]]
        return ChangedAnswers(count=len(indices), examples=examples)

    return AnswerChanges(model=role, lost=shown(lost), won=shown(won))


def _changed_answer(before: Answer, after: Answer) -> ChangedAnswer:
    return ChangedAnswer(
        index=before.index,
        question=_shortened(before.prompt),
        gold=_shortened(before.gold),
        before=_shortened(before.prediction),
        after=_shortened(after.prediction),
    )


def _shortened(text: str) -> str:
    """Its beginning and its end, where it is too long."""
    if len(text) <= LONGEST:
        return text
    return f"{text[: LONGEST // 2]} […] {text[-LONGEST // 2 :]}"
