"""How good, how fast, how large: greedy answers to the task's questions, scored."""

from toolkit.evaluation.evaluate import evaluate, generate, greedy, sampled, share_of_answers
from toolkit.evaluation.judging import Answer, judge
from toolkit.evaluation.loss import Loss, completion_loss
from toolkit.evaluation.scores import Item, Scores

__all__ = [
    "Answer",
    "Item",
    "Loss",
    "Scores",
    "completion_loss",
    "evaluate",
    "generate",
    "greedy",
    "judge",
    "sampled",
    "share_of_answers",
]
