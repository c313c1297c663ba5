"""Results class by class, and which class is taken for which: of tasks whose answers are a few labels.

    {"labels": ["spam", "ham"], "models": {"original": {"counts": [[48, 1, 1], [0, 50, 0]], "macro_f1": 0.98, …}, …}}

`counts` is the confusion matrix [C, C + 1]: a row per gold label, a column per answered label, and last a column for answers that
are none of them. A label is answered where the task's scorer calls the answer right by it, so the diagonal adds up to the score.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from pydantic import Field

from toolkit.recipe.roles import Role
from toolkit.report.answer import Answer
from toolkit.report.measurements import Facts, Interval, Number
from toolkit.runtime.intervals import wilson

Judge = Callable[[str, str], bool]  # prediction, gold
FEW = 12  # labels, where nothing but their number says that answers are labels
EACH = 5  # questions per label, on average: fewer and they are texts that happen to repeat
MOST = 30  # labels of a matrix that can be read


class ClassResult(Facts):
    """One label. `recall`: of its `n` questions the share answered with it, with its 95 % `interval` (Wilson); `precision`: of
    the answers with it the share that is right; `f1`: their harmonic mean. None where nothing was asked or answered."""

    n: int
    answered: int
    right: int
    recall: Number | None
    interval: Interval | None
    precision: Number | None
    f1: Number | None

    @classmethod
    def of(cls, n: int, answered: int, right: int) -> "ClassResult":
        recall, precision = (right / n if n else None), (right / answered if answered else None)
        f1 = 2 * right / (n + answered) if n + answered else None
        interval = wilson(right, n) if n else None
        return cls(n=n, answered=answered, right=right, recall=recall, interval=interval, precision=precision, f1=f1)


class ModelClasses(Facts):
    """One model, its labels in the order of `ClassFacts.labels`; `macro_f1`: the mean over the labels that were asked for."""

    counts: list[list[int]]
    classes: list[ClassResult]
    macro_f1: Number


class ClassFacts(Facts):
    """`by_letter`: the labels are the letters of choices, whose order says nothing about the questions."""

    labels: list[str]
    models: dict[Role, ModelClasses]
    by_letter: bool = Field(default=False)


def class_facts(
    answers: Mapping[Role, Sequence[Answer]], label_of: Callable[[str], str | None], judge: Judge, labels: Sequence[str] = ()
) -> ClassFacts | None:
    """`label_of`: the label of a gold answer; `labels`: all that there are, in their order, where the task names them. None where
    the answers are no labels: fewer than two, more than MOST, or, where the task names none, more than FEW or too rare."""
    golds = {answer.gold: label_of(answer.gold) for found in answers.values() for answer in found}
    seen = sorted({label for label in golds.values() if label})
    if None in golds.values() or not 2 <= len(seen) <= MOST or not answers:
        return None
    fewest = min(len(found) for found in answers.values())
    if not labels and (len(seen) > FEW or fewest < EACH * len(seen)):
        return None
    order = [*(label for label in labels if label in seen), *(label for label in seen if label not in labels)]
    written = {str(label): gold for gold, label in golds.items()}  # a gold answer of each
    return ClassFacts(
        labels=order, models={role: _model_classes(found, order, golds, written, judge) for role, found in answers.items()}
    )


def _model_classes(
    answers: Sequence[Answer], order: Sequence[str], golds: Mapping[str, str | None], written: Mapping[str, str], judge: Judge
) -> ModelClasses:
    pairs: Counter[tuple[int, int]] = Counter()
    read: dict[str, int] = {}  # what was answered -> its column
    for answer in answers:
        gold = order.index(str(golds[answer.gold]))
        if answer.correct:
            pairs[gold, gold] += 1
            continue
        if answer.prediction not in read:
            named = (place for place, label in enumerate(order) if judge(answer.prediction, written[label]))
            read[answer.prediction] = next(named, len(order))
        column = read[answer.prediction]
        pairs[gold, len(order) if column == gold else column] += 1  # wrong by its own gold answer: none of the labels
    counts = [[pairs[gold, column] for column in range(len(order) + 1)] for gold in range(len(order))]
    classes = [
        ClassResult.of(n=sum(row), answered=sum(other[place] for other in counts), right=row[place])
        for place, row in enumerate(counts)
    ]
    asked = [one.f1 or 0.0 for one in classes if one.n]
    return ModelClasses(counts=counts, classes=classes, macro_f1=sum(asked) / len(asked) if asked else 0.0)
