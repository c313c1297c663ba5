"""What the model is for: examples, prompts, answer extraction, scoring."""

from toolkit.tasks.chat_format import ChatFormat, chat_format
from toolkit.tasks.data_cache import DataCache
from toolkit.tasks.example import Example, Message
from toolkit.tasks.new_questions import Opening, QuestionForm, check_new_questions
from toolkit.tasks.overlap import HeldOut, Overlap, question_of, repeated_questions
from toolkit.tasks.presets import PRESETS
from toolkit.tasks.prompts import (
    Encoded,
    encode,
    encode_all,
    encode_cloze,
    encode_prompt,
    encode_texts,
    format_of,
    gold_of,
    padded_batches,
    prompt_text,
)
from toolkit.tasks.question_words import words_in
from toolkit.tasks.rendered_fields import check_rendering
from toolkit.tasks.scorer import Scorer, Verdict
from toolkit.tasks.scorers import SCORERS
from toolkit.tasks.sources import read_texts
from toolkit.tasks.task import Split, Task

__all__ = [
    "PRESETS",
    "SCORERS",
    "ChatFormat",
    "DataCache",
    "Encoded",
    "Example",
    "HeldOut",
    "Message",
    "Opening",
    "Overlap",
    "QuestionForm",
    "Scorer",
    "Split",
    "Task",
    "Verdict",
    "chat_format",
    "check_new_questions",
    "check_rendering",
    "encode",
    "encode_all",
    "encode_cloze",
    "encode_prompt",
    "encode_texts",
    "format_of",
    "gold_of",
    "padded_batches",
    "prompt_text",
    "question_of",
    "read_texts",
    "repeated_questions",
    "words_in",
]
