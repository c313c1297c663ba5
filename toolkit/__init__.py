"""Pollard makes a mixture-of-experts language model small for one task.

    import toolkit

    statistics = toolkit.calibrate(model, batches)
    plan = toolkit.select(statistics, criterion="reap", keep=4)    # or toolkit.fit(model, batches, bytes="12G")
    toolkit.prune(source, plan, target)    # refit=batches: and fitted to the original again
    toolkit.recover(recipe)
    scores = toolkit.evaluate(model, tokenizer, task)
    toolkit.upcycle(dense, target)    # a mixture of experts to begin with

Imported lazily: `import toolkit` costs nothing until one of them is used.
"""

from importlib import import_module
from typing import Any

_PUBLIC_NAMES = {
    "calibrate": ("toolkit.calibration", "calibrate"),
    "select": ("toolkit.selection", "select"),
    "fit": ("toolkit.pipeline.fit_model", "fit"),
    "merge": ("toolkit.calibration", "fit_dense"),
    "prune": ("toolkit.recovery.prune", "prune"),
    "upcycle": ("toolkit.cuts.upcycling", "upcycle"),
    "SharedForm": ("toolkit.cuts.upcycling", "SharedForm"),
    "CopiesForm": ("toolkit.cuts.upcycling", "CopiesForm"),
    "recover": ("toolkit.recovery.recover", "recover"),
    "skipping_thresholds": ("toolkit.calibration", "skipping_thresholds"),
    "evaluate": ("toolkit.evaluation", "evaluate"),
    "load_recipe": ("toolkit.recipe.file", "load_recipe"),
    "Task": ("toolkit.tasks", "Task"),
    "Plan": ("toolkit.cuts.plan", "Plan"),
    "LayersCut": ("toolkit.cuts", "LayersCut"),
    "masked": ("toolkit.cuts", "masked"),
    "ExpertStatistics": ("toolkit.cuts.statistics", "ExpertStatistics"),
    "PollardError": ("toolkit.runtime.errors", "PollardError"),
}
__all__ = list(_PUBLIC_NAMES)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC_NAMES:
        raise AttributeError(f"module 'toolkit' has no attribute {name!r}")
    module, attribute = _PUBLIC_NAMES[name]
    return getattr(import_module(module), attribute)
