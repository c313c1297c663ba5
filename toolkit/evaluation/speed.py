"""How fast models are compared with each other: measured in turn (A B A B), in one process, on prompts of the same length.

    prefill       prompt tokens per second, until the first new token is there
    decode        new tokens per second after it, all sequences of the batch together
    first token   seconds until it is there

Prompts are random tokens, the same for all models: speed depends little on the text, but on which experts are read, and random
tokens use more of them than those of one task. What is timed is transformers' own `generate`, greedily, as an evaluation runs
it. Shape legend: B sequences, S positions.
"""

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, cast

import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation import BaseStreamer

from toolkit.evaluation.memory import free_memory, held_memory, peak_memory, reset_peak_memory
from toolkit.runtime.distributed import device
from toolkit.runtime.progress import progress

MEMORY_MARGIN = 1.3  # all models are held together where memory is this many times their weights


@dataclass(frozen=True)
class ModelSize:
    """What a benchmark says of a model before it is measured. `path` is None for a model with `random` weights."""

    parameters: int
    active_parameters: int
    checkpoint_bytes: int
    path: str | None
    random: bool

    def ratios_to(self, first: "ModelSize") -> dict[str, float]:
        return {
            "parameters": self.parameters / first.parameters,
            "active_parameters": self.active_parameters / first.active_parameters,
            "checkpoint_bytes": self.checkpoint_bytes / first.checkpoint_bytes,
        }


class BenchmarkedModel(NamedTuple):
    """A model to be measured, and how it is loaded."""

    name: str
    size: ModelSize
    weight_bytes: int
    load: Callable[[], PreTrainedModel]


class Workload(NamedTuple):
    """The batches that every model is measured on."""

    batch_sizes: Sequence[int]
    prompt_tokens: int
    new_tokens: int
    repeats: int


class BatchTimes(NamedTuple):
    """One batch. `memory`: bytes of the weights and of what came on top at the peak; 0 where it was not measured."""

    prefill: float
    decode: float
    first_token: float
    memory: int = 0


class TokenClock(BaseStreamer):
    """Notes when each token reaches the CPU."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Any) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


@torch.no_grad()
def time_batch(model: PreTrainedModel, batch_size: int, prompt_tokens: int, new_tokens: int) -> BatchTimes:
    """Times one batch from its prompts to the last of `new_tokens`; no end token stops it."""
    vocabulary = int(model.config.get_text_config().vocab_size)
    ids_BS = torch.randint(3, vocabulary, (batch_size, prompt_tokens), generator=torch.Generator().manual_seed(0)).to(
        model.device
    )
    settings = GenerationConfig(do_sample=False, max_new_tokens=new_tokens, pad_token_id=0)
    checkpoints_own, model.generation_config = model.generation_config, settings  # whose end token would stop it
    clock = TokenClock()
    try:
        cast(Any, model).generate(
            input_ids=ids_BS, attention_mask=torch.ones_like(ids_BS), generation_config=settings, streamer=clock
        )
    finally:
        model.generation_config = checkpoints_own
    begun, first, *_, last = clock.times
    return BatchTimes(
        prefill=batch_size * prompt_tokens / (first - begun),
        decode=batch_size * (new_tokens - 1) / (last - first),
        first_token=first - begun,
    )


@dataclass(frozen=True)
class BatchResult:
    """A model on one batch size: medians with the lowest and highest, and ratios to the first model, of turns that followed
    each other. `fits` False: there was not enough memory, and nothing else is known."""

    batch_size: int
    fits: bool
    prefill: list[float] | None = None
    decode: list[float] | None = None
    first_token: list[float] | None = None
    peak_memory_bytes: int | None = None
    ratios: dict[str, Any] | None = None  # by measure; None where the first model does not fit

    @classmethod
    def of(cls, size: int, turns: Sequence[BatchTimes | None], first_turns: Sequence[BatchTimes | None]) -> "BatchResult":
        own, first = [turn for turn in turns if turn], [turn for turn in first_turns if turn]
        if len(own) < len(turns):
            return cls(size, False)
        peak = max(turn.memory for turn in own)
        ratios: dict[str, Any] | None = None
        if len(first) == len(first_turns):
            pairs = list(zip(own, first, strict=True))
            ratios = {
                "prefill": median_and_range([one.prefill / other.prefill for one, other in pairs]),
                "decode": median_and_range([one.decode / other.decode for one, other in pairs]),
                "first_token": median_and_range([one.first_token / other.first_token for one, other in pairs]),
                "peak_memory_bytes": peak / max(turn.memory for turn in first),
            }
        return cls(
            size, True, median_and_range([turn.prefill for turn in own]), median_and_range([turn.decode for turn in own]),
            median_and_range([turn.first_token for turn in own]), peak, ratios,
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class ModelSpeed:
    name: str
    size: ModelSize
    ratios: dict[str, float]  # of sizes, to the first model
    batches: list[BatchResult]

    def to_json(self) -> dict[str, Any]:
        batches = [batch.to_json() for batch in self.batches]
        return {"name": self.name, **asdict(self.size), "ratios": self.ratios, "batches": batches}


@dataclass(frozen=True)
class Benchmark:
    """`together`: all models were in memory at once; else each was loaded anew for its turn."""

    device: str
    threads: int
    workload: Workload
    together: bool
    models: list[ModelSpeed]

    def to_json(self) -> dict[str, Any]:
        return {
            "format": 1, "device": self.device, "threads": self.threads, **self.workload._asdict(), "together": self.together,
            "models": [model.to_json() for model in self.models],
        }  # fmt: skip


def benchmark(models: Sequence[BenchmarkedModel], workload: Workload) -> Benchmark:
    """Every model on every batch size, `repeats` times in turn after one turn to warm up; ratios are to the first model.

    All are held in memory where there is room; else each is loaded anew for every turn (off the clock).
    """
    together = MEMORY_MARGIN * sum(model.weight_bytes for model in models) <= free_memory(device())
    held = {model.name: model.load() for model in models} if together else {}
    times: dict[tuple[str, int], list[BatchTimes | None]] = {(m.name, b): [] for m in models for b in workload.batch_sizes}
    turns = [(turn, model) for turn in range(workload.repeats + 1) for model in models]
    for turn, each in progress(turns, "measuring"):
        model = held[each.name] if together else each.load()
        for batch_size in workload.batch_sizes:
            measured = _measure(model, each.weight_bytes, batch_size, workload)
            if turn:
                times[each.name, batch_size].append(measured)
        del model
        _free_memory()
    first = models[0]
    results = [
        ModelSpeed(
            each.name, each.size, each.size.ratios_to(first.size),
            [BatchResult.of(size, times[each.name, size], times[first.name, size]) for size in workload.batch_sizes],
        )
        for each in models
    ]  # fmt: skip
    on = torch.cuda.get_device_name() if device().type == "cuda" else "cpu"
    return Benchmark(on, torch.get_num_threads(), workload, together, results)


def _measure(model: PreTrainedModel, weight_bytes: int, batch_size: int, workload: Workload) -> BatchTimes | None:
    """None for a batch that does not fit into memory."""
    _free_memory()
    before = held_memory(model.device)
    reset_peak_memory(model.device)
    try:
        measured = time_batch(model, batch_size, workload.prompt_tokens, workload.new_tokens)
    except torch.OutOfMemoryError:
        return None
    return measured._replace(memory=weight_bytes + max(0, peak_memory(model.device) - before))


def median_and_range(values: Sequence[float]) -> list[float]:
    """Median, lowest, highest."""
    return [statistics.median(values), min(values), max(values)]


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
