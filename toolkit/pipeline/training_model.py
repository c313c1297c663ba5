"""What a method of fine-tuning trains, and what it holds frozen, in numbers read off the meta device."""

from toolkit.estimate.model_size import ModelSize
from toolkit.estimate.training_memory import TrainingModel
from toolkit.recipe.schema import FinetuningRecipe
from toolkit.recovery.methods import METHODS


def training_model(settings: FinetuningRecipe, model: ModelSize) -> TrainingModel:
    """What `finetuning.method` trains of `model`, which is in the dtype that is trained in.

    Raises PollardError where the experts cannot be adapted.
    """
    method = METHODS[settings.method]
    trained, frozen = method.memory(model.model, settings.lora)
    return TrainingModel(
        model.parameters, model.hidden_size, model.largest_layer, trained, frozen, method.loads_in_turns,
        method.saves_frozen_weights,
    )  # fmt: skip
