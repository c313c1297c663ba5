"""What the stages of a fit have in common: they read and complete one file, fit.json."""

from toolkit.cuts.fit_result import FitResult
from toolkit.pipeline.context import RunContext
from toolkit.pipeline.fingerprints import FitFingerprints, fit_fingerprints
from toolkit.pipeline.fit_choice import request_of
from toolkit.pipeline.recipe_changes import DECIDING
from toolkit.pipeline.run_directory import RunDirectory
from toolkit.pipeline.stage import Stage
from toolkit.recipe.fit import FitRecipe
from toolkit.recipe.roles import Role
from toolkit.runtime.distributed import on_main
from toolkit.runtime.errors import PollardError


class FitStage(Stage):
    """Only where the recipe gives limits instead of a shape. Each is done again after the one before it (`inside`), which has
    written the file anew; what was measured is not measured again."""

    sections = DECIDING[Role.PRUNED]
    output = "fit.json"

    def is_asked_for(self) -> bool:
        return self.context.asked.pruning.fit is not None

    @property
    def fit(self) -> FitRecipe:
        fit = self.context.asked.pruning.fit
        assert fit, "the recipe says its shape"
        return fit

    @property
    def fingerprints(self) -> FitFingerprints:
        context = self.context
        key = ("fit fingerprints", context.asked.model_dump_json())
        return context.once(key, lambda: fit_fingerprints(context.asked, context.data))

    def fingerprint(self) -> str:
        return self.fingerprints.measured

    def with_context(self, context: RunContext) -> "FitStage":
        return type(self)(context)

    def load(self) -> FitResult:
        """What the stages before have left; on every rank."""
        return on_main(lambda: FitResult.load(self.context.directory.fit_result))

    def save(self, result: FitResult) -> None:
        """As the answer to the recipe as it is now: keys that concern a later stage may have changed since the first."""
        result.request = request_of(self.context.asked)
        on_main(lambda: result.save(self.context.directory.fit_result))

    def is_gone(self, directory: RunDirectory) -> bool:
        """Also where the file is damaged, or of other limits."""
        try:
            return FitResult.load(directory.fit_result).fingerprint != self.fingerprints.measured
        except PollardError:
            return True
