"""Answers judged, apart from how they were generated: after a scorer is mended, the same answers are judged again.

    {"index": 7, "correct": false, "flexible": true, "prediction": "So it is 72.", "gold": "… #### 72", …}

An item whose scorer raised is kept with the error, as not right; the others are judged.

Of several answers to one question the one wins that most of them agree with (self-consistency, arXiv 2203.11171).

    "… #### 72"   "… #### 70"   "So it is #### 72."        72 wins, in the words of the first

Whether two answers agree is the task's own notion: either would be right if the other were the gold answer. So what the task
extracts is compared, not the words around it, in the format of the item's gold answer.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations

from toolkit.evaluation.answers import Answer
from toolkit.evaluation.scores import Item, Sample
from toolkit.tasks import Example, Task
from toolkit.tasks.templates import Row


def judge(task: Task, examples: Sequence[Example], answers: Sequence[Answer]) -> list[Item]:
    """One item per example, in the same order. Call it on one rank only: scorers may start processes of their own."""
    pairs = [(answer.text, example.gold) for answer, example in zip(answers, examples, strict=True)]
    verdicts = task.scorer.verdicts(pairs, [example.row for example in examples])
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
    """One item per example, of the answer that won the vote; all of its answers stand in `samples`."""
    judged = [judge(task, examples, sample) for sample in zip(*answers, strict=True)]
    if len(judged) == 1:
        return judged[0]
    items = []
    winners = vote_winners(task, answers, [example.gold for example in examples], [example.row for example in examples])
    for winner, candidates in zip(winners, zip(*judged, strict=True), strict=True):
        samples = [Sample(item.prediction, item.correct, item.tokens, item.ended) for item in candidates]
        items.append(replace(candidates[winner], tokens=sum(item.tokens for item in candidates), samples=samples))
    return items


def mean_score(items: Sequence[Item]) -> float:
    """The share of right answers among all samples: what one of them is worth without the vote."""
    correct = [sample.correct for item in items for sample in item.samples]
    return sum(correct) / len(correct) if correct else 0.0


def vote_winners(
    task: Task, answers: Sequence[Sequence[Answer]], golds: Sequence[str] | None = None, rows: Sequence[Row] | None = None
) -> list[int]:
    """The number of each item's winning answer: the first of those that most agree with.

    `golds` are the items' gold answers, whose format says where an answer stands; without them every answer's own does. Answers
    in which the task finds nothing (they do not even agree with themselves) have no vote, unless there are no others: then
    equal texts agree.
    """
    texts = [[answer.text.strip() for answer in candidates] for candidates in answers]
    winners = []
    for candidates, votes in zip(texts, count_votes(task, texts, golds, rows), strict=True):
        votes = votes if any(votes) else [candidates.count(text) for text in candidates]
        winners.append(votes.index(max(votes)))
    return winners


def count_votes(
    task: Task, texts: Sequence[Sequence[str]], golds: Sequence[str] | None = None, rows: Sequence[Row] | None = None
) -> list[list[int]]:
    """For every one of an item's answers, how many of them agree with it, itself included; 0 where the task finds nothing in it.
    `golds`: as for `vote_winners`; `rows`: the items' lines of data."""
    pairs = [(item, one, other) for item, candidates in enumerate(texts) for one, other in _pairs(candidates)]
    verdicts = task.scorer.verdicts(
        [(one, task.scorer.as_gold(other, golds[item] if golds else other)) for item, one, other in pairs],
        [rows[item] for item, _, _ in pairs] if rows else None,
    )
    agreeing = {pair for pair, verdict in zip(pairs, verdicts, strict=True) if verdict.strict}
    counts = []
    for item, candidates in enumerate(texts):
        voting = [text for text in candidates if (item, text, text) in agreeing]
        votes = [
            sum(text == other or {(item, text, other), (item, other, text)} <= agreeing for other in voting)
            if text in voting
            else 0
            for text in candidates
        ]
        counts.append(votes)
    return counts


def _pairs(texts: Sequence[str]) -> list[tuple[str, str]]:
    different = list(dict.fromkeys(texts))
    return [*((text, text) for text in different), *permutations(different, 2)]
