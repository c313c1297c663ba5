"""NAEE's objective the slow way, for tests: run the block again for every subset."""

from collections.abc import Sequence

import torch
from torch import nn

from toolkit.moe import find_blocks, restricted


def batches_of(count: int, size: int = 2, length: int = 20, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    """Random batches; the last tokens of every second sequence are padding."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(count):
        mask = torch.ones(size, length, dtype=torch.long)
        mask[::2, -5:] = 0
        batches.append({"input_ids": torch.randint(3, 64, (size, length), generator=generator), "attention_mask": mask})
    return batches


@torch.no_grad()
def honest_losses(model: nn.Module, batches: Sequence[dict[str, torch.Tensor]], number: int, subsets) -> list[float]:
    """Layerwise losses of block `number` for each subset."""
    block = find_blocks(model)[number]  # type: ignore[arg-type]
    inputs: list[torch.Tensor] = []
    outputs: list[torch.Tensor] = []
    handles = [
        block.module.register_forward_pre_hook(lambda module, args: inputs.append(args[0])),
        block.experts.register_forward_hook(lambda module, args, out: outputs.append(out)),
    ]
    try:
        for batch in batches:
            model.base_model(batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
        originals, targets = list(inputs), list(outputs)
        losses = []
        for kept in subsets:
            outputs.clear()
            with restricted(block, list(kept)):
                for x in originals:
                    block.module(x)
            real = [batch["attention_mask"].bool().flatten() for batch in batches]
            pairs = zip(targets, outputs, real, strict=True)
            losses.append(sum(float((y - z)[rows].double().norm()) for y, z, rows in pairs))
        return losses
    finally:
        for handle in handles:
            handle.remove()
