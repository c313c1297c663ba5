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
from toolkit.moe import load_config, load_tokenizer, meta_model
from toolkit.pipeline.budget import COUNTING_KEYS, Budget, budget_of, own_multiple
from toolkit.pipeline.data_sizes import data_sizes
from toolkit.pipeline.fingerprints import Fingerprints, fingerprints_of, last_role
from toolkit.pipeline.first_run import FirstRun, first_run
from toolkit.pipeline.fit_choice import chosen_recipe, provisional_recipe
from toolkit.pipeline.fit_space import FitSpace
from toolkit.pipeline.rounds import early_rounds, model_after
from toolkit.pipeline.run_directory import RunDirectory
from toolkit.pipeline.training_fingerprints import Teaching
from toolkit.recipe.pruning import PruningRecipe
from toolkit.recipe.roles import Role
from toolkit.recipe.schema import ModelRecipe, Recipe
from toolkit.recipe.step import StepRecipe
from toolkit.tasks import DataCache, Task

T = TypeVar("T")


class Checkpoint(NamedTuple):
    """As transformers opens it: a folder or hub id, and the revision of the latter."""

    path: str
    revision: str | None = None


class RunContext:
    """One run, or one round of it."""

    recipe: Recipe
    """`recipe.model` is the model that these stages start from: the original, or in a round what the round before left. Where the
    shape is searched, it says the numbers of the one that was chosen; until then, of the largest within the limits."""
    asked: Recipe
    """As it was given, perhaps with limits (`pruning.fit`) instead of a shape."""
    is_provisional = False
    """Whether `recipe` says the largest shape within the limits, until one is chosen: sizes are at most these."""
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
        sharing: "RunContext | None" = None,
    ) -> None:
        """`directory`: runs/<name> unless given. `run_stages` runs the stages of another context, as far as one kind: what a
        stage needs that is a run of its own. `sharing`: whose data and counts serve this one, too. Raises PollardError for
        limits that no shape meets."""
        self.asked, self.directory = recipe, directory or RunDirectory(recipe.name)
        self.original, self.teaching, self.run_stages = original or recipe.model, teaching, run_stages
        self.data: DataCache = sharing.data if sharing else DataCache()
        self._known: dict[Hashable, Any] = sharing._known if sharing else {}
        self.recipe = self._with_shape(recipe)
        self.source = model_after(self.recipe, self.directory, early_rounds(self.recipe))

    def variant(self, recipe: Recipe, directory: RunDirectory | None = None, teaching: Teaching | None = None) -> "RunContext":
        """The same run with another recipe: what does not depend on the difference is not counted or read again."""
        where = directory or self.directory
        return RunContext(recipe, where, self.original, teaching or self.teaching, self.run_stages, sharing=self)

    def _with_shape(self, recipe: Recipe) -> Recipe:
        if recipe.pruning.fit is None:
            return recipe
        chosen = chosen_recipe(recipe, self.directory)
        self.is_provisional = chosen is None
        return chosen or provisional_recipe(recipe, self.fit_space)

    @property
    def fit_space(self) -> FitSpace:
        """What the limits of the recipe, as it was given, leave to choose from. Raises PollardError for a model that cannot be
        cut as they say."""
        model, pruning = self.asked.model, self.asked.pruning
        key = ("fit space", model, pruning.model_dump_json(include={"fit", "width_multiple"}))
        return self.once(key, lambda: FitSpace(self.config_of(model), pruning, model.path))

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` returns, made once for a key, also for variants. Errors are not kept."""
        if key not in self._known:
            self._known[key] = make()
        return cast(T, self._known[key])

    @property
    def budget(self) -> Budget:
        """What stays of the model that the recipe starts from, from its configuration alone. Raises PollardError where it cannot
        do what the recipe asks."""
        return self.budget_of(self.recipe.pruning)

    def budget_of(self, pruning: PruningRecipe) -> Budget:
        """The same for other numbers: those of a round."""
        key = ("budget", self.recipe.model, pruning.model_dump_json(include=COUNTING_KEYS))
        first = self.first_run if pruning.grow else None
        return self.once(key, lambda: budget_of(self.meta_model, pruning, first and first.plan))

    @property
    def first_run(self) -> FirstRun | None:
        """Whose model grows, where the recipe says so. Raises PollardError where it cannot."""
        grow, model = self.recipe.pruning.grow, self.original
        return self.once(("first run", grow.onto, model), lambda: first_run(grow.onto, model)) if grow else None

    @property
    def cuts(self) -> Budget:
        """What this run's own plan cuts: of a schedule its last step, after the steps before."""
        early = early_rounds(self.recipe)
        return self.budget.after(self.budget_of(self.recipe.pruning.of_step(early[-1]))) if early else self.budget

    @property
    def own_pruning(self) -> PruningRecipe:
        """The same as a recipe of its own would say it, in one step and in numbers."""
        pruning, cuts = self.recipe.pruning, self.cuts
        keep = None if pruning.keep is None else cuts.keep
        multiple = own_multiple(self.meta_model, pruning) if cuts.width else None
        step = StepRecipe.model_construct(keep=keep, width=cuts.width, layers=cuts.layer_count)
        return pruning.of_step(step, skipping=None, width_multiple=multiple, form=pruning.form)

    @property
    def config(self) -> Any:
        """transformers' configuration of the model that the recipe starts from."""
        return self.config_of(self.recipe.model)

    @property
    def meta_model(self) -> PreTrainedModel:
        """That model without weights."""
        return self.once(("meta model", self.recipe.model), lambda: meta_model(self.config))

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
        training = recipe.finetuning.model_dump_json(include={"max_length", "examples", "data"})
        sections = recipe.task, recipe.calibration, recipe.evaluation
        key = "data sizes", recipe.model.path, training, *(section.model_dump_json() for section in sections)
        return self.once(key, lambda: data_sizes(recipe, self.data.task))

    @cached_property
    def fingerprints(self) -> Fingerprints:
        """Raises PollardError for sources that are not there, and where the model's routers cannot do what is asked."""
        return fingerprints_of(self.recipe, self.data, lambda: (self.budget, self.cuts), lambda: self.first_run, self.teaching)

    @property
    def last_role(self) -> Role:
        """The model that the run ends with."""
        return last_role(self.recipe)

    def checkpoint(self, role: Role) -> Checkpoint:
        """Where the model of a role is, or will be."""
        if role is Role.ORIGINAL:
            return Checkpoint(self.original.path, self.original.revision)
        return Checkpoint(str(self.directory.path / (self.last_role if role is Role.SKIPPING else role)))
