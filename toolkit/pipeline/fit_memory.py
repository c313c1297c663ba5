"""Memory of one GPU that a shape takes while it answers: the limit `pruning.fit.gpu`, as `pollard estimate` counts it."""

import math
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

import torch

from toolkit.cuts import ModelShape, dense_twin, shaped_meta_model
from toolkit.cuts.fit_result import FitShape
from toolkit.estimate import ModelSize, answering_memory, model_size
from toolkit.estimate.machine import USABLE
from toolkit.moe.load import resolve_dtype
from toolkit.moe.placement import HEADROOM
from toolkit.recipe.fit import FitRecipe


class AnsweringMemory:
    """Of the shapes of one model, at most: what is beside the weights is counted for as wide experts as the original's."""

    def __init__(self, config: Any, fit: FitRecipe) -> None:
        self.config, self.fit = config, fit
        self.dtype = resolve_dtype(fit.dtype, config) or torch.float32
        self._cache, self._workspace = cache(self._cache_of), cache(self._workspace_of)

    def needed(self, shape: FitShape, kept_layers: Sequence[int], parameters: int) -> int:
        """Bytes that the GPU must have. Weights are counted as plain numbers: so they are loaded, trained and saved."""
        weights = parameters * self.dtype.itemsize
        cut = (shape.experts, shape.width) if shape.form == "dense" else (None, None)  # there all channels are active
        beside = self._cache(tuple(kept_layers)) + self._workspace(shape.form, *cut)
        return math.ceil(max((weights + beside) / USABLE, HEADROOM * weights))

    def _cache_of(self, kept_layers: tuple[int, ...]) -> int:
        whole = kept_layers == tuple(range(self.config.get_text_config().num_hidden_layers))
        return self._cache_and_workspace(ModelShape(layers=None if whole else kept_layers))["cache"]

    def _workspace_of(self, form: Literal["moe", "dense"], experts: int | None, width: int | None) -> int:
        return self._cache_and_workspace(ModelShape(experts, width), form)["activations"]

    def _cache_and_workspace(self, shape: ModelShape, form: Literal["moe", "dense"] = "moe") -> dict[str, int]:
        model = shaped_meta_model(self.config, shape)
        size: ModelSize = model_size(dense_twin(model).model if form == "dense" else model, self.dtype)
        return answering_memory(size, self.fit.batch, self.fit.context, self.fit.context)
