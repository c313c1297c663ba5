"""How much memory a forward pass, or a step's forward and backward, needs beside weights, gradients and optimizer.

The model runs on torch's meta device, where tensors have sizes and no contents, while every storage is counted from its
making to its end. So nothing is derived by hand, and what a family's own code does is what is counted: any attention,
any experts, with and without gradient checkpointing.

Shape legend: B sequences, S positions.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import PreTrainedModel


class Peak(TorchDispatchMode):
    """Counts the bytes of all storages made inside the context: `now` alive, and the `most` at any moment."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id(storage) for storage in _storages((args, kwargs))}
        out = func(*args, **(kwargs or {}))
        for storage in _storages(out):
            if id(storage) not in given and id(storage) not in self.known:
                self._made(storage)
        return out

    def _made(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()

        def gone() -> None:
            self.known.discard(key)
            self.now -= size

        self.known.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, gone)


def _storages(tree: Any) -> Iterator[torch.UntypedStorage]:
    return (leaf.untyped_storage() for leaf in tree_iter(tree) if isinstance(leaf, torch.Tensor))


class _AsOnGPU(TorchFunctionMode):
    """Two kernels that the meta device lacks, or has only as the sum of their parts (attention with all its scores)."""

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
    """The memory-efficient kernel, which torch takes where there is a mask of padding."""
    bias = None if attn_mask is None else attn_mask.to(query.dtype).expand(*query.shape[:3], key.shape[2])
    attend = torch.ops.aten._scaled_dot_product_efficient_attention
    return attend(query, key, value, bias, torch.is_grad_enabled(), dropout_p, is_causal, scale=scale)[0]


def working_memory(
    model: PreTrainedModel, batch: int, length: int, train: bool = False, checkpointing: bool = False
) -> int | None:
    """Bytes at the fullest moment of one micro-batch [B, S] through the decoder; None where the family's code looks at
    tensors' contents.

    `model` lies on the meta device. With `train` its backward pass follows, each gradient leaving as soon as it is made
    (as ZeRO 2 and 3 do); the language model's head and loss are not included.
    """
    model.train(train)
    with _gradients_leave(model) if train else torch.no_grad(), _checkpointing(model, checkpointing):
        try:
            with torch.device("meta"), _AsOnGPU(), Peak() as peak:
                out = model.base_model(**_inputs(batch, length), use_cache=False).last_hidden_state
                if train:
                    out.sum().backward()
        except NotImplementedError:
            return None
    return peak.most


def _inputs(batch: int, length: int) -> dict[str, torch.Tensor]:
    """As of a padded batch: with a mask of its own for every sequence."""
    with torch.device("meta"):
        mask = torch.ones(batch, 1, length, length, dtype=torch.bool)
        positions = torch.arange(length).unsqueeze(0)
        return {"input_ids": torch.zeros(batch, length).long(), "attention_mask": mask, "position_ids": positions}


@contextmanager
def _checkpointing(model: PreTrainedModel, on: bool) -> Iterator[None]:
    if on:
        # A backward pass runs outside of function modes, and recomputes there
        model.activation_checkpointing_enable({"use_reentrant": False, "context_fn": lambda: (nullcontext(), _AsOnGPU())})
    try:
        yield
    finally:
        if on:
            model.activation_checkpointing_disable()


@contextmanager
def _gradients_leave(model: PreTrainedModel) -> Iterator[None]:
    def drop(parameter: torch.Tensor) -> None:
        parameter.grad = None

    handles = [parameter.register_post_accumulate_grad_hook(drop) for parameter in model.parameters()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def cache_bytes(model: PreTrainedModel, length: int) -> int:
    """Bytes of keys, values and states that generation keeps of one sequence with `length` positions; 0 where the family's
    code looks at tensors' contents."""
    model.eval()
    try:
        with torch.no_grad(), torch.device("meta"), _AsOnGPU():
            out = model.base_model(**_inputs(1, length), use_cache=True)
    except NotImplementedError:
        return 0
    layers = getattr(out.past_key_values, "layers", [])
    kept = {id(storage): storage for layer in layers for storage in _storages(list(vars(layer).values()))}
    return sum(storage.nbytes() for storage in kept.values())
