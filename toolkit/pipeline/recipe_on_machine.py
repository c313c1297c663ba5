"""A recipe on a machine: the models, their places and the trainer that the stages' estimates are made of."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from transformers import PreTrainedConfig

from toolkit.cuts.model_summary import pruned_meta_model
from toolkit.estimate import (
    DataSize,
    DataSizes,
    FineTuning,
    Machine,
    ModelPlacement,
    ModelSize,
    StageEstimate,
    TrainerSettings,
    estimate_generation,
    model_size,
    place_model,
    row_bytes,
)
from toolkit.evaluation.memory import CPU_BATCH_SIZE, rows_that_fit
from toolkit.moe import load_config, meta_model
from toolkit.pipeline.context import Budget, RunContext
from toolkit.pipeline.data_sizes import data_sizes
from toolkit.pipeline.rounds import early_rounds
from toolkit.pipeline.training_model import training_model
from toolkit.recipe.schema import Recipe
from toolkit.recovery.teacher import TOKENS_AT_ONCE
from toolkit.recovery.trainer_defaults import trainer_defaults

T = TypeVar("T")


class RecipeOnMachine:
    """Numbers of one recipe on one machine. `cache` is shared by variants of the recipe and by machines."""

    def __init__(self, recipe: Recipe, machine: Machine, cache: dict[tuple[Any, ...], Any]) -> None:
        self.recipe, self.machine, self.cache = recipe, machine, cache

    def variant(self, recipe: Recipe) -> "RecipeOnMachine":
        return RecipeOnMachine(recipe, self.machine, self.cache)

    def once(self, key: tuple[Any, ...], make: Callable[[], T]) -> T:
        """What `make` returns, made once per key."""
        if key not in self.cache:
            self.cache[key] = make()
        return self.cache[key]

    @property
    def config(self) -> PreTrainedConfig:
        model = self.recipe.model
        return self.once(("config", model), lambda: load_config(model.path, model.revision))

    @property
    def budget(self) -> Budget:
        key = ("budget", self.recipe.model, self.recipe.pruning.model_dump_json())
        return self.once(key, lambda: RunContext(self.recipe).budget)

    @property
    def data(self) -> DataSizes:
        settings = self.recipe.finetuning.model_dump_json(include={"max_length", "examples", "data"})
        sections = (self.recipe.task, self.recipe.calibration, self.recipe.evaluation)
        key = ("data", settings, *(section.model_dump_json() for section in sections))
        return self.once(key, lambda: data_sizes(self.recipe))

    @property
    def dtype(self) -> torch.dtype:
        """In which models are loaded, as `load_model` decides."""
        if self.recipe.model.dtype != "auto":
            return getattr(torch, self.recipe.model.dtype)
        return self.config.dtype if self.machine.gpus and isinstance(self.config.dtype, torch.dtype) else torch.float32

    @property
    def trainer(self) -> TrainerSettings:
        return trainer_settings(self.recipe, self.machine.gpus > 0)

    def original(self, dtype: torch.dtype | None = None) -> ModelSize:
        """The original model, in the dtype it is loaded in unless given."""
        dtype = dtype or self.dtype
        return self.once(("original", self.recipe.model, dtype), lambda: model_size(meta_model(self.config), dtype))

    def observed(self) -> ModelSize:
        """What calibration observes and pruning cuts: the original, or with rounds what the round before this one leaves."""
        before = early_rounds(self.recipe)
        return self.variant(recipe_keeping(self.recipe, before[-1], [])).pruned() if before else self.original()

    def pruned(self, dtype: torch.dtype | None = None) -> ModelSize:
        """The pruned model, in the dtype it is loaded in unless given."""
        (keep, active, _), dtype = self.budget, dtype or self.dtype
        key = ("pruned", self.recipe.model, keep, active, dtype)
        return self.once(key, lambda: model_size(pruned_meta_model(self.config, keep, active), dtype))

    def place(self, model: ModelSize, whole: bool = False) -> ModelPlacement:
        """Where a model that answers lies. `whole`: its stage needs it in one piece."""
        return place_model(model, self.machine, self.recipe.model.placement, self.recipe.finetuning.zero, whole)

    def finetuning(self, model: ModelSize) -> FineTuning:
        """Of a model that is in the trainer's dtype."""
        settings = self.recipe.finetuning
        tokens_at_once = TOKENS_AT_ONCE if settings.teacher else None
        trained = training_model(settings, model)
        return FineTuning(model, trained, self.trainer, settings.method, settings.zero, tokens_at_once)

    def generation(self, name: str, model: ModelSize, prompts: DataSize, whole: bool = False) -> StageEstimate:
        """Answers to all prompts, in batches as evaluation makes them."""
        placement, settings = self.place(model, whole), self.recipe.evaluation
        batch = settings.batch_size
        if batch == "auto":
            batch = CPU_BATCH_SIZE
            if self.machine.gpus:
                row = row_bytes(placement, prompts.longest + settings.max_new_tokens)
                batch = rows_that_fit(self.machine.gpu_memory - sum(placement.gpu.values()), row)
        return estimate_generation(name, self.machine, placement, prompts, settings.max_new_tokens, batch)


def trainer_settings(recipe: Recipe, on_gpu: bool) -> TrainerSettings:
    """The trainer's settings: the toolkit's defaults on a machine with or without a GPU, and what the recipe sets."""
    return TrainerSettings(trainer_defaults(on_gpu, recipe) | recipe.finetuning.trainer)


def recipe_keeping(recipe: Recipe, keep: int, before: list[int]) -> Recipe:
    """The recipe that prunes to `keep` experts, after rounds that leave `before`."""
    changes = {"keep": keep, "schedule": [*before, keep] if before else None}
    return recipe.model_copy(update={"pruning": recipe.pruning.model_copy(update=changes)})
