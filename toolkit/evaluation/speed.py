"""How fast models are, one against the other: measured in turn (A B A B), in one process, on prompts of the same length.

    prefill       prompt tokens per second, until the first new token is there
    decode        new tokens per second after it, all sequences of the batch together
    first token   seconds until it is there

Prompts are random tokens, the same for all models: speed depends little on what is said, but which experts are read does, and
random tokens are read by more of them than those of one task. What is timed is transformers' own `generate`, greedily, as
an evaluation runs it. Shape legend: B sequences, S positions.

The original verifies what a smaller model drafts: the original's own words, in fewer passes of it.

The smaller model writes a few tokens; one pass of the original over them says how many it would have written itself; those
stay, and its next token comes for free (transformers' assisted generation; Leviathan et al., arXiv 2211.17192). Greedy, so
what is written is what the original alone writes, token for token: but for ties within the precision of the numbers.
"""

import copy
import gc
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation import BaseStreamer

from toolkit.evaluation.memory import free_memory, held_memory, peak_memory, reset_peak_memory
from toolkit.runtime.distributed import device
from toolkit.runtime.errors import PollardError
from toolkit.runtime.progress import progress

MEMORY_MARGIN = 1.3  # models that weigh this much less than the memory there is are held together
MEASURES = ("prefill", "decode", "first_token")  # of a batch, with their spread


class BenchmarkedModel(NamedTuple):
    """A model that is measured: what it is, and how it is loaded."""

    name: str
    facts: dict[str, Any]  # parameters, active_parameters, checkpoint_bytes, …
    weight_bytes: int
    load: Callable[[], PreTrainedModel]


class Workload(NamedTuple):
    """What the models are given to do."""

    batch_sizes: Sequence[int]
    prompt_tokens: int
    new_tokens: int
    repeats: int


class Clock(BaseStreamer):
    """Notes when each token is there, on the CPU."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Any) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


@torch.no_grad()
def time_batch(model: PreTrainedModel, batch_size: int, prompt_tokens: int, new_tokens: int) -> dict[str, float]:
    """One batch, from its prompts to the last of `new_tokens` (none of them ends it)."""
    vocabulary = int(model.config.get_text_config().vocab_size)
    ids_BS = torch.randint(3, vocabulary, (batch_size, prompt_tokens), generator=torch.Generator().manual_seed(0)).to(
        model.device
    )
    settings = GenerationConfig(do_sample=False, max_new_tokens=new_tokens, pad_token_id=0)
    theirs, model.generation_config = model.generation_config, settings  # with its end token, an answer would end
    clock = Clock()
    try:
        cast(Any, model).generate(
            input_ids=ids_BS, attention_mask=torch.ones_like(ids_BS), generation_config=settings, streamer=clock
        )
    finally:
        model.generation_config = theirs
    begun, first, *_, last = clock.times
    return {
        "prefill": batch_size * prompt_tokens / (first - begun),
        "decode": batch_size * (new_tokens - 1) / (last - first),
        "first_token": first - begun,
    }


def benchmark(entrants: Sequence[BenchmarkedModel], load: Workload) -> dict[str, Any]:
    """Every model on every batch size, `repeats` times in turn after once to warm up; the first is what ratios are to.

    All are held in memory where there is room; else each is loaded anew for every turn (off the clock).
    """
    together = MEMORY_MARGIN * sum(entrant.weight_bytes for entrant in entrants) <= free_memory(device())
    held = {entrant.name: entrant.load() for entrant in entrants} if together else {}
    found: dict[tuple[str, int], list[dict[str, float]]] = {(e.name, b): [] for e in entrants for b in load.batch_sizes}
    turns = [(turn, entrant) for turn in range(load.repeats + 1) for entrant in entrants]
    for turn, entrant in progress(turns, "measuring"):
        model = held[entrant.name] if together else entrant.load()
        for batch_size in load.batch_sizes:
            measured = _measure(model, entrant, batch_size, load)
            if turn:
                found[entrant.name, batch_size].append(measured)
        del model
        _let_go()
    first = entrants[0]
    return {
        "format": 1, "device": torch.cuda.get_device_name() if device().type == "cuda" else "cpu",
        "threads": torch.get_num_threads(), **load._asdict(), "together": together,
        "models": [
            {"name": entrant.name, **entrant.facts, "ratios": _sizes(entrant, first)}
            | {"batches": [_batch(size, found[entrant.name, size], found[first.name, size]) for size in load.batch_sizes]}
            for entrant in entrants
        ],
    }  # fmt: skip


def _measure(model: PreTrainedModel, entrant: BenchmarkedModel, batch_size: int, load: Workload) -> dict[str, float]:
    """Nothing for a batch that does not fit. Peak memory: the weights, and what came on top while it was at work."""
    _let_go()
    before = held_memory(model.device)
    reset_peak_memory(model.device)
    try:
        measured = time_batch(model, batch_size, load.prompt_tokens, load.new_tokens)
    except torch.OutOfMemoryError:
        return {}
    return measured | {"memory": entrant.weight_bytes + max(0, peak_memory(model.device) - before)}


def _batch(size: int, mine: list[dict[str, float]], first: list[dict[str, float]]) -> dict[str, Any]:
    """Medians with their lowest and highest; ratios are of two turns that followed each other."""
    if not all(mine):
        return {"batch_size": size, "fits": False}
    found: dict[str, Any] = {"batch_size": size, "fits": True}
    found |= {key: median_and_range([turn[key] for turn in mine]) for key in MEASURES}
    found["peak_memory_bytes"] = int(max(turn["memory"] for turn in mine))
    if all(first):
        pairs = list(zip(mine, first, strict=True))
        found["ratios"] = {key: median_and_range([a[key] / b[key] for a, b in pairs]) for key in MEASURES}
        found["ratios"]["peak_memory_bytes"] = found["peak_memory_bytes"] / max(turn["memory"] for turn in first)
    return found


def median_and_range(values: Sequence[float]) -> list[float]:
    """Median, lowest, highest."""
    return [statistics.median(values), min(values), max(values)]


def _sizes(entrant: BenchmarkedModel, first: BenchmarkedModel) -> dict[str, float]:
    keys = ("parameters", "active_parameters", "checkpoint_bytes")
    return {key: entrant.facts[key] / first.facts[key] for key in keys}


def _let_go() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


REPEATS = 3  # of each way, in turn, after one to warm up


class TimedAnswer(NamedTuple):
    """`tokens` up to and including the end token; with a draft, how much was drafted and how much of it stayed."""

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
        return TimedAnswer(tokens, seconds)
    return TimedAnswer(tokens, seconds, drafted=sum(passes) - len(prompt) - (len(passes) - 1), accepted=len(tokens) - len(passes))


def compare_drafting(
    original: PreTrainedModel, draft: PreTrainedModel, prompt: list[int], settings: GenerationConfig
) -> DraftingComparison:
    """Both ways in turn, one after the other."""
    ways: tuple[Callable[[], TimedAnswer], ...] = (
        lambda: timed_answer(original, prompt, settings),
        lambda: timed_answer(original, prompt, settings, draft),
    )
    first = [way() for way in ways]
    pairs = [[way().speed for way in ways] for _ in range(REPEATS)]
    alone, drafted = zip(*pairs, strict=True)
    return DraftingComparison(
        first[0], first[1], median_and_range(alone), median_and_range(drafted), median_and_range([b / a for a, b in pairs])
    )


def _length(args: Any, kwargs: dict[str, Any]) -> int:
    """How many tokens a forward pass gets."""
    given = kwargs.get("input_ids")
    return int((args[0] if given is None else given).shape[1])


def _wait(model: PreTrainedModel) -> None:
    """A GPU answers before it has finished."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
