"""When a token can do without an expert, found on the model that the run ends with -> skipping.json beside its weights.

The thresholds belong to the routing of the very model that runs, so they come last: of the recovered model where there is
one (fine-tuning moves routers and the hidden states they see), else of the pruned one.
"""

from dataclasses import dataclass

from transformers import PreTrainedModel

from toolkit.calibration import skipping_thresholds
from toolkit.estimate import Machine, StageEstimate
from toolkit.moe import StreamedModel, load_tokenizer
from toolkit.moe.expert_skipping import SKIPPING_FILE, Skipping
from toolkit.moe.placement import shard_batches, with_layers
from toolkit.pipeline.calibration_data import read_source, sources_of
from toolkit.pipeline.context import RunContext
from toolkit.pipeline.outlook import observation_outlook
from toolkit.pipeline.recipe_on_machine import RecipeOnMachine
from toolkit.pipeline.stage import Facts, Stage
from toolkit.pipeline.stage_names import MADE_BY
from toolkit.recipe.roles import Role
from toolkit.recipe.schema import Recipe
from toolkit.runtime.distributed import on_main, say
from toolkit.runtime.errors import PollardError
from toolkit.runtime.signed_folders import remove_own_file
from toolkit.tasks import padded_batches


@dataclass(frozen=True)
class SkippingFacts(Facts):
    tokens: int
    of: str  # the role of the model


class Skip(Stage):
    kind = "skip"
    batch_section = "calibration"

    def __init__(self, context: RunContext, role: Role | None = None) -> None:
        super().__init__(context, role)
        self.inside, self.output = MADE_BY[context.last_role], str(context.last_role)
        self.needs = (self.inside,)

    def is_asked_for(self) -> bool:
        return bool(self.context.recipe.pruning.skipping)

    def purpose(self) -> str:
        model, rule = self.context.last_role, self.context.recipe.pruning.skipping
        return f"find when a token of the {model} model can do without an expert ({rule})"

    def fingerprint(self) -> str:
        return self.context.fingerprints.skip

    def estimate(self, machine: Machine) -> StageEstimate:
        """The routers are observed as calibration observes."""
        sizes = RecipeOnMachine(self.context, machine)
        return sizes.observation(self.name, sizes.pruned())

    def outlook(self) -> str:
        return observation_outlook(self.context)

    def run(self) -> SkippingFacts:
        recipe, run, role = self.context.recipe, self.context.directory, self.context.last_role
        rule, folder = recipe.pruning.skipping, run.path / role
        assert rule is not None
        tokenizer, data = load_tokenizer(str(folder)), self.context.data
        encoded = [e for source in sources_of(recipe) for e in read_source(source, recipe, tokenizer, data).encoded]
        batches = padded_batches(encoded, recipe.calibration.batch_size, int(tokenizer.pad_token_id))
        on_main(self._remove_old)

        def observe(model: PreTrainedModel | StreamedModel) -> Skipping:
            return skipping_thresholds(model, shard_batches(model, batches), rule)

        thresholds = with_layers(recipe, str(folder), None, observe)
        on_main(lambda: thresholds.save(folder))
        betas = thresholds.blocks.values()
        say(f"  {thresholds.tokens:,} tokens; thresholds of {min(betas):.3f} to {max(betas):.3f} in {folder / SKIPPING_FILE}")
        return SkippingFacts(thresholds.tokens, str(role))

    def _remove_old(self) -> None:
        """Of this model, or of the one that the run ended with under another recipe."""
        run = self.context.directory
        for folder in (run.pruned, run.refitted, run.recovered):
            remove_own_file(folder, SKIPPING_FILE)


def check_skipping(recipe: Recipe, experts_per_token: int) -> None:
    """Raises PollardError where there is nothing to skip."""
    if recipe.pruning.skipping and experts_per_token < 2:
        raise PollardError(
            "pruning.skipping leaves out experts after a token's first, and the pruned model activates one per token: "
            "leave it out, or keep more experts.",
            code="recipe.nothing-to-skip",
        )
