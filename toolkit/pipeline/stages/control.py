"""Original checkpoint and training examples -> control/: the original, fine-tuned as the pruned model is."""

from toolkit.pipeline.recipe_changes import DECIDING
from toolkit.pipeline.stage import Shown
from toolkit.pipeline.stages.names import MADE_BY
from toolkit.pipeline.stages.recover import Recover, TrainingFacts
from toolkit.pipeline.stages.teacher import TEACHING
from toolkit.recipe.roles import Role


class Control(Recover):
    kind = MADE_BY[Role.CONTROL]
    sections = DECIDING[Role.CONTROL]
    needs = TEACHING
    output = "control"
    checkpoints = ("control", "control_adapter")
    scratch = "checkpoints/control"
    last_screen = Shown(3, "the original, fine-tuned alike")

    def is_asked_for(self) -> bool:
        return self.context.recipe.control

    def purpose(self) -> str:
        return f"fine-tune the original in the same way {self._training()}"

    def fingerprint(self) -> str:
        return self.context.fingerprints.models[Role.CONTROL]

    def run(self) -> TrainingFacts:
        return self._train("control")
