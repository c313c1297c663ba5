"""How good and how fast a model is: its answers to the task's questions, scored; its likeness to the original; its speed."""

from toolkit.evaluation.answers import Answer, AnswerLog, answer_text, written_text
from toolkit.evaluation.decoding import Decoding, generate, greedy, sampled
from toolkit.evaluation.evaluate import Questions, evaluate, evaluate_with
from toolkit.evaluation.expert_choice import tokens_choosing
from toolkit.evaluation.fidelity import Fidelity, measure_fidelity, write_reference
from toolkit.evaluation.generation import generate_shard
from toolkit.evaluation.judging import count_votes, judge
from toolkit.evaluation.likelihood import Loss, completion_loss
from toolkit.evaluation.masked_losses import masked_losses
from toolkit.evaluation.memory import batch_size_for
from toolkit.evaluation.scores import EvaluationFacts, Item, Scores

__all__ = [
    "Answer",
    "AnswerLog",
    "Decoding",
    "EvaluationFacts",
    "Fidelity",
    "Item",
    "Loss",
    "Questions",
    "Scores",
    "answer_text",
    "batch_size_for",
    "completion_loss",
    "count_votes",
    "evaluate",
    "evaluate_with",
    "generate",
    "generate_shard",
    "greedy",
    "judge",
    "masked_losses",
    "measure_fidelity",
    "sampled",
    "tokens_choosing",
    "write_reference",
    "written_text",
]
