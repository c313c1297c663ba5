"""Generates recipes/reference.yaml (for people) and recipes/recipe.schema.json (for editors) from toolkit/recipe/schema.py."""

import json
import re
import textwrap
from typing import Annotated, Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import WithJsonSchema
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from toolkit.recipe.data import DataRecipe, Section
from toolkit.recipe.evaluation import ServerRecipe
from toolkit.recipe.file import dump_value, sections_in
from toolkit.recipe.off_task import OffTaskRecipe
from toolkit.recipe.schema import SHORTHANDS, Recipe

WIDTH = 120
REQUIRED = {"name": "reference", "model": {"path": "mistralai/Mixtral-8x7B-v0.1"}, "task": {"name": "gsm8k"}}
HEAD = """\
# Every key of a recipe with its meaning, type and default. This file is a recipe itself, with the default of every key
# (name, model.path and task.name, which have none, are examples).
#
# Written by `pollard recipes --reference`; a test keeps it in step with toolkit/recipe/schema.py.
"""


def reference() -> str:
    """The text of recipes/reference.yaml."""
    return HEAD + "".join(_lines(Recipe, REQUIRED, indent=0)).rstrip() + "\n"


def schema() -> str:
    """A JSON schema (draft 2020-12) of recipes, for editors: keys, types, choices, and what the keys mean."""
    found = Recipe.model_json_schema()
    short = {_section(field).__name__ for key, field in Recipe.model_fields.items() if key in SHORTHANDS}
    short |= {
        name
        for name in found["$defs"]
        if name in {kind.__name__ for of in (DataRecipe, ServerRecipe) for kind in with_subclasses(of)}
    }
    for part in (*found["$defs"].values(), found):
        for value in part.get("properties", {}).values():
            _allow(value, short)
    for key in Recipe.model_fields.keys() - {"model", "task"}:
        if _is_section(Recipe.model_fields[key]):  # all its keys commented out: null
            found["properties"][key] = {"anyOf": [found["properties"][key], {"type": "null"}]}
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema"} | found, indent=1, ensure_ascii=False) + "\n"


def _allow(value: dict[str, Any], short: set[str]) -> None:
    """Allows a text for the sections that have a short form (`task: gsm8k`), and true and false for what can be switched."""
    if isinstance(value.get("items"), dict):
        _allow(value["items"], short)
    for option in [*value.get("anyOf", [])]:
        _allow(option, short)
    reference = value.get("$ref", "")
    if reference.rpartition("/")[2] in short:
        del value["$ref"]
        switch = [{"type": "boolean"}] if reference.endswith(f"/{OffTaskRecipe.__name__}") else []
        value["anyOf"] = [{"$ref": reference}, {"type": "string"}, *switch]


def _lines(section: type[Section], values: dict[str, Any], indent: int) -> list[str]:
    lines = []
    for key, field in section.model_fields.items():
        description = field.description or (_section(field).__doc__ if _is_section(field) else None) or ""
        lines.append("\n" if indent == 0 else "")
        if _is_section(field):
            lines += [*_comment(description, indent), f"{' ' * indent}{key}:\n"]
            lines += _lines(_section(field), values.get(key, {}), indent + 2)
            continue
        default = values.get(key, None if field.default is PydanticUndefined else field.default)
        default = default.model_dump() if isinstance(default, Section) else default
        kind = f"{_kind(field)}{'; required' if field.is_required() else ''}"
        lines += [*_comment(f"{description} ({kind})".strip(), indent), f"{' ' * indent}{key}: {dump_value(default)}\n"]
        for item in sections_in(field.annotation):
            lines += _comment("Each item:" if get_origin(_not_none(field)) is list else "Its keys:", indent + 2)
            lines += [f"{' ' * (indent + 2)}# {line}" for line in _items(item)]
    return lines


def _items(section: type[Section]) -> list[str]:
    """The keys of a list's items, as comments."""
    lines = []
    for number, (key, field) in enumerate(section.model_fields.items()):
        kind = "a task, as above, or its name" if key == "task" else _kind(field)
        default = "; required" if field.is_required() else ""
        default = default or ("" if field.default is None else f", {dump_value(field.default)} by default")
        comment = textwrap.wrap(f"{field.description} ({kind}{default})", WIDTH - 24)
        lines += [
            f"{'- ' if number == 0 else '  '}{key}: …  # {comment[0]}\n",
            *(f"{'':<{len(key) + 6}} # {line}\n" for line in comment[1:]),
        ]
    return lines


def _comment(text: str, indent: int) -> list[str]:
    words = " ".join(text.split())
    return [f"{' ' * indent}# {line}\n" for line in textwrap.wrap(words, WIDTH - indent - 2, break_long_words=False)]


def _kind(field: FieldInfo) -> str:
    """A type in words: `integer, at least 1`, `float32 | bfloat16`, `list of text, or null`."""
    kind = _named(field.annotation)
    for limit in field.metadata:
        if isinstance(limit, Ge):
            kind += f", at least {limit.ge}"
        if isinstance(limit, Gt):
            kind += f", more than {limit.gt}"
        if isinstance(limit, Le):
            kind += f", at most {limit.le}"
        if isinstance(limit, Lt):
            kind += f", less than {limit.lt}"
        if isinstance(limit, MinLen):
            kind += f", at least {limit.min_length} long"
    return kind


NAMES = {str: "text", int: "integer", float: "number", bool: "true | false", type(None): "null", Any: "anything"} | {
    OffTaskRecipe: "true | false | data"
}


def _named(kind: Any) -> str:
    inner = get_args(kind)
    if get_origin(kind) is Annotated:  # with what may be written instead, as the schema says it
        notes = [note.json_schema or {} for note in kind.__metadata__ if isinstance(note, WithJsonSchema)]
        written = [name for note in notes for name in note["type"]]
        return " | ".join({"integer": "integer", "string": "text"}[name] for name in written) or _named(inner[0])
    if get_origin(kind) is Literal:
        return " | ".join(map(str, inner))
    if get_origin(kind) is list:
        item = inner[0]
        return f"list of {'items' if isinstance(item, type) and issubclass(item, Section) else _named(item)}"
    if get_origin(kind) is dict:
        return "keys and values"
    if inner:
        return " | ".join(dict.fromkeys(_named(one) for one in inner))
    return NAMES.get(kind) or re.sub(r"Recipe$", "", getattr(kind, "__name__", str(kind))).lower()


def _not_none(field: FieldInfo) -> Any:
    """The annotation without `| None`."""
    return next((kind for kind in get_args(field.annotation) if kind is not type(None)), field.annotation)


def _is_section(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, Section)


def _section(field: FieldInfo) -> type[Section]:
    assert isinstance(field.annotation, type) and issubclass(field.annotation, Section)
    return field.annotation


def with_subclasses(kind: type[Section]) -> list[type[Section]]:
    """A section and all that inherit from it."""
    return [kind, *(one for child in kind.__subclasses__() for one in with_subclasses(child))]
