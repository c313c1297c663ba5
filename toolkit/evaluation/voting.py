"""Several answers to one question: the one that most of them agree with (self-consistency, arXiv 2203.11171).

    "… #### 72"   "… #### 70"   "So it is #### 72."        72 wins, in the words of the first

Whether two answers agree is the task's own notion: either would be right if the other were the gold answer. So what the task
extracts is compared, not the words around it, in the format of the item's gold answer.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations

from toolkit.evaluation.judging import Answer, judge
from toolkit.evaluation.scores import Item
from toolkit.tasks import Example, Task


def judge_samples(task: Task, examples: Sequence[Example], answers: Sequence[Sequence[Answer]]) -> list[Item]:
    """One item per example, of the sample that won the vote; all of them stand in its `samples`."""
    judged = [judge(task, examples, of_one) for of_one in zip(*answers, strict=True)]
    if len(judged) == 1:
        return judged[0]
    items = []
    golds = [example.gold for example in examples]
    for winner, samples in zip(winners(task, answers, golds), zip(*judged, strict=True), strict=True):
        told = [{"prediction": s.prediction, "correct": s.correct, "tokens": s.tokens, "ended": s.ended} for s in samples]
        items.append(replace(samples[winner], tokens=sum(s.tokens for s in samples), samples=told))
    return items


def mean_score(items: Sequence[Item]) -> float:
    """The share of right answers among all samples: what one of them is worth without the vote."""
    every = [sample["correct"] for item in items for sample in item.samples]
    return sum(every) / len(every) if every else 0.0


def winners(task: Task, answers: Sequence[Sequence[Answer]], golds: Sequence[str] | None = None) -> list[int]:
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
