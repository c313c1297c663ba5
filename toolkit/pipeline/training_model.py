"""What a method of fine-tuning trains, and what it holds frozen, in numbers read off the meta device."""

from toolkit.estimate import ModelSize, TrainingModel
from toolkit.recipe.schema import FinetuningRecipe
from toolkit.recovery.methods import METHODS


def training_model(settings: FinetuningRecipe, model: ModelSize) -> TrainingModel:
    """`model` is in the dtype that is trained in. Raises PollardError where the experts cannot be adapted."""
    method = METHODS[settings.method]
    trained, frozen = method.memory(model.model, settings.lora)
    size = model.parameters, model.hidden_size, model.largest_layer
    return TrainingModel(*size, trained, frozen, method.loads_in_turns, method.saves_frozen_weights)
