"""The zeros of a checkpoint that was made sparse elsewhere (Wanda, SparseGPT, 2:4) stay zeros (`finetuning.keep_zeros`).

A weight that is zero gets no gradient: an optimizer that treats each number by itself does not move it then, for its moments
stay zero, and so does what weight decay takes off (those that do not are refused: still_optimizers.py). The mask is the
weight itself, so it costs no memory, and where ZeRO-3 partitions the weights, they are whole while their gradient is made. Only
matrices with a share of zeros are held: a bias or a row of an embedding may well begin at zero.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from toolkit.moe import checkpoint_files, is_partitioned, load_config, local_part, quantization_of
from toolkit.recipe.schema import Recipe
from toolkit.recovery.method import RecoveryMethod
from toolkit.recovery.still_optimizers import why_it_moves
from toolkit.runtime.distributed import gather, say
from toolkit.runtime.errors import PollardError

LEAST_SHARE = 0.01  # of a matrix's numbers, for its zeros to be more than chance


def check_zeros(recipe: Recipe, method: RecoveryMethod) -> None:
    """Raises PollardError where zeros are to be kept that cannot be, or are not there."""
    if recipe.finetuning.keep_zeros and method.refuses_keep_zeros:
        raise PollardError(f"finetuning.keep_zeros: {method.refuses_keep_zeros}.", code="recovery.zeros-not-kept")
    if not (asked := _asked(recipe, method)):
        return
    optimizer = str(recipe.finetuning.trainer.get("optim", ""))
    if recipe.finetuning.keep_zeros and (why := why_it_moves(optimizer)):
        raise PollardError(
            f"finetuning.keep_zeros: finetuning.trainer.optim {optimizer} {why}, and moves weights that have no gradient: say "
            "optim: adamw_torch.",
            code="recovery.zeros-not-kept",
        )
    if recipe.pruning.refit:
        raise PollardError(
            f"{asked} keeps the checkpoint's zeros, and pruning.refit computes whole matrices anew: leave one of them out.",
            code="recovery.zeros-not-kept",
        )
    quantized = quantization_of(load_config(recipe.model.path, recipe.model.revision))
    if quantized:
        raise PollardError(
            f"{asked} keeps zeros of plain numbers, and the weights of {recipe.model.path} are quantized ({quantized}): leave it "
            "out.",
            code="recovery.zeros-not-kept",
        )
    if Path(recipe.model.path).is_dir() and not _has_zeros(Path(recipe.model.path)):
        raise _no_zeros(asked, recipe.model.path)


def hold_zeros(recipe: Recipe, method: RecoveryMethod, model: nn.Module, source: str) -> "KeptZeros | None":
    """From now on the zeros of `model`, loaded from `source`, get no gradient, where the recipe keeps them. Collective.

    Raises PollardError where there are none.
    """
    asked = _asked(recipe, method)
    if not asked:
        return None
    matrices = {name: p for name, p in model.named_parameters() if len(getattr(p, "ds_shape", p.shape)) > 1}
    if method.keeps_zeros:  # what it trains are no weights of the checkpoint, and may begin at zero
        matrices = {name: p for name, p in matrices.items() if not p.requires_grad}
    return KeptZeros(model, matrices, asked, source)


def _asked(recipe: Recipe, method: RecoveryMethod) -> str:
    """What of the recipe keeps zeros; empty where nothing does."""
    if recipe.finetuning.keep_zeros:
        return "finetuning.keep_zeros"
    return f"finetuning.method {method.name}" if method.keeps_zeros else ""


def _no_zeros(asked: str, model: str) -> PollardError:
    return PollardError(
        f"{asked}: no weight matrix of {model} has {LEAST_SHARE:.0%} of zeros or more: there is nothing to keep. Leave it "
        "out, or start from a checkpoint that was made sparse.",
        code="recovery.no-zeros",
    )


def _has_zeros(folder: Path) -> bool:
    """Reads until a matrix has enough. True where the files are not safetensors: training will count."""
    files = checkpoint_files(folder)
    if not files.safetensors:
        return True
    for path in files.weights:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                tensor = file.get_tensor(name)
                if tensor.ndim > 1 and (tensor == 0).sum().item() >= LEAST_SHARE * tensor.numel():
                    return True
    return False


class KeptZeros:
    """The matrices of a model that have zeros to keep, and how many; what is zero in them gets no gradient any more."""

    def __init__(self, model: nn.Module, matrices: dict[str, nn.Parameter], asked: str, source: str) -> None:
        """`matrices`: those of `model` that may have zeros, by name. Collective. Raises PollardError where none has."""
        counts = dict(zip(matrices, count_zeros(model, list(matrices.values())), strict=True))
        self.matrices = {name: p for name, p in matrices.items() if counts[name] >= LEAST_SHARE * _numel(p)}
        self.before = sum(counts[name] for name in self.matrices)
        if not self.matrices:
            raise _no_zeros(asked, source)
        share = self.before / sum(_numel(p) for p in self.matrices.values())
        say(f"  zeros stay: {self.before:,} in {len(self.matrices):,} matrices ({share:.0%} of their numbers)")
        for parameter in self.matrices.values():
            if parameter.requires_grad:
                parameter.register_hook(_WithoutZeros(parameter))

    def check(self, model: nn.Module) -> None:
        """Raises PollardError where fewer are there than at the beginning. Collective."""
        now = sum(count_zeros(model, list(self.matrices.values())))
        if now < self.before:
            raise PollardError(
                f"finetuning.keep_zeros: of {self.before:,} zeros {self.before - now:,} are none any more after training. Use "
                "another finetuning.trainer.optim (adamw_torch), and please report this.",
                code="recovery.zeros-lost",
            )


class _WithoutZeros:
    """Hook of a parameter: its gradient, nothing where the parameter is zero."""

    def __init__(self, parameter: nn.Parameter) -> None:
        self.parameter = parameter

    def __call__(self, gradient: torch.Tensor) -> torch.Tensor:
        return gradient.masked_fill(self.parameter.detach() == 0, 0)


def count_zeros(model: nn.Module, parameters: list[nn.Parameter]) -> list[int]:
    """Of each parameter; under ZeRO-3 of all ranks' parts together. Collective."""
    counts = [int((local_part(parameter) == 0).sum()) for parameter in parameters]
    return [sum(column) for column in zip(*gather(counts), strict=True)] if is_partitioned(model) else counts


def _numel(parameter: Any) -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel()))
