"""Templates over the columns of a line: how values become text, and which values are refused.

true -> "true"      1e-05 -> "0.00001"      ["x", 1.5] -> '["x", 1.5]'      a date -> "2024-02-29"      null -> refused
"""

import json
import math
import re
from dataclasses import dataclass
from datetime import date, time
from decimal import Decimal
from numbers import Integral, Real
from string import Formatter
from typing import Any

from toolkit.runtime.errors import PollardError, did_you_mean

Row = dict[str, Any]  # the columns of one line of data: whatever its file holds

FIELD = re.compile(r"([^\[\]]+)((?:\[[^\[\]]+\])*)")  # column[key][0]
KEY = re.compile(r"\[(.+?)\]")


def column(name: str, columns: Row, where: str) -> Any:
    """The value of a column. Raises PollardError where the line lacks it, or it is null."""
    if name not in columns:
        outer, dot, inner = name.partition(".")
        close = (
            f" A part of `{outer}` is `{outer}[{inner}]`." if dot and outer in columns else did_you_mean(name, list(columns))[1:]
        )
        raise PollardError(f"{where}: no field `{name}`. Fields there: {fields_in(columns)}.{close}", code="data.no-field")
    if is_null(columns[name]):
        raise PollardError(f"{where}: the field `{name}` is null{'' if columns[name] is None else ' (NaN)'}.", code="data.null")
    return columns[name]


def fields_in(columns: Row) -> str:
    """The names of a line's columns, for messages."""
    return ", ".join(columns).encode("utf-8", "backslashreplace").decode() or "none"


def is_null(value: Any) -> bool:
    """Whether a value is null, or the NaN (pandas' NaT, NA) that stands for it in tables."""
    if isinstance(value, Real | Decimal) and not isinstance(value, Integral):
        return math.isnan(value)
    return value is None or type(value).__name__ in ("NaTType", "NAType")


def parsed_json(value: Any) -> Any:
    """A list or an object that a data set keeps as JSON text, as tables do; anything else as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def text_of(value: Any) -> str:
    """The text of a value: of a text itself, of a number all its digits, of a list or an object JSON.

    Raises ValueError for what has none: null, an infinite number, half a surrogate pair, an image.
    """
    value = _plain(value)
    if isinstance(value, str):
        return _checked(value)
    if is_null(value):
        raise ValueError("it is null" if value is None else "it is null (NaN)")
    if isinstance(value, dict | list):
        return json_of(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Integral):
        return str(int(value))
    if isinstance(value, Decimal | Real):
        if not math.isfinite(value):
            raise ValueError("it is infinite")
        return format(Decimal(str(value)), "f")  # str is the shortest that reads back as the same number, but with exponents
    if isinstance(value, date | time):  # and datetime, which is a date
        return value.isoformat()
    raise ValueError(f"it is of the type {type(value).__name__}, which is no text")


def readable_text(value: Any) -> str | None:
    """`text_of`, and None for a value that has no text."""
    try:
        return text_of(value)
    except ValueError:
        return None


def fields_of(template: str) -> list[str]:
    """The fields of a template as they are written, each once. Raises ValueError for braces that do not close."""
    return list(dict.fromkeys(name for _, name, _, _ in Formatter().parse(template) if name))


def _plain(value: Any) -> Any:
    """numpy's arrays and truth values, and tuples, as Python's."""
    if hasattr(value, "tolist") and (value.ndim or type(value).__name__ in ("bool", "bool_")):
        return value.tolist()
    return list(value) if isinstance(value, tuple | set | frozenset) else value


def _checked(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(
            "it holds half a surrogate pair, which is no character: the text was cut inside an emoji or the like"
        ) from None
    if "\0" in text:
        raise ValueError("it holds the character NUL")
    return text


def json_of(value: Any) -> str:
    """JSON as `json.dumps` writes it, but with numbers as `text_of` does and texts as they are."""
    value = _plain(value)
    if value is None:
        return "null"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_quoted(str(key))}: {json_of(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(json_of, value)) + "]"
    return text_of(value) if isinstance(value, bool | Real | Decimal) else _quoted(text_of(value))


def _quoted(text: str) -> str:
    return json.dumps(_checked(text), ensure_ascii=False)


def _predicate(error: ValueError) -> str:
    return str(error).removeprefix("it ")


def check_texts(name: str, value: Any, where: str) -> None:
    """Raises PollardError for a text, in a column of whatever shape, that `text_of` would refuse."""
    try:
        if isinstance(value, str):
            _checked(value)
    except ValueError as error:
        raise PollardError(f"{where}: the field `{name}` {_predicate(error)}.", code="data.no-text") from None
    for item in [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else ():
        check_texts(name, item, where)


@dataclass(frozen=True)
class _Filler(Formatter):
    """`str.format` over a line's columns, by `text_of`."""

    columns: Row
    where: str

    def get_field(self, field_name: str, args: Any, kwargs: Any) -> Any:
        """Columns and what is in them; unlike Python's own formats no attribute, and no letter of a text."""
        match = None if field_name in self.columns else FIELD.fullmatch(field_name)
        at, keys = (match[1], KEY.findall(match[2])) if match else (field_name, [])
        if at not in self.columns and (not at or at.isdigit()):
            raise ValueError("Format string contains positional fields")
        value = column(at, self.columns, self.where)
        for key in keys:
            value, at = self._part(value, key, at), f"{at}[{key}]"
        try:
            text_of(value)
        except ValueError as error:
            raise PollardError(f"{self.where}: the field `{field_name}` {_predicate(error)}.", code="data.no-text") from None
        return value, at

    def _part(self, value: Any, key: str, at: str) -> Any:
        value = _plain(value)
        if isinstance(value, dict):
            return value[key]
        if isinstance(value, list):
            return value[int(key)]
        kind = "null" if is_null(value) else "a text" if isinstance(value, str) else f"a value of the type {type(value).__name__}"
        raise PollardError(
            f"{self.where}: the field `{at}` is {kind}, and no list or object of which [{key}] is a part.", code="data.no-part"
        )

    def convert_field(self, value: Any, conversion: str | None) -> Any:
        return text_of(value) if conversion == "s" else super().convert_field(value, conversion)  # type: ignore[arg-type]

    def format_field(self, value: Any, format_spec: str) -> str:
        if isinstance(value, str) and not format_spec:
            return value
        value = _plain(value)
        if not format_spec or isinstance(value, bool | dict | list):
            return format(text_of(value), format_spec)
        if isinstance(value, str) and format_spec[-1] in "deEfFgG%":  # a number from a CSV file
            return format(int(value) if format_spec[-1] == "d" else float(value), format_spec)
        return format(value, format_spec)


def fill_template(template: str, columns: Row, where: str) -> str:
    """The template with a line's values in it. Raises PollardError for a value that has no text, and for another template."""
    try:
        return _Filler(columns, where).vformat(template, (), {})
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise PollardError(
            f"{where}: the template {template!r} cannot be filled ({what}): write {{column}}, and {{{{ for a brace.",
            code="task.template",
        ) from None
