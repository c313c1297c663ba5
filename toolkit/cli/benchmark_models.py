"""The models that `pollard benchmark` measures: checkpoints, the models of a run, or random models of a configuration's shape.

Apart from the verb for start-up time: it imports torch.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from toolkit.cuts.shape import ModelShape, shaped_meta_model, without_last
from toolkit.evaluation.speed import BenchmarkedModel, ModelSize
from toolkit.moe import (
    checkpoint_bytes,
    checkpoint_files,
    find_blocks,
    layers_of,
    load_config,
    load_model,
    meta_model,
    random_model,
    sizes,
    weight_bytes,
)
from toolkit.pipeline.run_models import NamedModel, models_at
from toolkit.runtime.distributed import device
from toolkit.runtime.errors import PollardError


def models_to_measure(paths: Sequence[str], fewer: Mapping[str, Sequence[int]], dtype: str) -> list[BenchmarkedModel]:
    """Every model of `paths`, in order, then the shape of the first one with less of one kind: each number of experts in
    `fewer["keep"]`, of channels in `fewer["width"]`, of layers in `fewer["layers"]`.

    A folder with config.json and no weights stands for a random model of that shape, which is as fast as a real one except for
    the experts that its routers choose. Raises PollardError for a path that is no model, for `fewer` with real weights, and
    for a shape that the model cannot have.
    """
    models = [model for path in paths for model in models_at(path)]
    options = [kind for kind, numbers in fewer.items() if numbers]
    if options and not _without_weights(models[0].path):
        raise PollardError(
            f"--{options[0]} makes random models of a shape, and {models[0].path} has weights: prune it, or name a folder with "
            "config.json alone.",
            code="cli.keep-with-weights",
        )
    entrants = [_random(m.name, load_config(m.path), dtype) if _without_weights(m.path) else _real(m, dtype) for m in models]
    config = load_config(models[0].path) if options else None
    for kind in options:
        for number in fewer[kind]:
            pruned = shaped_meta_model(config, _shape(config, kind, number))
            entrants.append(_random(f"{kind} {number}", pruned.config, dtype))
    return [entrant._replace(name=name) for entrant, name in zip(entrants, _names([e.name for e in entrants]), strict=True)]


def _shape(config: Any, kind: str, number: int) -> ModelShape:
    """Raises PollardError for more layers than there are; of experts and channels the cut says it."""
    if kind != "layers":
        return ModelShape(experts=number) if kind == "keep" else ModelShape(width=number)
    model = meta_model(config)
    depth = len(layers_of(model, find_blocks(model))[1])
    if number > depth:
        raise PollardError(
            f"--layers {number}: the model has {depth} decoder layers. Give 1…{depth}.", code="cli.too-many-layers"
        )
    return ModelShape(layers=without_last(number, depth))


def _without_weights(path: str) -> bool:
    if not (Path(path) / "config.json").is_file():
        return False
    files = checkpoint_files(path)
    return not files.weights and not files.unread


def _real(model: NamedModel, dtype: str) -> BenchmarkedModel:
    config = load_config(model.path, model.revision)
    size = ModelSize(*sizes(meta_model(config)), checkpoint_bytes(model.path, model.revision), model.path, random=False)
    return BenchmarkedModel(
        model.name, size, weight_bytes(config, dtype),
        lambda: load_model(model.path, model.revision, dtype, device()),
    )  # fmt: skip


def _random(name: str, config: Any, dtype: str) -> BenchmarkedModel:
    size = ModelSize(*sizes(meta_model(config)), weight_bytes(config), None, random=True)
    return BenchmarkedModel(name, size, weight_bytes(config, dtype), lambda: random_model(config, dtype, device()))


def _names(names: list[str]) -> list[str]:
    """Paths by their last part where those differ, else numbered."""
    short = [Path(name).name if "/" in name else name for name in names]
    return short if len(set(short)) == len(short) else [f"{number}: {name}" for number, name in enumerate(names, start=1)]
