"""The task's questions once more, answered by the model that the run ends with while it skips experts."""

from toolkit.evaluation import AnswerLog
from toolkit.pipeline.context import RunContext
from toolkit.pipeline.stage_names import MADE_BY
from toolkit.pipeline.stages.evaluate import Evaluate
from toolkit.pipeline.stages.skip import Skip
from toolkit.recipe.roles import Role
from toolkit.runtime.files import fingerprint_of


class EvaluateSkipping(Evaluate):
    def __init__(self, context: RunContext, role: Role | None = None) -> None:
        super().__init__(context, role)
        self.needs, self.scratch = (Skip.kind, MADE_BY[context.last_role]), ""

    def is_asked_for(self) -> bool:
        return bool(self.context.recipe.pruning.skipping)

    def purpose(self) -> str:
        return f"answer them once more with the {self.context.last_role} model, skipping experts"

    def fingerprint(self) -> str:
        fingerprints = self.context.fingerprints
        return fingerprint_of(fingerprints.skip, fingerprints.scoring)

    def _log(self) -> AnswerLog | None:
        """None: how many experts are skipped is counted while all answers are written."""
        return None
