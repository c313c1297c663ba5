"""A scorer of the user's own, `scorer: my_module:my_function`, from the folder where the command was started.

def my_function(prediction: str, gold: str) -> bool: …      # my_module.py
"""

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from typing import Any

from toolkit.errors import PollardError
from toolkit.tasks.scorer import Scorer


def own_scorer(name: str) -> Scorer:
    """Raises PollardError where the module or the function cannot be had; whatever it says must be true or false."""
    function = _imported(name)

    def judged(prediction: str, gold: str) -> bool:
        found = function(prediction, gold)
        if found is not True and found is not False:
            raise TypeError(f"{name} must say True or False, and said {found!r}")
        return found

    return Scorer(judged, lambda prediction, gold: False)


def source_of(name: str) -> str | None:
    """The file of the scorer's module: it decides results like the data does."""
    with_folder = _beginning_here(lambda: importlib.util.find_spec(name.partition(":")[0]))
    return with_folder.origin if with_folder else None


def _imported(name: str) -> Callable[[str, str], Any]:
    module_name, _, function_name = name.partition(":")
    try:
        module = _beginning_here(lambda: importlib.import_module(module_name))
    except ModuleNotFoundError as error:
        if error.name not in (module_name, module_name.partition(".")[0]):
            raise PollardError(f"task.scorer {name}: {module_name} needs {error.name}, which is not installed.") from error
        raise PollardError(
            f"task.scorer {name}: there is no module {module_name}. It is looked for in {os.getcwd()} "
            f"({module_name.replace('.', '/')}.py) and among what is installed."
        ) from None
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise PollardError(f"task.scorer {name}: {module_name} cannot be imported ({what}).") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        there = ", ".join(key for key, value in vars(module).items() if callable(value) and not key.startswith("_")) or "none"
        raise PollardError(f"task.scorer {name}: {module_name} has no function {function_name}. Functions there: {there}.")
    return function


def _beginning_here(find: Callable[[], Any]) -> Any:
    """With the working folder first on the import path, as in Python's own prompt."""
    sys.path.insert(0, os.getcwd())
    importlib.invalidate_caches()
    try:
        return find()
    finally:
        sys.path.remove(os.getcwd())
