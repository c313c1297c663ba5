"""What a run says of its trainings: from the manifest and the trainer's log, for the report."""

import math
from collections.abc import Mapping, Sequence
from itertools import count, takewhile
from typing import Any

from toolkit.pipeline.stage_names import ANSWERS, student_stage
from toolkit.report.facts import TrainingFacts
from toolkit.report.written_data import NewQuestionsFacts, StudentFacts
from toolkit.runtime.files import JsonObject

ENTROPY_KEYS = ("routing_entropy_mean", "routing_entropy_min")
TRAINING_KEYS = ("steps", "examples", "left_out", "repeating", "beyond_context", "selected_step")


def student_facts(stages: Mapping[str, JsonObject]) -> list[StudentFacts]:
    """Of every training on what the student writes, in order."""
    names = takewhile(stages.__contains__, (student_stage(number, "answers") for number in count(1)))
    return [StudentFacts(**{key: stages[name][key] for key in StudentFacts.model_fields}) for name in names]


def question_facts(stages: Mapping[str, JsonObject]) -> NewQuestionsFacts | None:
    """Of the questions that the original wrote; None where it wrote none."""
    entry = stages.get(ANSWERS, {})
    return NewQuestionsFacts(**{key: entry[key] for key in NewQuestionsFacts.model_fields}) if "questions" in entry else None


def training_facts(
    log: Sequence[Mapping[str, Any]],
    entry: Mapping[str, Any],
    questions: NewQuestionsFacts | None = None,
    student: Sequence[StudentFacts] = (),
) -> TrainingFacts:
    """From the stage's entry and the trainer's log, whose lines have a `loss` or an `eval_loss`."""

    def curve(key: str) -> list[tuple[int | float, int | float | None]]:
        return [(line["step"], line[key] if math.isfinite(line[key]) else None) for line in log if key in line]

    facts = {key: entry.get(key) for key in TRAINING_KEYS}
    loss, dev_loss = curve("loss"), curve("eval_loss")
    entropy = [(line["step"], *(line[key] for key in ENTROPY_KEYS)) for line in log if all(key in line for key in ENTROPY_KEYS)]
    return TrainingFacts(
        **facts,
        loss=loss,
        dev_loss=dev_loss,
        routing_entropy=[point for point in entropy if all(map(math.isfinite, point))],
        questions=questions,
        student=list(student),
    )
