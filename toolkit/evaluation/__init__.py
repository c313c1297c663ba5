"""How good, how fast, how large: answers to the task's questions, scored."""

from toolkit.evaluation.answer_log import AnswerLog
from toolkit.evaluation.answers import answer_text
from toolkit.evaluation.batch_size import batch_size_for
from toolkit.evaluation.decoding import Decoding, generate, greedy, sampled
from toolkit.evaluation.evaluate import evaluate, evaluate_with
from toolkit.evaluation.fidelity import Fidelity, keep_original, measure_fidelity
from toolkit.evaluation.generation import share_of_answers
from toolkit.evaluation.judging import Answer, judge
from toolkit.evaluation.loss import Loss, completion_loss
from toolkit.evaluation.scores import Item, Scores

__all__ = [
    "Answer",
    "AnswerLog",
    "Decoding",
    "Fidelity",
    "Item",
    "Loss",
    "Scores",
    "answer_text",
    "batch_size_for",
    "completion_loss",
    "evaluate",
    "evaluate_with",
    "generate",
    "greedy",
    "judge",
    "keep_original",
    "measure_fidelity",
    "sampled",
    "share_of_answers",
]
