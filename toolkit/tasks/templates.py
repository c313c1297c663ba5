"""Templates over the columns of a line, and what is said where they do not fit."""

from dataclasses import dataclass
from typing import Any

from toolkit.errors import PollardError


def column(name: str, columns: dict[str, Any], where: str) -> Any:
    if name not in columns:
        raise PollardError(f"{where}: no field `{name}`. Fields there: {', '.join(columns) or 'none'}.")
    if columns[name] is None:
        raise PollardError(f"{where}: the field `{name}` is null.")
    return columns[name]


@dataclass(frozen=True)
class _Columns:
    """Lets `str.format_map` explain a field that a line does not have."""

    columns: dict[str, Any]
    where: str

    def __getitem__(self, name: str) -> Any:
        return column(name, self.columns, self.where)


def filled(template: str, columns: dict[str, Any], where: str) -> str:
    try:
        return template.format_map(_Columns(columns, where))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise PollardError(
            f"{where}: the template {template!r} cannot be filled ({what}): write {{column}}, and {{{{ for a brace."
        ) from None
