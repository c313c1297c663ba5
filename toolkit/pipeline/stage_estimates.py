"""What each stage holds, reads, computes and writes."""

from dataclasses import replace

from toolkit.calibration.greedy_search import GRAM_BYTES
from toolkit.calibration.token_errors import CHUNK_BYTES
from toolkit.estimate import (
    DISK_BANDWIDTH,
    GIB,
    LogitsPass,
    ModelSize,
    StageEstimate,
    combined_estimate,
    count,
    estimate_finetuning,
    estimate_logits_pass,
    memory_on,
)
from toolkit.evaluation import distributions
from toolkit.moe import find_blocks, quantization_of
from toolkit.pipeline.recipe_on_machine import RecipeOnMachine, recipe_keeping
from toolkit.pipeline.rounds import early_rounds
from toolkit.pipeline.stages.harness import BATCH_SIZE
from toolkit.recovery import teacher
from toolkit.selection import CRITERIA

PRUNING_ROOM = GIB // 2  # RAM of every rank on top of the blocks that are checked
CHECKED_BLOCKS = 3  # MoE blocks that pruning runs, one on a rank at a time
MERGED = 5 / 3  # a block in memory, while transformers merges its experts
ANSWER_BYTES = 7  # of a token of the original's own answers: a number and a comma
STATISTICS_BYTES = 32 * 8  # per expert: at most 8 sums and their squares, for prompt and completion, float64
TEACHER_COPIES = 3  # of a part of the logits in float32: offsets, the rest, at the temperature
FIDELITY_COPIES = 12  # of a part of the logits in float32, while they are sorted and summed up


def estimate_stage(on: RecipeOnMachine, name: str) -> StageEstimate:
    if name == "calibrate":
        return estimate_calibrate(on)
    if name == "select":
        return StageEstimate(name="select", work="reads the statistics", seconds=0.0)
    if name == "prune":
        return estimate_prune(on)
    if name == "skip":
        return estimate_skip(on)
    if name == "answers":
        return estimate_answers(on)
    if name == "teacher":
        return estimate_teacher(on)
    if name == "recover":
        return estimate_finetuning(name, on.finetuning(on.pruned(on.trainer.dtype)), on.machine, on.data.training)
    if name == "control":
        return estimate_finetuning(name, on.finetuning(on.original(on.trainer.dtype)), on.machine, on.data.training)
    kind, _, which = name.partition("/")
    if kind == "rounds":
        return estimate_round(on, int(which))
    model = on.original() if which in ("original", "control") else on.pruned()
    if kind == "fidelity":
        return estimate_fidelity(on, which, model)
    if kind == "harness":
        return estimate_harness(on, which, model)
    return on.generation(name, model, on.data.evaluation)


def estimate_calibrate(on: RecipeOnMachine, model: ModelSize | None = None) -> StageEstimate:
    """Layer at a time: the embeddings and two decoder layers (one at work, one arriving) per rank; the hidden states of the
    rank's tokens in RAM, the weights mapped from their files."""
    recipe, machine, data, original = on.recipe, on.machine, on.data.calibration, model or on.observed()
    settings, tokens = recipe.calibration, data.tokens
    search = CRITERIA[recipe.pruning.criterion].search(recipe.pruning)
    weight, blocks = original.weight_bytes, find_blocks(original.model)
    longest = min(data.longest, settings.max_length)
    gpu = {
        "weights": weight * (original.embeddings + 2 * original.largest_layer),
        "activations": original.activations(settings.batch_size, longest) or 0,
    }
    notes, kept = [], {}
    if quantization_of(original.model.config):
        loaded = on.place(original, whole=search is not None)
        gpu, kept = loaded.gpu | {"activations": gpu["activations"]}, {"weights": loaded.host}
        notes.append("its weights are quantized: the whole model is loaded, as the plain numbers they stand for")
        notes += loaded.notes
    if search:
        experts = blocks[0].expert_count
        # Every expert's outputs in chunks, in the model's dtype and in float64; their inner products, for the search
        gpu["search"] = 2 * CHUNK_BYTES["cuda"] + min(GRAM_BYTES, (tokens or GRAM_BYTES) * experts**2 * 4 // machine.ranks)
    states = weight * original.hidden_size * (tokens or 0) // machine.nodes * (search.hidden_states if search else 1)
    flops = None
    if tokens is not None:
        flops = (search.forward_passes if search else 1) * 2.0 * tokens * (original.active - original.head)
        if search:  # every expert for every token, and the products of their outputs
            flops += 2.0 * tokens * (original.experts - original.active_experts)
            flops += 2.0 * tokens * len(blocks) * blocks[0].expert_count ** 2 * original.hidden_size
    seconds = machine.seconds(flops, original.bytes / DISK_BANDWIDTH)
    if settings.self_generated:
        answers = on.generation("", original, on.data.evaluation.limited(data.examples))
        gpu = max(gpu, answers.gpu, key=lambda parts: sum(parts.values()))
        kept |= answers.host if machine.gpus else {}
        flops = None if flops is None or answers.flops is None else flops + answers.flops
        seconds = None if seconds is None or answers.seconds is None else seconds + answers.seconds
        notes.append(f"the model's own answers first: {answers.work}")
    how = f", {search.mode} search over every expert" if search else ""
    on_gpu, in_ram = memory_on(machine, gpu, {"hidden states": states} | kept)
    return StageEstimate(
        name="calibrate",
        gpu=on_gpu,
        host=in_ram,
        work=f"{count(data.examples)} examples, {count(tokens)} tokens{how}",
        disk=STATISTICS_BYTES * len(blocks) * blocks[0].expert_count * len(settings.data or [None]),
        flops=flops,
        seconds=seconds,
        notes=tuple(notes),
    )


def estimate_skip(on: RecipeOnMachine) -> StageEstimate:
    """The routers of the last model, observed as calibration observes."""
    plain = on.recipe.model_copy(update={"pruning": on.recipe.pruning.model_copy(update={"criterion": "frequency"})})
    plain = plain.model_copy(update={"calibration": plain.calibration.model_copy(update={"self_generated": False})})
    return replace(estimate_calibrate(on.variant(plain), on.pruned()), name="skip", disk=0)


def estimate_prune(on: RecipeOnMachine) -> StageEstimate:
    """Bytes are copied by the kernel; what is in memory is the MoE blocks that are checked."""
    machine, source, pruned = on.machine, on.observed(), on.pruned()
    block = round(MERGED * source.weight_bytes * source.largest_block)
    blocks = min(CHECKED_BLOCKS, machine.ranks_per_node) * block
    return StageEstimate(
        name="prune",
        work=f"{source.bytes / GIB:,.1f} GiB read, {pruned.bytes / GIB:,.1f} GiB written",
        host={"blocks": blocks, "ranks": machine.ranks_per_node * PRUNING_ROOM},
        disk=pruned.bytes,
        flops=0.0,
        seconds=(source.bytes + pruned.bytes) / DISK_BANDWIDTH,
    )


def estimate_answers(on: RecipeOnMachine) -> StageEstimate:
    """The original's own answers to training prompts; all of them right, at most."""
    prompts = on.data.answers
    assert prompts is not None
    tokens = (prompts.examples or 0) * (prompts.mean + on.recipe.evaluation.max_new_tokens)
    return replace(on.generation("answers", on.original(), prompts, whole=True), disk=round(ANSWER_BYTES * tokens))


def estimate_teacher(on: RecipeOnMachine) -> StageEstimate:
    """The original over the training data, and what is kept of its logits."""
    data, original = on.data.training, on.original()
    placement = on.place(original, whole=True)
    counted, each = round((data.examples or 0) * data.completion_tokens), teacher.bytes_per_token(original.vocabulary)
    batch = on.recipe.calibration.batch_size
    reading = LogitsPass(batch, TEACHER_COPIES, teacher.TOKENS_AT_ONCE, stored=counted * each)
    return replace(
        estimate_logits_pass("teacher", on.machine, placement, data, reading),
        work=f"{count(data.examples)} examples, {count(None if data.examples is None else counted)} completion tokens at most, "
        f"{each} bytes each, {placement.description}",
        disk=counted * each,
    )


def estimate_fidelity(on: RecipeOnMachine, role: str, model: ModelSize) -> StageEstimate:
    """One pass over gold answers as long as the training examples; the original keeps what it says of every token."""
    data = on.data.calibration.limited(on.recipe.evaluation.fidelity)
    counted, each = round((data.examples or 0) * data.completion_tokens), distributions.bytes_per_token(model.vocabulary)
    batch = on.recipe.calibration.batch_size
    reading = LogitsPass(batch, FIDELITY_COPIES, distributions.TOKENS_AT_ONCE, stored=counted * each)
    found = estimate_logits_pass(f"fidelity/{role}", on.machine, on.place(model), data, reading)
    work = f"{data.examples:,} answers, {counted:,} tokens"
    if role != "original":
        return replace(found, work=work)
    note = "on disk: at most; of a model that is sure of its answers, less"
    return replace(found, work=f"{work}, {each:,} bytes each at most", disk=counted * each, notes=(*found.notes, note))


def estimate_harness(on: RecipeOnMachine, role: str, model: ModelSize) -> StageEstimate:
    """How long its tasks' questions are only lm-eval knows: as long as the longest examples, at most."""
    recipe, longest = on.recipe, on.recipe.finetuning.max_length
    batch = BATCH_SIZE if recipe.evaluation.batch_size == "auto" else recipe.evaluation.batch_size
    placement = on.place(model, whole=True)
    gpu = placement.gpu | {
        "activations": model.activations(batch, longest) or 0,
        "logits": 2 * 4 * model.vocabulary * batch * longest,  # and their logarithms, in float32
    }
    on_gpu, in_ram = memory_on(on.machine, gpu, {"weights": placement.host})
    work = f"lm-evaluation-harness: {', '.join(recipe.evaluation.harness or [])}; questions of at most {longest:,} tokens"
    return StageEstimate(f"harness/{role}", work, on_gpu, in_ram, flops=None, notes=placement.notes)


def estimate_round(on: RecipeOnMachine, keep: int) -> StageEstimate:
    """A round before the last: a run of its own, as far as its recovery."""
    rounds = early_rounds(on.recipe)
    mine = on.variant(recipe_keeping(on.recipe, keep, rounds[: rounds.index(keep)]))
    parts = [estimate_stage(mine, part) for part in ("calibrate", "select", "prune", "recover")]
    work = f"to {keep} experts: " + "; ".join(part.work for part in parts if part.name != "select")
    return combined_estimate(f"rounds/{keep}", work, parts)
