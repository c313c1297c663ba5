"""The models that `pollard benchmark` measures: checkpoints, the models of a run, or random models of a configuration's shape.

Apart from the verb for start-up time: it imports torch.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from toolkit.cuts.shape import ModelShape, shaped_meta_model
from toolkit.evaluation.speed import BenchmarkedModel, ModelSize
from toolkit.moe import checkpoint_bytes, checkpoint_files, load_config, load_model, meta_model, random_model, sizes, weight_bytes
from toolkit.pipeline.run_models import NamedModel, models_at
from toolkit.runtime.distributed import device
from toolkit.runtime.errors import PollardError


def models_to_measure(paths: Sequence[str], keep: Sequence[int], dtype: str) -> list[BenchmarkedModel]:
    """Every model of `paths`, in order, then the shape of the first one with each number of experts in `keep`.

    A folder with config.json and no weights stands for a random model of that shape, which is as fast as a real one except for
    the experts that its routers choose. Raises PollardError for a path that is no model, and for `keep` with real weights.
    """
    models = [model for path in paths for model in models_at(path)]
    if keep and not _without_weights(models[0].path):
        raise PollardError(
            f"--keep makes random models of a shape, and {models[0].path} has weights: prune it, or name a folder with "
            "config.json alone.",
            code="cli.keep-with-weights",
        )
    entrants = [_random(m.name, load_config(m.path), dtype) if _without_weights(m.path) else _real(m, dtype) for m in models]
    config = load_config(models[0].path) if keep else None
    for number in keep:
        pruned = shaped_meta_model(config, ModelShape(experts=number))
        entrants.append(_random(f"keep {number}", pruned.config, dtype))
    return [entrant._replace(name=name) for entrant, name in zip(entrants, _names([e.name for e in entrants]), strict=True)]


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
