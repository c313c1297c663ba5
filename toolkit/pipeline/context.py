"""What a run is about, resolved once and handed to its stages: nothing is read or resolved again behind it.

recipe ─┬─► budget, config, tokenizer     of the model that the recipe starts from
        ├─► task, data, data_sizes        every task is built, and every data file read, once
        ├─► original, source              the model of the whole run; the model that this round prunes
        └─► fingerprints                  what decides each stage's result
"""

from collections.abc import Callable, Hashable
from functools import cached_property
from typing import Any, NamedTuple, TypeVar, cast

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from toolkit.estimate import DataSizes
from toolkit.moe import check_prunable, find_blocks, load_config, load_tokenizer, meta_model
from toolkit.pipeline.data_sizes import data_sizes
from toolkit.pipeline.fingerprints import Fingerprints, Teaching, fingerprints_of, last_role
from toolkit.pipeline.rounds import early_rounds, model_after
from toolkit.pipeline.run_directory import RunDirectory
from toolkit.recipe.roles import Role
from toolkit.recipe.schema import ModelRecipe, Recipe
from toolkit.selection import experts_to_activate, experts_to_keep
from toolkit.tasks import DataCache, Task

T = TypeVar("T")


class Budget(NamedTuple):
    """What the numbers of a recipe mean for its model."""

    keep: int  # experts per block
    experts_per_token: int
    fewer_active: bool  # experts per token than in the model that is pruned


class Checkpoint(NamedTuple):
    """As transformers opens it: a folder or hub id, and the revision of the latter."""

    path: str
    revision: str | None = None


class RunContext:
    """One run, or one round of it."""

    recipe: Recipe
    """`recipe.model` is the model that these stages start from: the original, or in a round what the round before left."""
    directory: RunDirectory
    original: ModelRecipe
    """The model that the whole run began with: it is evaluated, teaches, and is trained as the control."""
    source: ModelRecipe
    """The model that is observed and cut: the original, or the recovered model of the last early round."""
    teaching: Teaching | None
    """Made by the run around this one; None where this run makes it itself, or needs none."""

    def __init__(
        self,
        recipe: Recipe,
        directory: RunDirectory | None = None,
        original: ModelRecipe | None = None,
        teaching: Teaching | None = None,
        run_stages: "Callable[[RunContext, str], object] | None" = None,
    ) -> None:
        """`directory`: runs/<name> unless given. `run_stages` runs the stages of another context, as far as one kind: what a
        stage needs that is a run of its own."""
        self.recipe, self.directory = recipe, directory or RunDirectory(recipe.name)
        self.original, self.teaching, self.run_stages = original or recipe.model, teaching, run_stages
        self.source = model_after(recipe, self.directory, early_rounds(recipe))
        self.data = DataCache()
        self._known: dict[Hashable, Any] = {}

    def variant(self, recipe: Recipe, directory: RunDirectory | None = None, teaching: Teaching | None = None) -> "RunContext":
        """The same run with another recipe: what does not depend on the difference is not counted or read again."""
        other = RunContext(recipe, directory or self.directory, self.original, teaching or self.teaching, self.run_stages)
        other.data, other._known = self.data, self._known
        return other

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` returns, made once for a key, also for variants. Errors are not kept."""
        if key not in self._known:
            self._known[key] = make()
        return cast(T, self._known[key])

    @property
    def budget(self) -> Budget:
        """From the model's configuration alone. Raises PollardError where its routers cannot do what the recipe asks."""
        return self.budget_of(self.recipe.model)

    def budget_of(self, model: ModelRecipe, keep: int | float | None = None) -> Budget:
        """The budget of another model than the one that the recipe starts from, or of another `pruning.keep`."""
        pruning = self.recipe.pruning
        numbers = pruning.keep if keep is None else keep, pruning.experts_per_token
        return self.once(("budget", model, numbers), lambda: _budget(self.meta_model_of(model), *numbers))

    @property
    def config(self) -> Any:
        """transformers' configuration of the model that the recipe starts from."""
        return self.config_of(self.recipe.model)

    @property
    def meta_model(self) -> PreTrainedModel:
        """That model without weights."""
        return self.meta_model_of(self.recipe.model)

    def meta_model_of(self, model: ModelRecipe) -> PreTrainedModel:
        return self.once(("meta model", model), lambda: meta_model(self.config_of(model)))

    def config_of(self, model: ModelRecipe) -> Any:
        return self.once(("config", model), lambda: load_config(model.path, model.revision))

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The original's, which every model of the run has."""
        model = self.original
        return self.once(("tokenizer", model.path, model.revision), lambda: load_tokenizer(model.path, model.revision))

    @property
    def task(self) -> Task:
        """The recipe's own."""
        return self.data.task(self.recipe.task)

    @property
    def data_sizes(self) -> DataSizes:
        """How much the stages read. Raises PollardError for local data that cannot be read."""
        recipe = self.recipe
        sections = recipe.task, recipe.calibration, recipe.finetuning, recipe.evaluation
        key = "data sizes", recipe.model.path, *(section.model_dump_json() for section in sections)
        return self.once(key, lambda: data_sizes(recipe, self.data.task))

    @cached_property
    def fingerprints(self) -> Fingerprints:
        """Raises PollardError for sources that are not there, and where the model's routers cannot do what is asked."""
        return fingerprints_of(self.recipe, self.data, lambda: self.budget, self.teaching)

    @property
    def last_role(self) -> Role:
        """The model that the run ends with."""
        return last_role(self.recipe)

    def checkpoint(self, role: Role) -> Checkpoint:
        """Where the model of a role is, or will be."""
        if role is Role.ORIGINAL:
            return Checkpoint(self.original.path, self.original.revision)
        return Checkpoint(str(self.directory.path / (self.last_role if role is Role.SKIPPING else role)))


def _budget(model: PreTrainedModel, keep: int | float, experts_per_token: int | None) -> Budget:
    blocks = find_blocks(model)
    now = blocks[0].experts_per_token
    kept = experts_to_keep(keep, blocks[0].expert_count, blocks[0].groups or 1)
    active = experts_to_activate(experts_per_token, kept, now)
    check_prunable(blocks, kept, active)
    return Budget(kept, active, active < now)
