"""Every stage but fine-tuning and the rounds: what it holds, reads, computes and writes."""

import math

from toolkit.calibration.greedy_search import GRAM_BYTES
from toolkit.calibration.token_errors import CHUNK_BYTES
from toolkit.estimate.data_sizes import DataSize
from toolkit.estimate.machine import GIB, Machine
from toolkit.estimate.model import ModelNumbers
from toolkit.estimate.placed import Placed, placed
from toolkit.estimate.stage_estimate import BANDWIDTH_SHARE, DISK, StageEstimate, on_machine
from toolkit.evaluation.memory import CPU_BATCH_SIZE, rows_that_fit
from toolkit.moe import find_blocks, quantization_of
from toolkit.recipe.schema import Recipe
from toolkit.recovery.teacher import TOKENS_AT_ONCE, bytes_per_token

PRUNING_ROOM = GIB // 2  # of every rank, beside a block
CHECKED = 3  # MoE blocks that pruning runs, one on a rank at a time
MERGED = 5 / 3  # a block in memory, while transformers merges its experts
ANSWER_BYTES = 7  # of a token of the original's own answers: a number and a comma
STATISTICS = 32 * 8  # bytes per expert: at most 8 sums and their squares, for prompt and completion, float64


def estimate_calibrate(
    recipe: Recipe, machine: Machine, original: ModelNumbers, data: DataSize, prompts: DataSize
) -> StageEstimate:
    """Layer at a time: the embeddings and two decoder layers (one at work, one arriving) per rank; the hidden states of the
    rank's tokens in RAM, the weights mapped from their files."""
    settings, tokens = recipe.calibration, data.tokens
    searching, progressive = recipe.pruning.criterion == "reconstruction", recipe.pruning.mode == "progressive"
    weight, blocks = original.weight_bytes, find_blocks(original.model)
    longest = min(data.longest, settings.max_length)
    gpu = {
        "weights": weight * (original.embeddings + 2 * original.largest_layer),
        "activations": original.working(settings.batch_size, longest) or 0,
    }
    notes, kept = [], {}
    if quantization_of(original.model.config):
        loaded = placed(recipe, machine, original, whole=searching)
        gpu, kept = loaded.gpu | {"activations": gpu["activations"]}, {"weights": loaded.host}
        notes.append("its weights are quantized: the whole model is loaded, as the plain numbers they stand for")
        notes += loaded.notes
    passes = 1
    if searching:
        experts = blocks[0].expert_count
        # Every expert's outputs in chunks, in the model's dtype and in float64; their inner products, for the search
        gpu["search"] = 2 * CHUNK_BYTES["cuda"] + min(GRAM_BYTES, (tokens or GRAM_BYTES) * experts**2 * 4 // machine.ranks)
        passes = 3 if progressive else 1  # the original's layer, the pruned model's over all experts and over the kept ones
    states = weight * original.hidden_size * (tokens or 0) // machine.nodes * (2 if searching and progressive else 1)
    flops = None
    if tokens is not None:
        flops = passes * 2.0 * tokens * (original.active - original.head)
        if searching:  # every expert for every token, and the products of their outputs
            flops += 2.0 * tokens * (original.experts - original.active_experts)
            flops += 2.0 * tokens * len(blocks) * blocks[0].expert_count ** 2 * original.hidden_size
    seconds = machine.seconds(flops, original.bytes / DISK)
    if settings.self_generated:
        answers = generation(recipe, machine, original, prompts.limited(data.examples))
        gpu = max(gpu, answers.gpu, key=lambda parts: sum(parts.values()))
        kept |= answers.host if machine.gpus else {}
        flops = None if flops is None or answers.flops is None else flops + answers.flops
        seconds = None if seconds is None or answers.seconds is None else seconds + answers.seconds
        notes.append(f"the model's own answers first: {answers.work}")
    how = f", {recipe.pruning.mode} search over every expert" if searching else ""
    on_gpu, in_ram = on_machine(machine, gpu, {"hidden states": states} | kept)
    return StageEstimate(
        name="calibrate",
        gpu=on_gpu,
        host=in_ram,
        work=f"{_count(data.examples)} examples, {_count(tokens)} tokens{how}",
        disk=STATISTICS * len(blocks) * blocks[0].expert_count * len(settings.data or [None]),
        flops=flops,
        seconds=seconds,
        notes=tuple(notes),
    )


def estimate_select() -> StageEstimate:
    return StageEstimate(name="select", work="reads the statistics", seconds=0.0)


def estimate_prune(machine: Machine, original: ModelNumbers, pruned: ModelNumbers) -> StageEstimate:
    """Bytes are copied by the kernel; what is in memory is the MoE block that is checked."""
    block = round(MERGED * original.weight_bytes * original.largest_block)
    blocks = min(CHECKED, machine.ranks_per_node) * block
    return StageEstimate(
        name="prune",
        work=f"{original.bytes / GIB:,.1f} GiB read, {pruned.bytes / GIB:,.1f} GiB written",
        host={"blocks": blocks, "ranks": machine.ranks_per_node * PRUNING_ROOM},
        disk=pruned.bytes,
        flops=0.0,
        seconds=(original.bytes + pruned.bytes) / DISK,
    )


def estimate_answers(recipe: Recipe, machine: Machine, original: ModelNumbers, prompts: DataSize) -> StageEstimate:
    """The original's own answers to training prompts; all of them right, at most."""
    found = generation(recipe, machine, original, prompts, whole=True)
    tokens = (prompts.examples or 0) * (prompts.mean + recipe.evaluation.max_new_tokens)
    disk = round(ANSWER_BYTES * tokens)
    return StageEstimate("answers", found.work, found.gpu, found.host, disk, found.flops, found.seconds, found.notes)


def pass_with_logits(batch: int, model: ModelNumbers, longest: int, held: Placed, copies: int, at_once: int) -> dict[str, int]:
    """GPU memory of a forward pass whose logits are read: those of the batch, those that count, and so many float32 `copies`
    of `at_once` tokens of them."""
    tokens = batch * longest
    return held.gpu | {
        "activations": model.working(batch, longest) or 0,
        "logits": model.vocabulary * (2 * model.weight_bytes * tokens + copies * 4 * min(tokens, at_once)),
    }


def estimate_teacher(recipe: Recipe, machine: Machine, original: ModelNumbers, data: DataSize) -> StageEstimate:
    """The original over the training data, and what is kept of its logits."""
    held = placed(recipe, machine, original, whole=True)
    # Float32 copies: offsets, the rest, at the temperature
    gpu = pass_with_logits(recipe.calibration.batch_size, original, data.longest, held, 3, TOKENS_AT_ONCE)
    counted = round((data.examples or 0) * data.counted)
    disk = counted * bytes_per_token(original.vocabulary)
    flops = None if data.tokens is None else 2.0 * original.active * data.tokens
    on_gpu, in_ram = on_machine(machine, gpu, {"weights": held.host})
    passes = (data.examples or 0) / recipe.calibration.batch_size
    return StageEstimate(
        name="teacher",
        work=f"{_count(data.examples)} examples, {_count(None if data.examples is None else counted)} completion tokens at most, "
        f"{bytes_per_token(original.vocabulary)} bytes each, {held.where}",
        gpu=on_gpu,
        host=in_ram,
        disk=disk,
        flops=flops,
        seconds=machine.seconds(flops, (original.bytes + disk) / DISK + held.moving(passes), gpus=held.copies),
        notes=held.notes,
    )


def estimate_evaluate(recipe: Recipe, machine: Machine, role: str, model: ModelNumbers, prompts: DataSize) -> StageEstimate:
    found = generation(recipe, machine, model, prompts)
    return StageEstimate(f"evaluate/{role}", found.work, found.gpu, found.host, 0, found.flops, found.seconds, found.notes)


def generation(recipe: Recipe, machine: Machine, model: ModelNumbers, prompts: DataSize, whole: bool = False) -> StageEstimate:
    """Answers to all prompts, by a model placed as `placed` says."""
    new = recipe.evaluation.max_new_tokens
    held = placed(recipe, machine, model, whole)
    length, parts = prompts.longest + new, held.parts
    batch = _questions_at_once(recipe, machine, model, sum(held.gpu.values()), length, parts)
    gpu = held.gpu | {
        "cache": -(-batch * length * model.cache_per_token // parts),
        "activations": (model.working(batch, prompts.longest) or 0) + 4 * batch * model.vocabulary,
    }
    flops = seconds = None
    if prompts.examples is not None:
        flops = 2.0 * model.active * prompts.examples * (prompts.mean + new)
        if machine.gpu:  # each new token reads every weight (all experts, in a batch) and is as fast as that
            forwards = math.ceil(prompts.examples / (batch * held.copies)) * new
            reading = forwards * model.bytes / (BANDWIDTH_SHARE * machine.gpu.bandwidth)
            compute = machine.seconds(flops, 0.0, gpus=held.copies) or 0.0
            seconds = model.bytes / DISK + max(reading, compute, held.moving(forwards))
    on_gpu, in_ram = on_machine(machine, gpu, {"weights": held.host})
    return StageEstimate(
        name="generate",
        gpu=on_gpu,
        host=in_ram,
        work=f"{_count(prompts.examples)} questions, {new:,} new tokens each at most, {held.where}",
        flops=flops,
        seconds=seconds,
        notes=held.notes,
    )


def _questions_at_once(recipe: Recipe, machine: Machine, model: ModelNumbers, weights: int, length: int, parts: int) -> int:
    """As asked; `auto` takes what the weights leave of a GPU, a row by what one would need of it at its full length."""
    asked = recipe.evaluation.batch_size
    if asked != "auto":
        return asked
    if not machine.gpus:
        return CPU_BATCH_SIZE
    row = length * model.cache_per_token // parts + (model.working(1, length) or 0) + 20 * model.vocabulary
    return rows_that_fit(machine.gpu_memory - weights, row)


def _count(number: int | None) -> str:
    return "unknown" if number is None else f"{number:,}"
