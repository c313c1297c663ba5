"""A base in NF4 (QLoRA, arXiv 2305.14314): four bits per weight and its scales, also of the experts.

bitsandbytes quantises linear layers only, and silently leaves fused experts as they are: so they are unfused first. The
routers, the embeddings and the head are not quantised, as in QLoRA.
"""

import os
from typing import Any

import bitsandbytes
import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from torch import nn
from transformers import PreTrainedModel, TrainingArguments
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

from toolkit.moe import MoEBlock, decoder_linears, expert_weights, find_blocks, load_model, unfuse
from toolkit.recipe.schema import Recipe
from toolkit.recovery.method import Loaded
from toolkit.runtime.distributed import barrier, device, gather, say


def nf4(weight: torch.Tensor, bias: torch.Tensor | None, device: torch.device) -> Linear4bit:
    """A frozen linear layer with `weight` [out, in] in NF4, scales quantised too, that computes in the weight's own dtype."""
    (outputs, inputs), dtype = weight.shape, weight.dtype
    layer = Linear4bit(inputs, outputs, bias is not None, compute_dtype=dtype, device="meta")
    # Stored as if it were of the model's dtype: ZeRO-3 partitions floating-point tensors, and DeepSpeed casts all others
    layer.weight = Params4bit(weight, requires_grad=False, quant_type="nf4", quant_storage=dtype, module=layer)
    if bias is not None:
        layer.bias = nn.Parameter(bias.clone(), requires_grad=False)
    # Else an evaluation on a CPU with AVX512-BF16 repacks the weight in place, and gradients no longer pass through it
    layer.support_avx512bf16_for_cpu = False
    return layer.to(device)


def dequantized(layer: Linear4bit) -> torch.Tensor:
    """The weight [out, in] that `layer` computes with."""
    weight: Any = layer.weight
    return bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)


def quantize(model: PreTrainedModel, blocks: list[MoEBlock], device: torch.device) -> None:
    """Puts the experts, and the other linear layers of the decoder, in NF4, in place; one layer at a time is on `device`
    unquantised."""
    unfuse(model, blocks, lambda weight, bias: nf4(weight, bias, device))
    for name, linear in decoder_linears(model, blocks, shared=True).items():
        bias = None if linear.bias is None else linear.bias.data
        model.set_submodule(name, nf4(linear.weight.data, bias, device))


def load_to_round(recipe: Recipe, arguments: TrainingArguments, source: str, revision: str | None = None) -> PreTrainedModel:
    """The whole model, on CPU, in the dtype that it trains in: DeepSpeed must find nothing to cast in 4-bit weights."""
    model = load_model(source, revision, recipe.model.dtype, skipping=False)
    if arguments.bf16 or arguments.fp16:
        model.to(dtype=torch.bfloat16 if arguments.bf16 else torch.float16)  # type: ignore[call-arg]
    return model


def load_quantized(recipe: Recipe, arguments: TrainingArguments, source: str, revision: str | None = None) -> Loaded:
    """Each rank's own copy of the model, in NF4 on its device.

    The ranks of a machine load in turns: its memory holds one unquantised model at a time.
    """
    mine = int(os.environ.get("LOCAL_RANK", 0))
    unset_hf_deepspeed_config()  # or ZeRO-3 would partition what is still to be quantised
    try:
        for turn in range(1 + max(gather(mine))):
            if turn == mine:
                model = load_to_round(recipe, arguments, source, revision)
                blocks = find_blocks(model)
                linears = [*decoder_linears(model, blocks)]
                before = sum(p.numel() for block in blocks for p in block.experts.parameters())
                quantize(model, blocks, device())
                model.to(device())  # type: ignore[arg-type]
            barrier()
    finally:
        set_hf_deepspeed_config(arguments.hf_deepspeed_config)
    size = expert_bytes(blocks)
    say(f"  experts in 4 bits: {size / 2**20:,.1f} MiB, {size / (2 * before):.2f} of bfloat16")
    return Loaded(model, blocks, linears)


def expert_bytes(blocks: list[MoEBlock]) -> int:
    """Bytes of the quantised experts in memory, scales and tables included."""
    tensors: list[torch.Tensor] = []
    for block in blocks:
        tensors += [parameter.data for parameter in block.experts.parameters()]
        for layer in block.experts.modules():
            if isinstance(layer, Linear4bit):
                weight: Any = layer.weight
                state = weight.quant_state
                tensors += [state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())


@torch.no_grad()
def round_to_nf4(model: PreTrainedModel, blocks: list[MoEBlock], device: torch.device) -> None:
    """Rounds the same weights of a stock model to what `quantize` would make of them: the base that was trained on."""

    def rounded(weight: torch.Tensor) -> torch.Tensor:
        return dequantized(nf4(weight.contiguous(), None, device)).to(weight)

    for linear in decoder_linears(model, blocks, shared=True).values():
        linear.weight.copy_(rounded(linear.weight.data))
    for block in blocks:
        for name in expert_weights(block):
            for matrix in getattr(block.experts, name).data:
                if block.experts.is_transposed:
                    matrix = matrix.T
                matrix.copy_(rounded(matrix))
