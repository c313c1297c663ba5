"""A recipe on a machine: the models, their places and the trainer that the stages' estimates are made of.

Stages import it; it knows none of them.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from toolkit.cuts import ModelShape, dense_twin, shaped_meta_model
from toolkit.estimate import (
    DataSize,
    FineTuning,
    LogitsPass,
    Machine,
    ModelPlacement,
    ModelSize,
    SearchSize,
    StageEstimate,
    TrainerSettings,
    TrainingModel,
    estimate_generation,
    estimate_logits_pass,
    estimate_masked_losses,
    estimate_observation,
    model_size,
    place_model,
    repeated,
    row_bytes,
)
from toolkit.evaluation.memory import CPU_BATCH_SIZE, rows_that_fit
from toolkit.moe import meta_model, quantization_of
from toolkit.pipeline.context import RunContext
from toolkit.pipeline.rounds import early_rounds
from toolkit.recipe.finetuning import FinetuningRecipe
from toolkit.recipe.schema import Recipe
from toolkit.recipe.step import StepRecipe
from toolkit.recovery.methods import METHODS
from toolkit.recovery.top_logits import TOKENS_AT_ONCE
from toolkit.recovery.trainer_defaults import trainer_defaults

LOGIT_COPIES = 2  # in float32, of the tokens that a loss counts


class RecipeOnMachine:
    """Sizes of one recipe on one machine. What variants of a run have in common is counted once (`RunContext.once`)."""

    def __init__(self, context: RunContext, machine: Machine) -> None:
        self.context, self.recipe, self.machine = context, context.recipe, machine

    @property
    def dtype(self) -> torch.dtype:
        """That models are loaded in, as `load_model` decides."""
        if self.recipe.model.dtype != "auto":
            return getattr(torch, self.recipe.model.dtype)
        return (self.context.config.dtype or torch.float32) if self.machine.gpus else torch.float32

    @property
    def trainer(self) -> TrainerSettings:
        return trainer_settings(self.recipe, self.machine.gpus > 0)

    def original(self, dtype: torch.dtype | None = None) -> ModelSize:
        """The original model, in the dtype it is loaded in unless given."""
        dtype, config = dtype or self.dtype, self.context.config
        return self.context.once(("original", *self._checkpoint, dtype), lambda: model_size(meta_model(config), dtype))

    def observed(self) -> ModelSize:
        """What calibration observes and pruning cuts: the original, or with rounds what the round before this one leaves."""
        before = early_rounds(self.recipe)
        if not before:
            return self.original()
        return RecipeOnMachine(self.context.variant(recipe_to(self.recipe, before[-1])), self.machine).pruned()

    def calibrated(self) -> ModelSize:
        """What calibration observes: of that model the layers that stay."""
        if self.context.cuts.layers is None:
            return self.observed()
        before = early_rounds(self.recipe)
        shape = self.context.budget_of(self.recipe.pruning.of_step(before[-1])).shape if before else ModelShape()
        return self._shaped(shape._replace(layers=self.context.budget.shape.layers), self.dtype)

    def pruned(self, dtype: torch.dtype | None = None) -> ModelSize:
        """The pruned model, in the form that it is written in and the dtype it is loaded in unless given."""
        if self.recipe.pruning.form == "moe":
            return self.pruned_experts(dtype)
        config, shape, dtype = self.context.config, self.context.budget.shape, dtype or self.dtype
        key = ("dense", *self._checkpoint, shape, dtype)
        return self.context.once(key, lambda: model_size(dense_twin(shaped_meta_model(config, shape)).model, dtype))

    def pruned_experts(self, dtype: torch.dtype | None = None) -> ModelSize:
        """The pruned model as a mixture of experts."""
        return self._shaped(self.context.budget.shape, dtype or self.dtype)

    def _shaped(self, shape: ModelShape, dtype: torch.dtype) -> ModelSize:
        config, key = self.context.config, ("shaped", *self._checkpoint, shape, dtype)
        return self.context.once(key, lambda: model_size(shaped_meta_model(config, shape), dtype))

    def place(self, model: ModelSize, whole: bool = False) -> ModelPlacement:
        """Where a model that answers lies. `whole`: its stage needs it in one piece."""
        return place_model(model, self.machine, self.recipe.model.placement, self.recipe.finetuning.zero, whole)

    def finetuning(self, model: ModelSize) -> FineTuning:
        """Of a model that is in the trainer's dtype."""
        settings = self.recipe.finetuning
        tokens_at_once = TOKENS_AT_ONCE if settings.teacher else None
        trained = training_model(model, settings)
        every = settings.router_gradient == "all"
        return FineTuning(model, trained, self.trainer, settings.method, settings.zero, tokens_at_once, every)

    def observation(self, name: str, model: ModelSize, search: SearchSize | None = None, backward: bool = False) -> StageEstimate:
        """The calibration data in a model that is observed, one layer at a time; as a whole where its weights are quantized, and
        where a `backward` pass follows."""
        data, batch = self.context.data_sizes.calibration, self.recipe.calibration.batch_size
        quantized = quantization_of(model.model.config)
        if not quantized and not backward:
            return estimate_observation(name, self.machine, model, data, batch, search)
        loaded = self.place(model, whole=search is not None or backward)
        note = "a backward pass needs the whole model"
        if quantized:
            note = "its weights are quantized: the whole model is loaded, as the plain numbers they stand for"
        loaded = replace(loaded, notes=(note, *loaded.notes))
        return estimate_observation(name, self.machine, model, data, batch, search, loaded, backward)

    def dev(self, most: int) -> DataSize:
        """At most so many examples of the dev slice, with their answers; as long as the training examples."""
        return replace(self.context.data_sizes.calibration, examples=dev_examples(self.context, most))

    def loss(self, name: str, model: ModelSize, dev: DataSize) -> StageEstimate:
        """Of a whole model, once."""
        batch = self.recipe.calibration.batch_size
        reading = LogitsPass(batch, LOGIT_COPIES, batch * dev.longest, 0)
        return estimate_logits_pass(name, self.machine, self.place(model, whole=True), dev, reading)

    def masked_losses(self, name: str, dev: DataSize, plans: int) -> StageEstimate:
        """Of so many plans, masked in the original: all in one pass over its layers, or each in the whole model where its weights
        are quantized."""
        model = self.original()
        if quantization_of(model.model.config):
            return replace(
                repeated(self.loss(name, model, dev), plans), work=f"{plans} times {dev.examples or 'all'} dev examples"
            )
        return estimate_masked_losses(name, self.machine, model, dev, self.recipe.calibration.batch_size, plans)

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

    @property
    def _checkpoint(self) -> tuple[str, str | None]:
        return self.recipe.model.path, self.recipe.model.revision


def dev_examples(context: RunContext, most: int) -> int | None:
    """How many examples of the dev slice are read, of `most`; None where that is not known before they are fetched."""
    task = context.task
    size = len(task.examples("dev")) if task.is_local("train") else task.known_size("dev")
    return None if size is None else min(size, most)


def trainer_settings(recipe: Recipe, on_gpu: bool) -> TrainerSettings:
    """The trainer's settings: the toolkit's defaults on a machine with or without a GPU, and what the recipe sets."""
    return TrainerSettings(trainer_defaults(on_gpu, recipe) | recipe.finetuning.trainer)


def training_model(model: ModelSize, settings: FinetuningRecipe) -> TrainingModel:
    """How much `finetuning.method` trains of a model that is in the trainer's dtype. Raises PollardError where it cannot."""
    method = METHODS[settings.method]
    trained, frozen_bytes = method.memory(model.model, settings.lora)
    return TrainingModel(
        model.parameters, model.hidden_size, model.largest_layer, trained, frozen_bytes, method.loads_in_turns,
        method.saves_frozen_weights,
    )  # fmt: skip


def recipe_to(recipe: Recipe, step: StepRecipe, before: Sequence[StepRecipe] = ()) -> Recipe:
    """The recipe that prunes to `step`, after rounds that end with the steps `before`."""
    changes = {"schedule": [*before, step] if before else None}
    return recipe.model_copy(update={"pruning": recipe.pruning.of_step(step, **changes)})
