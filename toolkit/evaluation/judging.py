"""What is said of answers, apart from how they were won: a scorer that is mended judges the same answers again.

    {"index": 7, "correct": false, "flexible": true, "prediction": "So it is 72.", "gold": "… #### 72", …}

An item whose scorer raised is kept with the error, as not right; the others are judged.
"""

from collections.abc import Sequence
from typing import NamedTuple

from toolkit.evaluation.scores import Item
from toolkit.tasks import Example, Task


class Answer(NamedTuple):
    """What a model wrote: `tokens` counts what was generated, `ended` says that the model stopped by itself."""

    text: str
    tokens: int
    ended: bool


def judge(task: Task, examples: Sequence[Example], answers: Sequence[Answer]) -> list[Item]:
    """One item per example, in the same order. Alone or on one rank: scorers may start processes of their own."""
    verdicts = task.scorer.verdicts([(answer.text, example.gold) for answer, example in zip(answers, examples, strict=True)])
    items = []
    for index, (example, answer, verdict) in enumerate(zip(examples, answers, verdicts, strict=True)):
        question = "\n".join(m["content"] for m in example.messages)
        error = f"item {index} ({example.where or 'made by hand'}): {verdict.error}" if verdict.error else None
        items.append(
            Item(
                index=index,
                prompt=question,
                gold=example.gold,
                prediction=answer.text,
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
