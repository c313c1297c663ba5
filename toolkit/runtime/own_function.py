"""A function of the user's own that a recipe names: a scorer, a loss.

my_module:my_function        from the folder where the command was started, or installed
judges/strict.py:judge       by its file, from that folder
"""

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from toolkit.runtime.errors import PollardError
from toolkit.runtime.files import fingerprint_of_source


def load_function(name: str, key: str, prefix: str) -> Callable[..., Any]:
    """The function that `name` says, of the recipe's `key`. Raises PollardError with a code `<prefix>.…` where its module or file
    is not there or cannot be imported, where it has no such function, and for one that is `async`."""
    module_name, _, attribute = name.rpartition(":")
    try:
        module = _imported_file(module_name) if is_file(module_name) else _imported_module(module_name)
    except FileNotFoundError:
        raise PollardError(f"{key} {name}: there is no file {Path(module_name).resolve()}.", code=f"{prefix}.no-module") from None
    except ModuleNotFoundError as error:
        if is_file(module_name) or error.name not in (module_name, module_name.partition(".")[0]):
            raise PollardError(
                f"{key} {name}: {module_name} needs {error.name}, which is not installed.", code=f"{prefix}.import"
            ) from error
        raise PollardError(
            f"{key} {name}: there is no module {module_name}. It is looked for in {os.getcwd()} "
            f"({module_name.replace('.', '/')}.py) and among what is installed.",
            code=f"{prefix}.no-module",
        ) from None
    except (Exception, SystemExit) as error:
        what = f"{type(error).__name__}: {error}"
        raise PollardError(f"{key} {name}: {module_name} cannot be imported ({what}).", code=f"{prefix}.import") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        functions = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        there = ", ".join(functions) or "none"
        raise PollardError(
            f"{key} {name}: {module_name} has no function {attribute}. Functions there: {there}.", code=f"{prefix}.no-function"
        )
    refuse_async(function, f"{key} {name}", prefix)
    return function


def refuse_async(function: Callable[..., Any], what: str, prefix: str) -> None:
    """Raises PollardError for one that would have to be awaited; `what` names it."""
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None)):  # noqa: B004
        raise PollardError(
            f"{what}: {function_name(function).rpartition(':')[2]} is `async`, and must answer at once: write a plain function.",
            code=f"{prefix}.async",
        )


def function_file(name: str) -> str | None:
    """The file that a function's name points to, whose content decides results; None where there is none."""
    module_name = name.rpartition(":")[0]
    if is_file(module_name):
        return module_name if Path(module_name).is_file() else None
    try:
        spec = _with_folder(os.getcwd(), lambda: importlib.util.find_spec(module_name))
    except ModuleNotFoundError:  # its package is not there
        return None
    return spec.origin if spec else None


def function_identity(name: str | None) -> list[str]:
    """For fingerprints: the content of the function's own file; its name alone where there is none, nothing without a name."""
    return [fingerprint_of_source(function_file(name) or name)] if name else []


def function_name(function: Callable[..., Any]) -> str:
    """module:function, of a function or of any other object that can be called."""
    inner: Any = function
    while isinstance(inner, partial):
        inner = inner.func
    named = inner if hasattr(inner, "__qualname__") else type(inner)
    return f"{named.__module__}:{named.__qualname__}"


def is_file(module_name: str) -> bool:
    return module_name.endswith(".py")


def _imported_module(name: str) -> ModuleType:
    return _with_folder(os.getcwd(), lambda: importlib.import_module(name))


def _imported_file(name: str) -> ModuleType:
    """Anew each time: a file has no name under which Python would keep it. Its own folder comes first on the import path."""
    path = Path(name).resolve()
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader  # it ends in .py
    module = importlib.util.module_from_spec(spec)
    loader = spec.loader
    _with_folder(str(path.parent), lambda: loader.exec_module(module))
    return module


def _with_folder(folder: str, find: Callable[[], Any]) -> Any:
    """Calls `find` with the folder first on the import path, as in Python's own prompt."""
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        return find()
    finally:
        sys.path.remove(folder)
