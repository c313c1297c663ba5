"""What the cells of a sweep are measured on: the dev slice of a task, or the beginning of a text."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from toolkit.evaluation import completion_loss, evaluate
from toolkit.recipe.data import DataRecipe
from toolkit.recipe.schema import Recipe
from toolkit.runtime.errors import PollardError
from toolkit.tasks import DataCache, Task, encode_all, encode_texts, padded_batches


@dataclass(frozen=True)
class Probe:
    """`batches` serve the loss; `task`, of whose dev slice the first `examples` are asked, is None for plain text."""

    name: str
    task: Task | None
    examples: int | None
    batches: list[dict[str, torch.Tensor]]
    left_out: int


def read_probe(data: DataRecipe, recipe: Recipe, tokenizer: PreTrainedTokenizerBase, cache: DataCache) -> Probe:
    """Reads and tokenizes `data`: as many examples as it says, else as many as the recipe evaluates."""
    examples, longest = data.examples or recipe.evaluation.examples, recipe.calibration.max_length
    task, left_out = cache.task(data.task) if data.task else None, 0
    if task:
        encoded, left_out = encode_all(tokenizer, task.examples("dev")[:examples], longest)
    else:
        encoded = encode_texts(tokenizer, cache.texts(str(data.text)), longest)[:examples]
    batches = padded_batches(encoded, recipe.calibration.batch_size, int(tokenizer.pad_token_id or 0))
    return Probe(data.name, task, examples, batches, left_out)


def check_probe(data: DataRecipe, cache: DataCache) -> None:
    """Raises PollardError for data that cannot be read, and for a task without a dev slice."""
    if data.text is not None:
        cache.texts(data.text)
    elif data.task and not cache.task(data.task).examples("dev"):
        raise PollardError(f"Task {data.name} has no dev examples: a fifth of its training data is carved for them.")


def measure_probe(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, recipe: Recipe, probe: Probe) -> dict[str, Any]:
    """The model's loss, and for a task its score and, question by question, whether it was right (to compare cells by)."""
    mean = completion_loss(model, probe.batches)
    found: dict[str, Any] = {"name": probe.name, "loss": mean.finite, "loss_tokens": mean.tokens, "left_out": probe.left_out}
    if probe.task:
        settings = recipe.evaluation
        scores = evaluate(model, tokenizer, probe.task, "dev", probe.examples, settings.batch_size, settings.max_new_tokens)
        scores.check()
        found |= {"score": scores.score, "correct": scores.correct, "n": scores.n, "interval": list(scores.interval)}
        found["right"] = "".join(str(int(item.correct)) for item in scores.items)
    return found
