"""The original verifies what a smaller model drafts: the original's own words, in fewer passes of it.

The smaller model writes a few tokens; one pass of the original over them says how many it would have written itself; those
stay, and its next token comes for free (transformers' assisted generation; Leviathan et al., arXiv 2211.17192). Greedy, so
what is written is what the original alone writes, token for token: but for ties within the precision of the numbers.
"""

import copy
import time
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from transformers import GenerationConfig, PreTrainedModel

from toolkit.evaluation.speed import spread
from toolkit.runtime.errors import PollardError

REPEATS = 3  # of each way, in turn, after one to warm up


class Writing(NamedTuple):
    """`tokens` up to and including the end token; with a draft, how much was drafted and how much of it stayed."""

    tokens: list[int]
    seconds: float
    drafted: int = 0
    accepted: int = 0

    @property
    def speed(self) -> float:
        return len(self.tokens) / self.seconds


class Compared(NamedTuple):
    """The original alone and with a draft; speeds are medians, each with its lowest and highest."""

    alone: Writing
    drafted: Writing
    speed_alone: list[float]
    speed_drafted: list[float]
    ratio: list[float]  # of two that were measured one after the other

    @property
    def same(self) -> bool:
        return self.alone.tokens == self.drafted.tokens


@torch.no_grad()
def write(model: PreTrainedModel, prompt: list[int], settings: GenerationConfig, draft: PreTrainedModel | None = None) -> Writing:
    """What `model` continues the prompt with, by greedy `settings`.

    Raises PollardError for a family that transformers cannot draft for.
    """
    ids = torch.tensor([prompt], device=model.device)
    passes: list[int] = []
    hook = model.register_forward_pre_hook(lambda _, args, kwargs: passes.append(_length(args, kwargs)), with_kwargs=True)
    theirs = model.generation_config, draft.generation_config if draft else None
    model.generation_config = settings  # transformers fills ours up with the checkpoint's
    if draft:
        draft.generation_config = copy.deepcopy(settings)
    try:
        helper = {"assistant_model": draft} if draft else {}
        _wait(model)
        started = time.perf_counter()
        out = cast(Any, model).generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=settings,
            **helper,
        )
        _wait(model)
        seconds = time.perf_counter() - started
    except ValueError as error:
        if draft is None or "assist" not in str(error):
            raise
        raise PollardError(f"transformers cannot draft for this family: {error}. Leave --draft out.") from None
    finally:
        hook.remove()
        model.generation_config = theirs[0]
        if draft:
            draft.generation_config = cast(Any, theirs[1])
    tokens = out[0, len(prompt) :].tolist()
    if draft is None:
        return Writing(tokens, seconds)
    return Writing(tokens, seconds, drafted=sum(passes) - len(prompt) - (len(passes) - 1), accepted=len(tokens) - len(passes))


def compare_drafting(
    original: PreTrainedModel, draft: PreTrainedModel, prompt: list[int], settings: GenerationConfig
) -> Compared:
    """Both ways in turn, one after the other."""
    ways: tuple[Callable[[], Writing], ...] = (
        lambda: write(original, prompt, settings),
        lambda: write(original, prompt, settings, draft),
    )
    first = [way() for way in ways]
    pairs = [[way().speed for way in ways] for _ in range(REPEATS)]
    alone, drafted = zip(*pairs, strict=True)
    return Compared(first[0], first[1], spread(alone), spread(drafted), spread([b / a for a, b in pairs]))


def _length(args: Any, kwargs: dict[str, Any]) -> int:
    """How many tokens a forward pass gets."""
    given = kwargs.get("input_ids")
    return int((args[0] if given is None else given).shape[1])


def _wait(model: PreTrainedModel) -> None:
    """A GPU answers before it has finished."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
