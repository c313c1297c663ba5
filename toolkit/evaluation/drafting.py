"""The original verifies what a smaller model drafts: the original's own answer, in fewer passes of it.

The smaller model writes a few tokens; one pass of the original over them says how many it would have written itself; those
stay, and its next token comes for free (transformers' assisted generation; Leviathan et al., arXiv 2211.17192). Greedy, so
what is written is what the original alone writes, token for token: but for ties within the precision of the numbers.
"""

import copy
import time
from typing import Any, NamedTuple, cast

import torch
from transformers import GenerationConfig, PreTrainedModel

from toolkit.evaluation.speed import median_and_range
from toolkit.runtime.errors import PollardError

REPEATS = 3  # of each way, in turn, after one to warm up


class TimedAnswer(NamedTuple):
    """`tokens` up to and including the end token; with a draft, how many tokens were drafted and how many of them accepted."""

    tokens: list[int]
    seconds: float
    drafted: int = 0
    accepted: int = 0

    @property
    def speed(self) -> float:
        return len(self.tokens) / self.seconds


class DraftingComparison(NamedTuple):
    """The original alone and with a draft; speeds are medians, each with its lowest and highest."""

    alone: TimedAnswer
    drafted: TimedAnswer
    speed_alone: list[float]
    speed_drafted: list[float]
    ratio: list[float]  # of two that were measured one after the other

    @property
    def same(self) -> bool:
        return self.alone.tokens == self.drafted.tokens


@torch.no_grad()
def timed_answer(
    model: PreTrainedModel, prompt: list[int], settings: GenerationConfig, draft: PreTrainedModel | None = None
) -> TimedAnswer:
    """The continuation of the prompt by `model` under greedy `settings`, with `draft` as the drafting model.

    Raises PollardError for a family that transformers cannot draft for.
    """
    ids = torch.tensor([prompt], device=model.device)
    passes: list[int] = []
    hook = model.register_forward_pre_hook(lambda _, args, kwargs: passes.append(_length(args, kwargs)), with_kwargs=True)
    checkpoints_own = model.generation_config, draft.generation_config if draft else None
    model.generation_config = settings  # transformers fills gaps in the settings with the checkpoint's own
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
        raise PollardError(
            f"transformers cannot draft for this family: {error}. Leave --draft out.", code="drafting.family"
        ) from None
    finally:
        hook.remove()
        model.generation_config = checkpoints_own[0]
        if draft:
            draft.generation_config = cast(Any, checkpoints_own[1])
    tokens = out[0, len(prompt) :].tolist()
    if draft is None:
        return TimedAnswer(tokens, seconds)
    return TimedAnswer(tokens, seconds, drafted=sum(passes) - len(prompt) - (len(passes) - 1), accepted=len(tokens) - len(passes))


def compare_drafting(
    original: PreTrainedModel, draft: PreTrainedModel, prompt: list[int], settings: GenerationConfig
) -> DraftingComparison:
    """The original alone and with the draft, in turn."""
    turns = [
        (timed_answer(original, prompt, settings), timed_answer(original, prompt, settings, draft)) for _ in range(REPEATS + 1)
    ]
    speeds = [(alone.speed, drafted.speed) for alone, drafted in turns[1:]]  # the first turn warms up
    alone, drafted = zip(*speeds, strict=True)
    ratio = median_and_range([drafted / alone for alone, drafted in speeds])
    return DraftingComparison(*turns[0], median_and_range(alone), median_and_range(drafted), ratio)


def _length(args: Any, kwargs: dict[str, Any]) -> int:
    """How many tokens a forward pass gets."""
    given = kwargs.get("input_ids")
    return int((args[0] if given is None else given).shape[1])


def _wait(model: PreTrainedModel) -> None:
    """Until the GPU has finished what it was given."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
