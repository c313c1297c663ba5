"""How good, how fast, how large: greedy answers to the task's questions, scored."""

from toolkit.evaluation.evaluate import evaluate
from toolkit.evaluation.scores import Item, Scores, wilson

__all__ = ["Item", "Scores", "evaluate", "wilson"]
