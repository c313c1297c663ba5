"""What the cells of a sweep are measured on: the dev slice of a task, or the beginning of a text."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from toolkit.evaluation.evaluate import evaluate
from toolkit.evaluation.likelihood import completion_loss
from toolkit.recipe.data import DataRecipe
from toolkit.recipe.schema import Recipe
from toolkit.runtime.errors import PollardError
from toolkit.tasks import DataCache, Encoded, Task, encode_all, encode_texts, padded_batches


@dataclass(frozen=True)
class Probe:
    """`batches` are for the loss. The first `examples` questions of the dev slice of `task` are answered; plain text has no
    task."""

    name: str
    task: Task | None
    examples: int | None
    batches: list[dict[str, torch.Tensor]]
    left_out: int


@dataclass(frozen=True)
class ProbeResult:
    """The loss over completion tokens (None: not finite) and, of a task, its score and which questions were right."""

    name: str
    loss: float | None
    loss_tokens: int
    left_out: int
    score: float | None = None
    correct: int | None = None
    n: int | None = None
    interval: list[float] | None = None
    right: str | None = None  # "1101…", one digit per question, by which cells are compared

    def to_json(self) -> dict[str, Any]:
        """Without the keys of a score for plain text."""
        return {key: value for key, value in asdict(self).items() if key == "loss" or value is not None}


def read_probe(data: DataRecipe, recipe: Recipe, tokenizer: PreTrainedTokenizerBase, cache: DataCache) -> Probe:
    """Reads and tokenizes `data`: as many examples as it names, else as many as the recipe evaluates."""
    examples = data.examples or recipe.evaluation.examples
    encoded, left_out = encode_data(data, recipe, tokenizer, cache, examples)
    batches = padded_batches(encoded, recipe.calibration.batch_size, int(tokenizer.pad_token_id or 0))
    return Probe(data.name, cache.task(data.task) if data.task else None, examples, batches, left_out)


def encode_data(
    data: DataRecipe, recipe: Recipe, tokenizer: PreTrainedTokenizerBase, cache: DataCache, examples: int | None
) -> tuple[list[Encoded], int]:
    """The first `examples` (None: all) dev examples of a task, or pieces of a text, of at most `calibration.max_length` tokens;
    and how many examples are longer. Raises PollardError if none fits."""
    longest = recipe.calibration.max_length
    if data.task:
        return encode_all(tokenizer, cache.task(data.task).examples("dev")[:examples], longest, "calibration.max_length")
    return encode_texts(tokenizer, cache.texts(str(data.text)), longest)[:examples], 0


def check_probe(data: DataRecipe, cache: DataCache) -> None:
    """Raises PollardError for data that cannot be read, and for a task without a dev slice."""
    if data.text is not None:
        cache.texts(data.text)
    elif data.task and not cache.task(data.task).examples("dev"):
        raise PollardError(
            f"Task {data.name} has no dev examples: a fifth of its training data is carved for them.", code="sweep.no-dev"
        )


def measure_probe(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, recipe: Recipe, probe: Probe) -> ProbeResult:
    """The model's loss, and for a task its score. Raises ItemsFailed where the task's scorer could not judge an answer."""
    loss = completion_loss(model, probe.batches)
    if not probe.task:
        return ProbeResult(probe.name, loss.finite, loss.tokens, probe.left_out)
    settings = recipe.evaluation
    scores = evaluate(model, tokenizer, probe.task, "dev", probe.examples, settings.batch_size, settings.max_new_tokens)
    scores.check()
    right = "".join(str(int(item.correct)) for item in scores.items)
    return ProbeResult(
        probe.name, loss.finite, loss.tokens, probe.left_out, scores.score, scores.correct, scores.n, list(scores.interval), right
    )
