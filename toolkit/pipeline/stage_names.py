"""The names of stages that readers of a manifest need without the stages themselves (which import torch)."""

from typing import Literal

from toolkit.recipe.roles import Role

FIT_SHAPES, FIT_SCORES, FIT_MEASURE, FIT_CHOOSE = "fit/shapes", "fit/scores", "fit/measure", "fit/choose"
LAYERS, CALIBRATE, SELECT, MERGE, EVALUATE, REPORT = "layers", "calibrate", "select", "merge", "evaluate", "report"

MADE_BY = {Role.PRUNED: "prune", Role.REFITTED: "refit", Role.RECOVERED: "recover", Role.CONTROL: "control"}
"""The stage that makes the model of a role."""


STUDENT = "student"
"""The kind of the stages of trainings on what the student writes."""


def student_stage(number: int, part: Literal["answers", "teacher", "recover"]) -> str:
    """ "student/1/answers": a part of the training of that number."""
    return f"{STUDENT}/{number}/{part}"


def stage_name(kind: str, role: Role | None = None) -> str:
    """ "evaluate/recovered": how manifests and messages name a stage."""
    return f"{kind}/{role}" if role else kind
