"""What is said of answers, apart from how they were won: a scorer that is mended judges the same answers again.

    {"index": 7, "correct": false, "flexible": true, "prediction": "So it is 72.", "gold": "… #### 72", …}

An item whose scorer raised is kept with the error, as not right; the others are judged.

Several answers to one question: the one that most of them agree with (self-consistency, arXiv 2203.11171).

    "… #### 72"   "… #### 70"   "So it is #### 72."        72 wins, in the words of the first

Whether two answers agree is the task's own notion: either would be right if the other were the gold answer. So what the task
extracts is compared, not the words around it, in the format of the item's gold answer.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations

from toolkit.evaluation.answers import Answer
from toolkit.evaluation.scores import Item
from toolkit.tasks import Example, Task


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


def judge_samples(task: Task, examples: Sequence[Example], answers: Sequence[Sequence[Answer]]) -> list[Item]:
    """One item per example, of the sample that won the vote; all of them stand in its `samples`."""
    judged = [judge(task, examples, of_one) for of_one in zip(*answers, strict=True)]
    if len(judged) == 1:
        return judged[0]
    items = []
    golds = [example.gold for example in examples]
    for winner, samples in zip(vote_winners(task, answers, golds), zip(*judged, strict=True), strict=True):
        told = [{"prediction": s.prediction, "correct": s.correct, "tokens": s.tokens, "ended": s.ended} for s in samples]
        items.append(replace(samples[winner], tokens=sum(s.tokens for s in samples), samples=told))
    return items


def mean_score(items: Sequence[Item]) -> float:
    """The share of right answers among all samples: what one of them is worth without the vote."""
    every = [sample["correct"] for item in items for sample in item.samples]
    return sum(every) / len(every) if every else 0.0


def vote_winners(task: Task, answers: Sequence[Sequence[Answer]], golds: Sequence[str] | None = None) -> list[int]:
    """Of each item's answers the one that most agree with. `golds` are the items' gold answers, whose format says where an
    answer stands; without them every answer's own does.

    Per item the first of the samples that agree with most; of as many votes, the first. Answers in which the task finds
    nothing (they do not even agree with themselves) have no vote, unless there are no others: then equal words agree."""
    texts = [[answer.text.strip() for answer in of_one] for of_one in answers]
    pairs = [(i, a, b) for i, of_one in enumerate(texts) for a, b in _pairs(of_one)]
    verdicts = task.scorer.verdicts([(a, task.scorer.as_gold(b, golds[i] if golds else b)) for i, a, b in pairs])
    right = {pair for pair, verdict in zip(pairs, verdicts, strict=True) if verdict.strict}
    found = []
    for i, of_one in enumerate(texts):
        voting = [text for text in of_one if (i, text, text) in right]
        votes = [
            sum(text == other or {(i, text, other), (i, other, text)} <= right for other in voting or of_one)
            if text in voting or not voting
            else 0
            for text in of_one
        ]
        found.append(votes.index(max(votes)))
    return found


def _pairs(texts: Sequence[str]) -> list[tuple[str, str]]:
    different = list(dict.fromkeys(texts))
    return [*((text, text) for text in different), *permutations(different, 2)]
