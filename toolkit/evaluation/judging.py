"""What is said of answers, apart from how they were won: a scorer that is mended judges the same answers again.

    {"index": 7, "correct": false, "flexible": true, "prediction": "So it is 72.", "gold": "… #### 72", …}

An item whose scorer raised is kept with the error, as not right; the others are judged.
"""

from collections.abc import Sequence
from typing import NamedTuple

from toolkit.evaluation.scores import Item
from toolkit.tasks import Example, Task


class Answer(NamedTuple):
    """What a model answered: `tokens` counts what was generated, `ended` says that the model stopped by itself. `written` is all
    that it wrote where that is more than the answer: the chat template's frame, reasoning, what follows a stop text."""

    text: str
    tokens: int
    ended: bool
    written: str | None = None


def judge(task: Task, examples: Sequence[Example], answers: Sequence[Answer]) -> list[Item]:
    """One item per example, in the same order. Alone or on one rank: scorers may start processes of their own."""
    verdicts = task.scorer.verdicts([(answer.text, example.gold) for answer, example in zip(answers, examples, strict=True)])
    items = []
    for index, (example, answer, verdict) in enumerate(zip(examples, answers, verdicts, strict=True)):
        error = f"item {index} ({example.where or 'made by hand'}): {verdict.error}" if verdict.error else None
        items.append(
            Item(
                index=index,
                prompt=example.question,
                gold=example.gold,
                prediction=answer.text,
                written=answer.written,
                correct=verdict.strict,
                tokens=answer.tokens,
                ended=answer.ended,
                flexible=verdict.flexible,
                error=error,
                note=verdict.note,
                credit=verdict.credit,
            )
        )
    return items
