"""The size of one model, original or pruned: what the memory and time of every stage follow from.

Parameters are counted, and working memory is measured, on torch's meta device, where tensors have sizes and no contents. For
the working memory the model's own forward (and backward) pass runs there, and the bytes of every storage are counted from its
creation to its release. Nothing is derived by hand: what a family's own code allocates is what is counted, whatever its
attention or its experts, with and without gradient checkpointing.

Shape legend: B sequences, S positions.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from toolkit.moe import find_blocks, sizes

CACHE_POSITIONS = 64  # the cache of so many positions is measured, to know what one takes


@dataclass(frozen=True, eq=False)
class ModelSize:
    """The size of a model on the meta device, in the dtype it is used in. Counts are parameters."""

    model: PreTrainedModel

    @cached_property
    def parameters(self) -> int:
        return sizes(self.model).parameters

    @cached_property
    def active(self) -> int:
        """Per token."""
        return sizes(self.model).active_parameters

    @cached_property
    def experts(self) -> int:
        """Of all experts of all MoE blocks, without shared ones."""
        return sum(p.numel() for block in find_blocks(self.model) for p in block.experts.parameters())

    @cached_property
    def routers(self) -> int:
        return sum(p.numel() for block in find_blocks(self.model) for p in block.router.parameters())

    @cached_property
    def active_experts(self) -> int:
        """Of the experts that are active per token."""
        block = find_blocks(self.model)[0]
        return self.experts * block.experts_per_token // block.expert_count

    @cached_property
    def largest_block(self) -> int:
        """Of the largest MoE block, shared experts included."""
        return max(_numel(block.module) for block in find_blocks(self.model))

    @cached_property
    def largest_layer(self) -> int:
        """Of the largest decoder layer."""
        return max(_numel(layer) for layer in self.model.modules() if isinstance(layer, GradientCheckpointingLayer))

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
        """Tokens of the vocabulary."""
        return self.head // self.hidden_size

    @property
    def weight_bytes(self) -> int:
        """Bytes of one weight."""
        return self.model.dtype.itemsize

    @property
    def bytes(self) -> int:
        """Bytes of all weights."""
        return self.parameters * self.weight_bytes

    @cached_property
    def cache_per_token(self) -> int:
        """Bytes that generation keeps per token, averaged over the first `CACHE_POSITIONS` positions."""
        return cache_bytes(self.model, CACHE_POSITIONS) // CACHE_POSITIONS

    def activations(self, batch: int, length: int, train: bool = False, checkpointing: bool = False) -> int | None:
        """Working memory of one micro-batch in bytes (see `working_memory`); measured once per shape."""
        return _activations(self, batch, length, train, checkpointing)


def model_size(model: PreTrainedModel, dtype: torch.dtype) -> ModelSize:
    """The size of `model`, which lies on the meta device, in `dtype`."""
    return ModelSize(model.to(dtype))  # type: ignore[arg-type]


def _numel(module: nn.Module | None) -> int:
    return sum(parameter.numel() for parameter in module.parameters()) if module is not None else 0


@cache
def _activations(size: ModelSize, batch: int, length: int, train: bool, checkpointing: bool) -> int | None:
    return working_memory(size.model, batch, length, train, checkpointing)


def working_memory(
    model: PreTrainedModel, batch: int, length: int, train: bool = False, checkpointing: bool = False
) -> int | None:
    """Bytes at the fullest moment of one micro-batch [B, S] in the decoder, without weights, gradients and optimizer; None
    where the family's code reads tensors' contents.

    `model` lies on the meta device. With `train` the backward pass follows, and each gradient is released as soon as it is
    made (as under ZeRO 2 and 3); the language model's head and the loss are not included.
    """
    model.train(train)
    with _releasing_gradients(model) if train else torch.no_grad(), _checkpointing(model, checkpointing):
        try:
            with torch.device("meta"), _KernelsOfGPU(), PeakMemory() as memory:
                out = model.base_model(**_inputs(batch, length), use_cache=False).last_hidden_state
                if train:
                    out.sum().backward()
        except NotImplementedError:
            return None
    return memory.peak


def cache_bytes(model: PreTrainedModel, length: int) -> int:
    """Bytes of keys, values and states that generation keeps of one sequence of `length` positions; 0 where the family's code
    reads tensors' contents."""
    model.eval()
    try:
        with torch.no_grad(), torch.device("meta"), _KernelsOfGPU():
            out = model.base_model(**_inputs(1, length), use_cache=True)
    except NotImplementedError:
        return 0
    layers = getattr(out.past_key_values, "layers", [])
    kept = {id(storage): storage for layer in layers for storage in _storages(list(vars(layer).values()))}
    return sum(storage.nbytes() for storage in kept.values())


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of all storages created inside the context: `current` alive, and the `peak` at any moment."""

    def __init__(self) -> None:
        super().__init__()
        self.current = self.peak = 0
        self._counted: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id(storage) for storage in _storages((args, kwargs))}
        out = func(*args, **(kwargs or {}))
        for storage in _storages(out):
            if id(storage) not in given and id(storage) not in self._counted:
                self._count(storage)
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()

        def release() -> None:
            self._counted.discard(key)
            self.current -= size

        self._counted.add(key)
        self.current += size
        self.peak = max(self.peak, self.current)
        weakref.finalize(storage, release)


def _storages(tree: Any) -> Iterator[torch.UntypedStorage]:
    return (leaf.untyped_storage() for leaf in tree_iter(tree) if isinstance(leaf, torch.Tensor))


class _KernelsOfGPU(TorchFunctionMode):
    """Two kernels that a GPU has, and the meta device lacks or has only as the sum of their parts (attention with all its
    scores)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.nn.functional.scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        if func is torch._grouped_mm:  # has it for bfloat16 alone; the same sizes
            return torch.ops.transformers.grouped_mm_fallback(args[0], args[1], kwargs["offs"])
        return func(*args, **kwargs)


def _attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> torch.Tensor:  # fmt: skip
    """The memory-efficient kernel, which torch selects where there is a mask of padding."""
    bias = None if attn_mask is None else attn_mask.to(query.dtype).expand(*query.shape[:3], key.shape[2])
    attend = torch.ops.aten._scaled_dot_product_efficient_attention
    return attend(query, key, value, bias, torch.is_grad_enabled(), dropout_p, is_causal, scale=scale)[0]


def _inputs(batch: int, length: int) -> dict[str, torch.Tensor]:
    """Those of a padded batch: every sequence has a mask of its own."""
    with torch.device("meta"):
        mask = torch.ones(batch, 1, length, length, dtype=torch.bool)
        positions = torch.arange(length).unsqueeze(0)
        return {"input_ids": torch.zeros(batch, length).long(), "attention_mask": mask, "position_ids": positions}


@contextmanager
def _checkpointing(model: PreTrainedModel, on: bool) -> Iterator[None]:
    if on:
        # A backward pass runs outside of function modes, and recomputes there
        kernels = {"use_reentrant": False, "context_fn": lambda: (nullcontext(), _KernelsOfGPU())}
        model.activation_checkpointing_enable(kernels)
    try:
        yield
    finally:
        if on:
            model.activation_checkpointing_disable()


@contextmanager
def _releasing_gradients(model: PreTrainedModel) -> Iterator[None]:
    def release(parameter: torch.Tensor) -> None:
        parameter.grad = None

    handles = [parameter.register_post_accumulate_grad_hook(release) for parameter in model.parameters()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
