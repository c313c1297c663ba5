"""A model verifies what a draft proposes: its own answer, in fewer passes of it.

The draft writes a few tokens; one pass of the model over them says how many it would have written itself; those stay, and its
next token comes for free (transformers' assisted generation; Leviathan et al., arXiv 2211.17192). Greedy, so what is written is
what the model alone writes, token for token: but for ties within the precision of the numbers. What drafting comes to is told
beforehand in replay.py.
"""

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from transformers import GenerationConfig, PreTrainedModel

from toolkit.evaluation.replay import LOOKUP_NGRAM
from toolkit.evaluation.speed import median_and_range
from toolkit.runtime.errors import PollardError

REPEATS = 3  # of each way, in turn, after one to warm up
LOOKUP_TOKENS = 10  # at a time, unless a length is given: transformers' own default


class Draft(NamedTuple):
    """Who proposes tokens, and how many at a time.

    `model`: None for n-gram lookup, in the prompt and what is written so far. `length`: exactly so many, as the replay
    counts them; None leaves it to transformers (of a model up to 20, fewer where it is not sure).
    """

    model: PreTrainedModel | None
    length: int | None = None


class TimedAnswer(NamedTuple):
    """`tokens` up to and including the end token; `passes` of the model; with a draft, how many tokens were drafted and how many
    of them accepted (the last token of a pass counts as the model's own)."""

    tokens: list[int]
    seconds: float
    passes: int
    drafted: int = 0
    accepted: int = 0

    @property
    def speed(self) -> float:
        return len(self.tokens) / self.seconds


class DraftingComparison(NamedTuple):
    """A model alone and with a draft; speeds are medians, each with its lowest and highest."""

    alone: TimedAnswer
    drafted: TimedAnswer
    speed_alone: list[float]
    speed_drafted: list[float]
    ratios: list[float]  # of two that were measured one after the other

    @property
    def ratio(self) -> list[float]:
        return median_and_range(self.ratios)

    @property
    def same(self) -> bool:
        return self.alone.tokens == self.drafted.tokens


@torch.no_grad()
def timed_answer(
    model: PreTrainedModel, prompt: list[int], settings: GenerationConfig, draft: Draft | None = None
) -> TimedAnswer:
    """The continuation of the prompt by `model` under greedy `settings`, with what `draft` proposes.

    Raises PollardError for a family that transformers cannot draft for.
    """
    ids = torch.tensor([prompt], device=model.device)
    lengths: list[int] = []
    hook = model.register_forward_pre_hook(lambda _, args, kwargs: lengths.append(_length(args, kwargs)), with_kwargs=True)
    try:
        with _own_settings(model, settings, draft) as (used, helper):
            wait_for_device(model)
            started = time.perf_counter()
            out = cast(Any, model).generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                generation_config=used,
                **helper,
            )
            wait_for_device(model)
            seconds = time.perf_counter() - started
    except ValueError as error:
        if draft is None or "assist" not in str(error):
            raise
        raise PollardError(
            f"transformers cannot draft for this family: {error}. Leave --draft out.", code="drafting.family"
        ) from None
    finally:
        hook.remove()
    tokens, passes = out[0, len(prompt) :].tolist(), len(lengths)
    if draft is None:
        return TimedAnswer(tokens, seconds, passes)
    return TimedAnswer(tokens, seconds, passes, sum(lengths) - len(prompt) - (passes - 1), len(tokens) - passes)


@contextmanager
def _own_settings(
    model: PreTrainedModel, settings: GenerationConfig, draft: Draft | None
) -> Iterator[tuple[GenerationConfig, dict[str, PreTrainedModel]]]:
    """The settings and what else `generate` takes; inside the context, no checkpoint's own settings fill gaps in them."""
    helper: dict[str, PreTrainedModel] = {}
    if draft and draft.model is None:
        settings = copy.deepcopy(settings)
        settings.prompt_lookup_num_tokens = draft.length or LOOKUP_TOKENS
        settings.max_matching_ngram_size = LOOKUP_NGRAM
    models = [model]
    if draft and draft.model is not None:
        helper["assistant_model"] = draft.model
        models.append(draft.model)
    checkpoints_own = [each.generation_config for each in models]
    for each in models:
        each.generation_config = copy.deepcopy(settings)
    if draft and draft.model is not None and draft.length:
        drafting: Any = draft.model.generation_config
        drafting.num_assistant_tokens, drafting.num_assistant_tokens_schedule = draft.length, "constant"
        drafting.assistant_confidence_threshold = 0.0  # or transformers stops a draft that is not sure
    try:
        yield settings, helper
    finally:
        for each, own in zip(models, checkpoints_own, strict=True):
            each.generation_config = own


def compare_drafting(
    model: PreTrainedModel, draft: Draft, prompt: list[int], settings: GenerationConfig, repeats: int = REPEATS
) -> DraftingComparison:
    """The model alone and with the draft, in turn."""
    turns = [(timed_answer(model, prompt, settings), timed_answer(model, prompt, settings, draft)) for _ in range(repeats + 1)]
    speeds = [(alone.speed, drafted.speed) for alone, drafted in turns[1:]]  # the first turn warms up
    alone, drafted = zip(*speeds, strict=True)
    ratios = [drafted / alone for alone, drafted in speeds]
    return DraftingComparison(*turns[0], median_and_range(alone), median_and_range(drafted), ratios)


def _length(args: Any, kwargs: dict[str, Any]) -> int:
    """How many tokens a forward pass gets."""
    given = kwargs.get("input_ids")
    return int((args[0] if given is None else given).shape[1])


def wait_for_device(model: PreTrainedModel) -> None:
    """Until the GPUs have finished what they were given."""
    if model.device.type == "cuda":
        for gpu in set(getattr(model, "hf_device_map", {"": model.device}).values()):  # several where its layers are spread
            torch.cuda.synchronize(gpu)
