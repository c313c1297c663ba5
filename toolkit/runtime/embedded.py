"""What comes along with Pollard: `recipes/`, `data/playground/`, `data/tickets/`. Beside the package in a checkout, inside it
where it is installed.

A recipe may name them by these paths from any folder: what lies there itself comes first.
"""

from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).parents[1]
_INSTALLED = _PACKAGE / "embedded"  # of a wheel: pyproject.toml puts it there
EMBEDDED = _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent
"""The folder that holds them."""
FOLDERS = ("recipes", "data/playground", "data/tickets")


def find_embedded(path: str | Path) -> Path:
    """The path itself, or what comes along under that name where nothing lies there: `recipes/math.yaml`."""
    path = Path(path)
    named = path.as_posix()
    comes_along = any(named == folder or named.startswith(f"{folder}/") for folder in FOLDERS)
    return EMBEDDED / path if comes_along and not path.exists() and (EMBEDDED / path).exists() else path


def find_embedded_in(values: Any, around: tuple[int, ...] = ()) -> Any:
    """A recipe's plain values, with every text that names such a path replaced by where it is. What lies in itself (an alias of
    YAML; `around`: what it lies in) stays, to be refused by the schema."""
    if id(values) in around:
        return values
    inside = (*around, id(values))
    if isinstance(values, dict):
        return {key: find_embedded_in(value, inside) for key, value in values.items()}
    if isinstance(values, list):
        return [find_embedded_in(value, inside) for value in values]
    if isinstance(values, str) and values.startswith(FOLDERS):
        found = find_embedded(values)
        return values if found == Path(values) else str(found)
    return values
