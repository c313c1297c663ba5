"""A model that answers, or that reads texts once: memory, operations and time."""

import math
from dataclasses import dataclass

from toolkit.estimate.data_size import DataSize
from toolkit.estimate.machine import Machine
from toolkit.estimate.model_size import ModelSize
from toolkit.estimate.placement import ModelPlacement
from toolkit.estimate.stage_estimate import BANDWIDTH_SHARE, DISK_BANDWIDTH, StageEstimate, count, memory_on


def row_bytes(placement: ModelPlacement, length: int) -> int:
    """Bytes on a GPU that one question takes while it is answered, at its full length of `length` tokens."""
    model = placement.model
    return length * model.cache_per_token // placement.parts + (model.activations(1, length) or 0) + 20 * model.vocabulary


def answering_memory(model: ModelSize, batch: int, prompt: int, length: int, parts: int = 1) -> dict[str, int]:
    """Bytes on each of the `parts` GPUs that share a model and its cache, beside the weights: `batch` prompts of `prompt` tokens
    are read at once, and answered up to `length` tokens."""
    return {
        "cache": -(-batch * length * model.cache_per_token // parts),
        "activations": (model.activations(batch, prompt) or 0) + 4 * batch * model.vocabulary,
    }


def estimate_generation(
    name: str, machine: Machine, placement: ModelPlacement, prompts: DataSize, new_tokens: int, batch: int
) -> StageEstimate:
    """Answers of at most `new_tokens` tokens to all prompts, `batch` at a time."""
    model, length = placement.model, prompts.longest + new_tokens
    gpu = placement.gpu | answering_memory(model, batch, prompts.longest, length, placement.parts)
    flops = seconds = None
    if prompts.examples is not None:
        flops = 2.0 * model.active * prompts.examples * (prompts.mean + new_tokens)
        if machine.bandwidth:  # each new token reads every weight (all experts, in a batch) and is as fast as that
            passes = math.ceil(prompts.examples / (batch * placement.copies)) * new_tokens
            reading = passes * model.bytes / (BANDWIDTH_SHARE * machine.bandwidth)
            computing = machine.seconds(flops, 0.0, gpus=placement.copies) or 0.0
            seconds = model.bytes / DISK_BANDWIDTH + max(reading, computing, placement.transfer_seconds(passes))
    on_gpu, in_ram = memory_on(machine, gpu, {"weights": placement.host})
    return StageEstimate(
        name=name,
        gpu=on_gpu,
        host=in_ram,
        work=f"{count(prompts.examples)} questions, {new_tokens:,} new tokens each at most, {placement.description}",
        flops=flops,
        seconds=seconds,
        notes=placement.notes,
    )


def estimate_served(name: str, prompts: DataSize, new_tokens: int, url: str) -> StageEstimate:
    """Answers that a server writes: here, nothing is held or computed, and how long it takes is not known."""
    work = f"{count(prompts.examples)} questions, {new_tokens:,} new tokens each at most, answered by {url}"
    return StageEstimate(name, work, notes=("memory and time are the server's",))


@dataclass(frozen=True)
class LogitsPass:
    """One forward pass over texts whose logits are read."""

    batch: int  # texts at a time
    copies: int  # of the logits in float32, made
    tokens_at_once: int  # of so many tokens at a time
    stored: int  # bytes that are written to the disk, or read from it


def estimate_logits_pass(
    name: str, machine: Machine, placement: ModelPlacement, data: DataSize, settings: LogitsPass
) -> StageEstimate:
    """In memory are the logits of the batch, those that count, and the float32 copies. `work` and `disk` are left empty."""
    model, tokens = placement.model, settings.batch * data.longest
    copied = settings.copies * 4 * min(tokens, settings.tokens_at_once)
    gpu = placement.gpu | {
        "activations": model.activations(settings.batch, data.longest) or 0,
        "logits": model.vocabulary * (2 * model.weight_bytes * tokens + copied),
    }
    flops = None if data.tokens is None else 2.0 * model.active * data.tokens
    on_gpu, in_ram = memory_on(machine, gpu, {"weights": placement.host})
    passes = (data.examples or 0) / settings.batch
    reading = (model.bytes + settings.stored) / DISK_BANDWIDTH + placement.transfer_seconds(passes)
    seconds = machine.seconds(flops, reading, gpus=placement.copies)
    return StageEstimate(name, "", on_gpu, in_ram, flops=flops, seconds=seconds, notes=placement.notes)
