"""What the stages share that measure one model of the run: which of them a recipe asks for, and what they are made from."""

from typing import ClassVar

from toolkit.pipeline.context import RunContext
from toolkit.pipeline.recipe_changes import DECIDING
from toolkit.pipeline.stage import Stage
from toolkit.pipeline.stages.names import MADE_BY
from toolkit.recipe.roles import Role


class Measurement(Stage):
    """Its output lies in evaluation/."""

    role: Role
    suffix: ClassVar[str]
    """Of its output, behind the role: ".fidelity.json"."""

    def __init__(self, context: RunContext, role: Role | None = None) -> None:
        assert role is not None
        super().__init__(context, role)
        self.sections = (*DECIDING[role], "evaluation")
        self.needs = (MADE_BY[role],) if role in MADE_BY else ()
        self.output = f"evaluation/{role}{self.suffix}"

    def is_asked_for(self) -> bool:
        recipe = self.context.recipe
        return recipe.control if self.role is Role.CONTROL else self.role in recipe.evaluation.models
