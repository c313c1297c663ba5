"""How good, how fast, how large: answers to the task's questions, scored."""

from toolkit.evaluation.answers import Answer, AnswerLog, answer_text
from toolkit.evaluation.decoding import Decoding, generate, greedy, sampled
from toolkit.evaluation.evaluate import evaluate, evaluate_with
from toolkit.evaluation.fidelity import Fidelity, measure_fidelity, write_reference
from toolkit.evaluation.generation import generate_shard
from toolkit.evaluation.judging import judge
from toolkit.evaluation.likelihood import Loss, completion_loss
from toolkit.evaluation.memory import batch_size_for
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
    "generate_shard",
    "greedy",
    "judge",
    "measure_fidelity",
    "sampled",
    "write_reference",
]
