"""Pollard makes a mixture-of-experts language model small for one task.

    import toolkit

    statistics = toolkit.calibrate(model, batches)
    plan = toolkit.select(statistics, criterion="reap", keep=4)
    toolkit.prune(source, plan, target)
    toolkit.recover(recipe)
    scores = toolkit.evaluate(model, tokenizer, task)

Imported lazily: `import toolkit` costs nothing until one of them is used.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "calibrate": ("toolkit.calibration", "calibrate"),
    "select": ("toolkit.selection", "select"),
    "prune": ("toolkit.cuts.checkpoint", "prune_checkpoint"),
    "recover": ("toolkit.recovery.recover", "recover"),
    "skipping_thresholds": ("toolkit.calibration", "skipping_thresholds"),
    "evaluate": ("toolkit.evaluation", "evaluate"),
    "load_recipe": ("toolkit.recipe.file", "load_recipe"),
    "Task": ("toolkit.tasks", "Task"),
    "Plan": ("toolkit.cuts.plan", "Plan"),
    "ExpertStatistics": ("toolkit.cuts.statistics", "ExpertStatistics"),
    "PollardError": ("toolkit.runtime.errors", "PollardError"),
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'toolkit' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(import_module(module), attribute)
