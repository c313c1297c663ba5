"""The stage that finds when a token can do without an expert, on the model that the run ends with, and leaves it beside it.

The thresholds belong to the routing of the very model that runs, so they come last: of the recovered model where there is
one (fine-tuning moves routers and what they see), else of the pruned one.
"""

from collections.abc import Callable
from typing import Any

from transformers import PreTrainedModel

from toolkit.calibration import skipping_thresholds
from toolkit.moe import StreamedModel, load_tokenizer
from toolkit.moe.expert_skipping import SKIPPING_FILE, Skipping
from toolkit.moe.placement import shard_batches, with_layers
from toolkit.pipeline.run_directory import RunDirectory
from toolkit.pipeline.stages.calibration_data import read_source, sources_of
from toolkit.recipe.schema import ModelRecipe, Recipe
from toolkit.runtime.distributed import on_main, say
from toolkit.runtime.errors import PollardError
from toolkit.runtime.signed_folders import remove_own_file
from toolkit.tasks import padded_batches


def role_that_skips(recipe: Recipe) -> str:
    """The model that the run ends with."""
    return "recovered" if "recovered" in recipe.evaluation.models else "pruned"


def check_skipping(recipe: Recipe, experts_per_token: int) -> None:
    """Raises PollardError where there is nothing to skip."""
    if recipe.pruning.skipping and experts_per_token < 2:
        raise PollardError(
            "pruning.skipping leaves out experts after a token's first, and the pruned model activates one per token: "
            "leave it out, or keep more experts."
        )


def skip_stage(role: str) -> Callable[[Recipe, RunDirectory, str], dict[str, Any]]:
    """The run's model `role` over the calibration examples, on the data's own completions -> skipping.json beside it."""

    def stage(recipe: Recipe, run: RunDirectory, fingerprint: str) -> dict[str, Any]:
        folder, rule = run.path / role, recipe.pruning.skipping
        assert rule is not None
        tokenizer = load_tokenizer(str(folder))
        encoded = [e for source in sources_of(recipe) for e in read_source(source, recipe, tokenizer).encoded]
        batches = padded_batches(encoded, recipe.calibration.batch_size, int(tokenizer.pad_token_id))
        on_main(lambda: _remove_old(run))

        def watch(model: PreTrainedModel | StreamedModel) -> Skipping:
            return skipping_thresholds(model, shard_batches(model, batches), rule)

        itself = ModelRecipe(path=str(folder), dtype=recipe.model.dtype, placement=recipe.model.placement)
        thresholds = with_layers(recipe.model_copy(update={"model": itself}), watch)
        on_main(lambda: thresholds.save(folder))
        betas = thresholds.blocks.values()
        say(f"  {thresholds.tokens:,} tokens; thresholds of {min(betas):.3f} to {max(betas):.3f} in {folder / SKIPPING_FILE}")
        return {"tokens": thresholds.tokens, "of": role}

    return stage


def _remove_old(run: RunDirectory) -> None:
    """Of this model, or of the one that the run ended with under another recipe."""
    for folder in (run.pruned, run.recovered):
        remove_own_file(folder, SKIPPING_FILE)
