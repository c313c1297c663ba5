"""A recipe's file: YAML, overridden key by key on the command line, checked as a whole before anything starts.

deepspeed toolkit/train.py recipes/math.yaml pruning.keep=2 model=data/playground/model
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from toolkit.recipe.data import Section
from toolkit.recipe.quick_checks import quick_checks
from toolkit.recipe.schema import SHORTHANDS, Recipe
from toolkit.runtime.errors import PollardError, did_you_mean

EXAMPLES = {"name": "name: my-run", "model": "model: mistralai/Mixtral-8x7B-v0.1", "task": "task: gsm8k"}


class _Loader(yaml.SafeLoader):
    """YAML as people mean it, and an error where of two equal keys the last would win in silence."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key `{key.value}` stands here twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes what `_Loader` would read as something else."""


def _as_people_mean_it(yaml_class: Any) -> None:
    """YAML 1.1 reads `eval_strategy: no` as false and 1e-5 as text."""
    boolean, real = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:float"
    yaml_class.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in found if tag != boolean]
        for first, found in yaml_class.yaml_implicit_resolvers.items()
    }
    yaml_class.add_implicit_resolver(boolean, re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
    yaml_class.add_implicit_resolver(real, re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789"))


_as_people_mean_it(_Loader)
_as_people_mean_it(_Dumper)


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML, every default filled in; `load_recipe` reads the same recipe back."""
    return dump_values(recipe.model_dump())


def dump_values(values: Any) -> str:
    """YAML of plain values, as a recipe writes them."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def read_values(text: str) -> Any:
    """The plain values of YAML, as a recipe means them (`no` is a word). Raises ValueError for text that is no YAML."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


def dump_value(value: Any) -> str:
    """One value on one line, as a recipe says it."""
    return (
        yaml.dump(value, Dumper=_Dumper, default_flow_style=True, allow_unicode=True, width=10**6).removesuffix("...\n").strip()
    )


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in `path` with `key.path=value` overrides applied.

    Raises PollardError listing *all* faults, each with file, line and key, what is allowed, and the likeliest meaning; and
    what else an instant tells.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=_Loader)
        values = yaml.load(text, Loader=_Loader)
    except OSError as error:
        folder = path if path.is_dir() else path.parent
        there = ", ".join(sorted(map(str, folder.glob("*.yaml")))) or "none"
        raise PollardError(f"No recipe at {path} ({error.strerror}). Recipes in that folder: {there}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        tab = " (YAML is indented by spaces: replace the tab)" if "'\\t'" in str(error) else ""
        raise PollardError(f"{path} is not valid YAML{tab}: {error}") from None
    if not isinstance(values, dict):
        raise PollardError(f"{path} must hold keys such as `model:` and `task:`, not {type(values).__name__}.")
    lines = {key: f"{path}, line {line}" for key, line in _lines_of(node).items()}
    for override in overrides:
        key = _override(values, override)
        lines[key] = f"command line ({override})"
        for n in range(1, len(key)):
            lines.setdefault(key[:n], lines[key])
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        faults = {_explain(dict(fault), lines, str(path)): None for fault in error.errors()}
        more = (f"{_place(key, lines, str(path))}: `{'.'.join(key)}`: {what}" for key, what in quick_checks(values))
        raise PollardError("\n".join(faults | dict.fromkeys(more))) from None


def _override(values: dict[str, Any], override: str) -> tuple[str, ...]:
    """Sets one `key.path=value` in place; returns the key's path."""
    name, equals, text = override.partition("=")
    key = tuple(name.split("."))
    if not equals or not all(key):
        raise PollardError(f"`{override}` is not an override: write key.path=value, e.g. pruning.keep=2.")
    value = _value(key, text)
    for part in key[:-1]:
        if isinstance(values.get(part), str) and part in SHORTHANDS:
            values[part] = {SHORTHANDS[part]: values[part]}
        elif not isinstance(values.get(part), dict):
            values[part] = {}
        values = values[part]
    values[key[-1]] = value
    return key


def _value(key: tuple[str, ...], text: str) -> Any:
    """YAML, except where a field takes text: `task.prompt={question}` and `model.revision=12e5` are meant as they stand."""
    section = _section_at(key[:-1])
    field = section.model_fields.get(key[-1]) if section else None
    if field and field.annotation in (str, str | None) and text[:1] not in ("", '"', "'") and text != "null":
        return text
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        return text


def _lines_of(node: Any, prefix: tuple[str, ...] = ()) -> dict[tuple[str, ...], int]:
    """Line number of every key in a composed YAML document."""
    lines: dict[tuple[str, ...], int] = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            where = (*prefix, key.value)
            lines[where] = key.start_mark.line + 1
            lines |= _lines_of(value, where)
    elif isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            where = (*prefix, str(number))
            lines[where] = item.start_mark.line + 1
            lines |= _lines_of(item, where)
    return lines


def _place(key: tuple[str, ...], lines: dict[tuple[str, ...], str], file: str) -> str:
    """Where a key stands, or the section that it is missing in."""
    return next((lines[key[:n]] for n in range(len(key), 0, -1) if key[:n] in lines), file)


def _explain(fault: dict[str, Any], lines: dict[tuple[str, ...], str], file: str) -> str:
    """One fault as one line: where, which key, what is wrong, what to write instead."""
    location = tuple(map(str, fault["loc"]))
    where = _place(location, lines, file)
    key = ".".join(location) or "the recipe"
    if fault["type"] == "extra_forbidden":
        section = _section_at(location[:-1])
        allowed = list(section.model_fields) if section else []
        return (
            f"{where}: `{key}` is not a key of a recipe{did_you_mean(location[-1], allowed)} Allowed here: {', '.join(allowed)}."
        )
    if fault["type"] == "missing":
        example = f", e.g. `{EXAMPLES[key]}`" if key in EXAMPLES else ""
        return f"{where}: `{key}` is missing: add it{example}."
    if fault["type"] == "literal_error":
        allowed = [str(value) for value in re.findall(r"'([^']*)'|(\d+)", fault["ctx"]["expected"]) for value in value if value]
        given = fault["input"]
        return f"{where}: `{key}` cannot be {given!r}{did_you_mean(str(given), allowed)} Allowed: {', '.join(allowed)}."
    if fault["type"] == "model_type" and (section := _section_at(location)):
        return f"{where}: `{key}` takes keys ({', '.join(section.model_fields)}), not {fault['input']!r}."
    if fault["type"] == "string_type":
        return f"{where}: `{key}` must be text: put it in quotes (given: {fault['input']!r})."
    message = fault["msg"].removeprefix("Value error, ")
    return f"{where}: `{key}`: {message} (given: {fault['input']!r})."


def _section_at(location: tuple[str, ...]) -> type[Section] | None:
    """The section that these keys lead to; None where they lead elsewhere."""
    section: Any = Recipe
    for part in location:
        if part.isdigit():  # an item of a list: the key before it has led to its section
            continue
        found = getattr(section.model_fields.get(part), "annotation", None)
        section = next(iter(sections_in(found)), None)
        if section is None:
            return None
    return section


def sections_in(annotation: Any) -> list[type[Section]]:
    """The sections that an annotation is made of."""
    return [kind for kind in _kinds(annotation) if isinstance(kind, type) and issubclass(kind, Section)]


def _kinds(annotation: Any) -> list[Any]:
    """The types an annotation is made of: `list[SourceRecipe] | None` is made of SourceRecipe and None."""
    inner = [kind for argument in get_args(annotation) for kind in _kinds(argument)]
    return inner or [annotation]
