"""The training examples whose questions are nearest to a question, by the words that they share: BM25 (Robertson and Zaragoza,
2009; Lucene's form), as the package bm25s has it.

    task: {name: gsm8k, shots: {nearest: 3}}

    asked        How many apples does Mia have?
    shown        … How many pens does Eva have? …            the third nearest
                 … How many apples are left? …
                 … How many apples does Tom have? …          the nearest, last: right before the question

Never the question itself, nor one of the same words: so an example that is trained on is prompted as one that is tested on.
"""

from collections.abc import Callable, Sequence
from types import ModuleType

import numpy as np
from scipy.sparse import csc_array

from toolkit.runtime.errors import PollardError
from toolkit.tasks.example import Example
from toolkit.tasks.question_words import words_in


class NearestExamples:
    """Finds examples for any question among those of a pool, of which repeated questions count once, with the first answer.

    Depends on the pool's order and on nothing else: of equally near ones the first is nearer. Raises PollardError where bm25s is
    not installed, and for a pool of too few different questions.
    """

    def __init__(self, pool: Sequence[Example], number: int, question_of: Callable[[Example], str]) -> None:
        self.number, self.question_of = number, question_of
        self._places: dict[tuple[str, ...], int] = {}  # of each question in the pool, by its words
        self._pool: list[Example] = []
        for example in pool:
            words = self._words(example)
            if words not in self._places:
                self._places[words] = len(self._pool)
                self._pool.append(example)
        if len(self._pool) <= number:
            raise PollardError(
                f"task.shots asks for the {number} nearest of the other questions, and the training data has {len(self._pool)} "
                "different ones (without the dev slice): say a smaller number, or give more.",
                code="task.shots",
            )
        self._vocabulary: dict[str, int] = {}  # numbered as words come up: bm25s would number a set, on every rank another way
        numbers = [[self._vocabulary.setdefault(word, len(self._vocabulary)) for word in words] for words in self._places]
        index = _bm25s().BM25(backend="numpy")
        index.index((numbers, self._vocabulary), create_empty_token=False, show_progress=False)
        columns = index.scores["data"].astype(np.float64), index.scores["indices"], index.scores["indptr"]
        self._scores = csc_array(columns, shape=(len(self._pool), len(self._vocabulary))).tocsr()  # questions x words

    def of(self, example: Example) -> tuple[Example, ...]:
        """The `number` nearest, the nearest last."""
        words = self._words(example)
        asked = np.zeros(len(self._vocabulary))
        for word in words:
            if word in self._vocabulary:
                asked[self._vocabulary[word]] += 1
        scores = self._scores @ asked
        if words in self._places:
            scores[self._places[words]] = -np.inf
        least = np.partition(scores, -self.number)[-self.number]
        near = np.flatnonzero(scores >= least)  # in the pool's order, more of them where several are equally near
        order = near[np.argsort(-scores[near], kind="stable")][: self.number]
        return tuple(self._pool[place] for place in reversed(order))

    def _words(self, example: Example) -> tuple[str, ...]:
        return words_in(self.question_of(example))


def _bm25s() -> ModuleType:
    try:
        import bm25s
    except ImportError:
        raise PollardError(
            "task.shots: {nearest: …} needs the package `bm25s`, which is not installed: ./launch.sh setup nearest-shots, or "
            "pip install 'pollard-moe[nearest-shots]'.",
            code="task.no-bm25s",
        ) from None
    return bm25s
