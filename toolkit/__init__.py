"""Pollard makes a mixture-of-experts language model small for one task.

    import toolkit

    statistics = toolkit.calibrate(model, batches)
    plan = toolkit.select(statistics, criterion="reap", keep=4)    # or toolkit.fit(model, batches, bytes="12G")
    toolkit.prune(source, plan, target)    # refit=batches: and fitted to the original again
    toolkit.recover(recipe)
    scores = toolkit.evaluate(model, tokenizer, task)
    toolkit.upcycle(dense, target)    # a mixture of experts to begin with

Imported lazily: `import toolkit` costs nothing until one of them is used. Type checkers and editors read the first list, Python
the second; they name the same things.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from toolkit.calibration import calibrate as calibrate
    from toolkit.calibration import fit_dense
    from toolkit.calibration import skipping_thresholds as skipping_thresholds
    from toolkit.cuts import LayersCut as LayersCut
    from toolkit.cuts import masked as masked
    from toolkit.cuts.fit_result import FitResult as FitResult
    from toolkit.cuts.observed_block import ObservedBlock as ObservedBlock
    from toolkit.cuts.plan import Plan as Plan
    from toolkit.cuts.statistics import ExpertStatistics as ExpertStatistics
    from toolkit.cuts.upcycling import CopiesForm as CopiesForm
    from toolkit.cuts.upcycling import SharedForm as SharedForm
    from toolkit.cuts.upcycling import upcycle as upcycle
    from toolkit.evaluation import Scores as Scores
    from toolkit.evaluation import evaluate as evaluate
    from toolkit.pipeline.fit_model import fit as fit
    from toolkit.recipe.file import load_recipe as load_recipe
    from toolkit.recovery.prune import prune as prune
    from toolkit.recovery.recover import recover as recover
    from toolkit.runtime.errors import PollardError as PollardError
    from toolkit.selection import select as select
    from toolkit.tasks import Task as Task

    merge = fit_dense
else:
    from importlib import import_module

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
        "Scores": ("toolkit.evaluation", "Scores"),
        "load_recipe": ("toolkit.recipe.file", "load_recipe"),
        "Task": ("toolkit.tasks", "Task"),
        "Plan": ("toolkit.cuts.plan", "Plan"),
        "LayersCut": ("toolkit.cuts", "LayersCut"),
        "masked": ("toolkit.cuts", "masked"),
        "FitResult": ("toolkit.cuts.fit_result", "FitResult"),
        "ExpertStatistics": ("toolkit.cuts.statistics", "ExpertStatistics"),
        "ObservedBlock": ("toolkit.cuts.observed_block", "ObservedBlock"),
        "PollardError": ("toolkit.runtime.errors", "PollardError"),
    }
    __all__ = list(_PUBLIC_NAMES)

    def __getattr__(name: str) -> object:
        if name not in _PUBLIC_NAMES:
            raise AttributeError(f"module 'toolkit' has no attribute {name!r}")
        module, attribute = _PUBLIC_NAMES[name]
        return getattr(import_module(module), attribute)

    def __dir__() -> list[str]:
        return sorted({*globals(), *_PUBLIC_NAMES})
