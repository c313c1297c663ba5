"""A model that calibration observes: memory, operations and time of the pass over the calibration data."""

from dataclasses import dataclass

from toolkit.estimate.data_size import DataSize
from toolkit.estimate.machine import Machine
from toolkit.estimate.model_size import ModelSize
from toolkit.estimate.placement import ModelPlacement
from toolkit.estimate.stage_estimate import DISK_BANDWIDTH, StageEstimate, count, memory_on
from toolkit.moe import find_blocks

LOGIT_COPIES = 3  # in float32: the logits, their log-softmax, and its gradient


@dataclass(frozen=True)
class SearchSize:
    """What a search for the best sets of experts takes; it runs every expert on every token."""

    chunk_bytes: int  # of the experts' outputs that are compared at once, in the model's dtype and again in float64
    product_bytes: int  # of the inner products of the experts' outputs, at most
    forward_passes: int  # of every layer
    hidden_states: int  # per token


def estimate_observation(
    name: str,
    machine: Machine,
    model: ModelSize,
    data: DataSize,
    batch: int,
    search: SearchSize | None = None,
    loaded: ModelPlacement | None = None,
    backward: bool = False,
) -> StageEstimate:
    """One decoder layer at a time: the embeddings and two layers (one at work, one arriving) per rank; the hidden states of the
    rank's tokens in RAM, the weights mapped from their files. `loaded`: the model as a whole, where that cannot be.

    `backward`: afterwards all of it goes forward and backward once more, for gradients of activations alone.
    """
    tokens, weight, blocks = data.tokens, model.weight_bytes, find_blocks(model.model)
    gpu = {"weights": weight * (model.embeddings + 2 * model.largest_layer)} if loaded is None else loaded.gpu
    gpu = gpu | {"activations": model.activations(batch, data.longest, train=backward) or 0}
    if backward:
        gpu["logits"] = LOGIT_COPIES * batch * data.longest * model.vocabulary * 4
    passes, states = (search.forward_passes, search.hidden_states) if search else (1, 1)
    if search:
        products = (tokens or search.product_bytes) * blocks[0].expert_count ** 2 * 4 // machine.ranks
        gpu["search"] = 2 * search.chunk_bytes + min(search.product_bytes, products)
    flops = None
    if tokens is not None:
        flops = passes * 2.0 * tokens * (model.active - model.head)
        if search:  # every expert for every token, and the products of their outputs
            flops += 2.0 * tokens * (model.experts - model.active_experts)
            flops += 2.0 * tokens * len(blocks) * blocks[0].expert_count ** 2 * model.hidden_size
        if backward:
            flops += 2 * 2.0 * tokens * model.active
    host = {"hidden states": weight * model.hidden_size * (tokens or 0) // machine.nodes * states} | (
        {"weights": loaded.host} if loaded else {}
    )
    on_gpu, in_ram = memory_on(machine, gpu, host)
    return StageEstimate(
        name=name,
        gpu=on_gpu,
        host=in_ram,
        work=f"{count(data.examples)} examples, {count(tokens)} tokens",
        flops=flops,
        seconds=machine.seconds(flops, model.bytes / DISK_BANDWIDTH),
        notes=loaded.notes if loaded else (),
    )
