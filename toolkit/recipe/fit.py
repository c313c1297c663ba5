"""The key `pruning.fit` (a part of toolkit/recipe/pruning.py): limits that the best shape is searched under, instead of a shape.

pruning: {fit: {bytes: 12G}}                            whatever is best for the task in 12 GiB
pruning: {fit: {active: 3B, cuts: [experts, width]}}    at most so many parameters active per token, all layers
pruning: {fit: {gpu: 24G, context: 4096, batch: 8}}     what answers on such a GPU
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, field_validator, model_validator

from toolkit.recipe.data import Section
from toolkit.recipe.refit import RefitRecipe, check_refit
from toolkit.runtime.amounts import bytes_in, parameters_in
from toolkit.runtime.errors import did_you_mean
from toolkit.runtime.gpus import GPUS

CutName = Literal["experts", "width", "layers", "dense"]
CUTS: tuple[CutName, ...] = ("experts", "width", "layers")
LIMITS = ("bytes", "parameters", "active", "gpu")


def _limit() -> Any:
    return Field(default=None, exclude_if=lambda value: value is None)


def _gpu_memory(value: Any) -> int:
    """Of a GPU, by its memory or its name. Raises ValueError for one that is not known."""
    if not isinstance(value, str) or value[:1].isdigit():
        return bytes_in(value)
    if value.lower() not in GPUS:
        meant = did_you_mean(value.lower(), list(GPUS))
        raise ValueError(f"{value} is no GPU of the table{meant} Known: {', '.join(GPUS)}. Or say its memory, e.g. 24G")
    return GPUS[value.lower()].memory


AMOUNT = WithJsonSchema({"type": ["integer", "string"]})  # what an editor lets people write
Bytes = Annotated[int, BeforeValidator(bytes_in), AMOUNT]
Parameters = Annotated[int, BeforeValidator(parameters_in), AMOUNT]
GpuMemory = Annotated[int, BeforeValidator(_gpu_memory), AMOUNT]


class FitRecipe(Section):
    """Limits, and how the shape that is best under them is searched (docs/fit.md)."""

    bytes: Bytes | None = _limit()
    """Of the weights on disk: 12G (12 · 2^30) or 12GB (12 · 10^9)."""
    parameters: Parameters | None = _limit()
    """In all: 7B."""
    active: Parameters | None = _limit()
    """Parameters active per token: 3B."""
    gpu: GpuMemory | None = _limit()
    """The GPU that is to answer, by its memory (24G) or its name (rtx4090). Weights, cache and workspace share it."""
    context: int = Field(default=4096, ge=1, exclude_if=lambda context: context == 4096)
    """With gpu: tokens of a prompt and its answer."""
    batch: int = Field(default=1, ge=1, exclude_if=lambda batch: batch == 1)
    """With gpu: answers at the same time."""
    dtype: Literal["checkpoint", "bfloat16", "float16", "float32"] = "checkpoint"
    """The numbers in which bytes are counted. Default: those of the original's files."""
    cuts: list[CutName] = Field(default=list(CUTS), min_length=1)
    """What may be cut: experts, width, layers; dense: shapes in the dense form (docs/dense.md) are measured as well."""
    metric: Literal["dev_loss", "accuracy", "fidelity"] = "dev_loss"
    """By which the shapes that are measured are ranked, on the dev slice: the loss, the share of right answers, or how close the
    answers' distributions are to the original's."""
    refit: bool | RefitRecipe = False
    """Refit every shape that is measured first (docs/refit.md), as the run then does with the chosen one."""
    measured: int = Field(default=8, ge=1)
    """So many of the shapes that look best are measured, beside the best that cut one thing only."""
    examples: int = Field(default=500, ge=1)
    """So many dev examples are read for the loss, and asked."""
    allocation: Literal["uniform", "measured"] = Field(default="uniform", exclude_if=lambda value: value == "uniform")
    """measured: what other numbers of experts in each layer would give at the same size is measured as well (docs/fit.md)."""

    @field_validator("refit", mode="before")
    @classmethod
    def _refit_makes_sense(cls, refit: Any) -> Any:
        return check_refit(refit)

    @field_validator("cuts")
    @classmethod
    def _each_cut_once(cls, cuts: list[CutName]) -> list[CutName]:
        if len(set(cuts)) < len(cuts):
            raise ValueError("cuts names something twice")
        return cuts

    @model_validator(mode="after")
    def _limits_agree(self) -> "FitRecipe":
        if all(getattr(self, key) is None for key in LIMITS):
            raise ValueError(f"fit needs a limit: {', '.join(LIMITS)}, e.g. bytes: 12G")
        if self.gpu is None and {"context", "batch"} & self.model_fields_set:
            raise ValueError("context and batch say how a GPU is used: say gpu: 24G as well, or leave them out")
        if self.parameters and self.active and self.active > self.parameters:
            raise ValueError(f"active {self.active:,} is more than parameters {self.parameters:,}: it limits nothing")
        if self.cuts == ["dense"]:
            raise ValueError("dense is a way of writing what experts, width and layers leave: name one of them, too")
        return self
