"""Original checkpoint and training examples -> control/: the original, fine-tuned as the pruned model is."""

from toolkit.estimate import DataSize, FineTuning, Machine
from toolkit.pipeline.context import RunContext
from toolkit.pipeline.recipe_changes import DECIDING
from toolkit.pipeline.recipe_on_machine import RecipeOnMachine
from toolkit.pipeline.relief import Relief, change
from toolkit.pipeline.stage import Shown
from toolkit.pipeline.stage_names import MADE_BY
from toolkit.pipeline.stages.recover import Recover, TrainingFacts
from toolkit.pipeline.stages.teacher import TEACHING
from toolkit.pipeline.training_changes import LighterTraining
from toolkit.recipe.roles import Role


class Control(Recover):
    kind = MADE_BY[Role.CONTROL]
    sections = DECIDING[Role.CONTROL]
    output = "control"
    checkpoints = ("control", "control_adapter")
    scratch = "checkpoints/control"
    last_screen = Shown(4, "the original, fine-tuned alike")

    def __init__(self, context: RunContext, role: Role | None = None) -> None:
        super().__init__(context, role)
        self.needs = TEACHING

    def is_asked_for(self) -> bool:
        return self.context.recipe.control

    def purpose(self) -> str:
        return f"fine-tune the original in the same way {self._training()}"

    def fingerprint(self) -> str:
        return self.context.fingerprints.models[Role.CONTROL]

    def relief(self, machine: Machine) -> Relief:
        return Relief(LighterTraining(self.context.recipe, machine).changes(), omission=change("control", False))

    @property
    def _size(self) -> DataSize:
        return self.context.data_sizes.shared

    def _finetuning(self, machine: Machine) -> FineTuning:
        sizes = RecipeOnMachine(self.context, machine)
        return sizes.finetuning(sizes.original(sizes.trainer.dtype))

    def run(self) -> TrainingFacts:
        return self._train("control")
