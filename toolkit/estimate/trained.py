"""What a method of fine-tuning trains, and what it holds frozen, in numbers read off the meta device."""

from toolkit.estimate.model import ModelNumbers
from toolkit.estimate.training import Trained
from toolkit.recipe.schema import Recipe
from toolkit.recovery.methods import METHODS


def trained_by(recipe: Recipe, pruned: ModelNumbers) -> Trained:
    """`pruned` in the dtype that is trained in. Raises PollardError where the experts cannot be adapted."""
    method = METHODS[recipe.finetuning.method]
    trained, frozen = method.memory(pruned.model, recipe.finetuning.lora)
    return Trained(pruned.parameters, pruned.hidden_size, pruned.largest_layer, trained, frozen, method.loads_in_turns)
