"""What the model is for: examples, prompts, answer extraction, scoring."""

from toolkit.tasks.batches import padded_batches
from toolkit.tasks.example import Example
from toolkit.tasks.overlap import HeldOut, Overlap, question_of
from toolkit.tasks.presets import PRESETS
from toolkit.tasks.prompts import Encoded, encode, encode_all, encode_prompt, prompt_text
from toolkit.tasks.scorer import Scorer, Verdict
from toolkit.tasks.scorers import SCORERS
from toolkit.tasks.task import Split, Task
from toolkit.tasks.texts import encode_texts, read_texts

__all__ = [
    "PRESETS",
    "SCORERS",
    "Encoded",
    "Example",
    "HeldOut",
    "Overlap",
    "Scorer",
    "Split",
    "Task",
    "Verdict",
    "encode",
    "encode_all",
    "encode_prompt",
    "encode_texts",
    "padded_batches",
    "prompt_text",
    "question_of",
    "read_texts",
]
