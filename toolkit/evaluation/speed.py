"""How fast models are, one against the other: measured in turn (A B A B), in one process, on prompts of the same length.

    prefill       prompt tokens per second, until the first new token is there
    decode        new tokens per second after it, all sequences of the batch together
    first token   seconds until it is there

Prompts are random tokens, the same for all models: speed depends little on what is said, but which experts are read does, and
random tokens are read by more of them than those of one task. What is timed is transformers' own `generate`, greedily, as
an evaluation runs it. Shape legend: B sequences, S positions.
"""

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
from toolkit.runtime.progress import progress

ROOM = 1.3  # models that weigh this much less than the memory there is are held together
MEASURES = ("prefill", "decode", "first_token")  # of a batch, with their spread


class Entrant(NamedTuple):
    """A model that is measured: what it is, and how it is loaded."""

    name: str
    facts: dict[str, Any]  # parameters, active_parameters, checkpoint_bytes, …
    weight_bytes: int
    load: Callable[[], PreTrainedModel]


class Load(NamedTuple):
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
def timed(model: PreTrainedModel, batch_size: int, prompt_tokens: int, new_tokens: int) -> dict[str, float]:
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


def benchmark(entrants: Sequence[Entrant], load: Load) -> dict[str, Any]:
    """Every model on every batch size, `repeats` times in turn after once to warm up; the first is what ratios are to.

    All are held in memory where there is room; else each is loaded anew for every turn (off the clock).
    """
    together = ROOM * sum(entrant.weight_bytes for entrant in entrants) <= free_memory(device())
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


def _measure(model: PreTrainedModel, entrant: Entrant, batch_size: int, load: Load) -> dict[str, float]:
    """Nothing for a batch that does not fit. Peak memory: the weights, and what came on top while it was at work."""
    _let_go()
    before = held_memory(model.device)
    reset_peak_memory(model.device)
    try:
        measured = timed(model, batch_size, load.prompt_tokens, load.new_tokens)
    except torch.OutOfMemoryError:
        return {}
    return measured | {"memory": entrant.weight_bytes + max(0, peak_memory(model.device) - before)}


def _batch(size: int, mine: list[dict[str, float]], first: list[dict[str, float]]) -> dict[str, Any]:
    """Medians with their lowest and highest; ratios are of two turns that followed each other."""
    if not all(mine):
        return {"batch_size": size, "fits": False}
    found: dict[str, Any] = {"batch_size": size, "fits": True}
    found |= {key: spread([turn[key] for turn in mine]) for key in MEASURES}
    found["peak_memory_bytes"] = int(max(turn["memory"] for turn in mine))
    if all(first):
        pairs = list(zip(mine, first, strict=True))
        found["ratios"] = {key: spread([a[key] / b[key] for a, b in pairs]) for key in MEASURES}
        found["ratios"]["peak_memory_bytes"] = found["peak_memory_bytes"] / max(turn["memory"] for turn in first)
    return found


def spread(values: Sequence[float]) -> list[float]:
    """Median, lowest, highest."""
    return [statistics.median(values), min(values), max(values)]


def _sizes(entrant: Entrant, first: Entrant) -> dict[str, float]:
    keys = ("parameters", "active_parameters", "checkpoint_bytes")
    return {key: entrant.facts[key] / first.facts[key] for key in keys}


def _let_go() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
