"""The numbers of one model, original or pruned, that the stages' memory and time follow from; read off the meta device."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from toolkit.estimate.working_memory import cache_bytes, working_memory
from toolkit.moe import find_blocks, sizes

CACHED = 64  # positions, to measure what one takes


@dataclass(frozen=True, eq=False)
class ModelNumbers:
    """Of a model on the meta device in the dtype it is used in. Counts are parameters."""

    model: PreTrainedModel

    @cached_property
    def parameters(self) -> int:
        return sizes(self.model).parameters

    @cached_property
    def active(self) -> int:
        return sizes(self.model).active_parameters

    @cached_property
    def experts(self) -> int:
        return sum(p.numel() for block in find_blocks(self.model) for p in block.experts.parameters())

    @cached_property
    def routers(self) -> int:
        return sum(p.numel() for block in find_blocks(self.model) for p in block.router.parameters())

    @cached_property
    def active_experts(self) -> int:
        block = find_blocks(self.model)[0]
        return self.experts * block.experts_per_token // block.expert_count

    @cached_property
    def largest_block(self) -> int:
        """Of the MoE blocks, shared experts included."""
        return max(_numel(block.module) for block in find_blocks(self.model))

    @cached_property
    def largest_layer(self) -> int:
        return max(sum(p.numel() for p in layer.parameters()) for layer in self._layers())

    @cached_property
    def embeddings(self) -> int:
        return _numel(self.model.get_input_embeddings())

    @cached_property
    def head(self) -> int:
        """Of the projection onto the vocabulary."""
        return _numel(self.model.get_output_embeddings())

    @property
    def hidden_size(self) -> int:
        return int(self.model.config.get_text_config().hidden_size)

    @property
    def vocabulary(self) -> int:
        return self.head // self.hidden_size

    @property
    def weight_bytes(self) -> int:
        """Of one weight."""
        return self.model.dtype.itemsize

    @property
    def bytes(self) -> int:
        return self.parameters * self.weight_bytes

    @cached_property
    def cache_per_token(self) -> int:
        """Bytes that generation keeps per token (averaged over the first 64 positions)."""
        return cache_bytes(self.model, CACHED) // CACHED

    def working(self, batch: int, length: int, train: bool = False, checkpointing: bool = False) -> int | None:
        """Bytes beside weights, gradients and optimizer, for one micro-batch; None where it cannot be told."""
        return _working(self, batch, length, train, checkpointing)

    def _layers(self) -> Iterator[nn.Module]:
        return (module for module in self.model.modules() if isinstance(module, GradientCheckpointingLayer))


def _numel(module: nn.Module | None) -> int:
    return sum(parameter.numel() for parameter in module.parameters()) if module is not None else 0


@cache
def _working(numbers: ModelNumbers, batch: int, length: int, train: bool, checkpointing: bool) -> int | None:
    return working_memory(numbers.model, batch, length, train, checkpointing)


def numbers_of(model: PreTrainedModel, dtype: torch.dtype) -> ModelNumbers:
    return ModelNumbers(model.to(dtype))  # type: ignore[arg-type]
