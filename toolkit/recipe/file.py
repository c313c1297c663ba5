"""A recipe's file: YAML 1.2, overridden key by key on the command line, and checked as a whole before anything starts.

deepspeed toolkit/train.py recipes/math.yaml pruning.keep=2 model=data/playground/model
"""

import io
import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.representer import SafeRepresenter
from ruamel.yaml.resolver import VersionedResolver

from toolkit.recipe.data import Section
from toolkit.recipe.quick_checks import quick_checks
from toolkit.recipe.schema import SHORTHANDS, Recipe
from toolkit.runtime.embedded import find_embedded, find_embedded_in
from toolkit.runtime.errors import PollardError, did_you_mean

EXAMPLES = {"name": "name: my-run", "model": "model: mistralai/Mixtral-8x7B-v0.1", "task": "task: gsm8k"}
NUMBER = re.compile(
    r"[-+]?(0|[1-9][\d_]*|0x[\da-fA-F]+|0b[01]+"  # 4, 1_000, 0x1f, 0b11
    r"|\d[\d_]*\.[\d_]*([eE][-+]?\d+)?|\.\d[\d_]*([eE][-+]?\d+)?|\d+[eE][-+]?\d+"  # 0.5, 1., .5, 1e-5
    r"|\.(inf|Inf|INF))|\.(nan|NaN|NAN)",
    re.ASCII,
)
UNLIMITED = 10**6  # columns of a line
KeyPath = tuple[str, ...]


class _Resolver(VersionedResolver):
    """YAML 1.2: `no` is text, and 1e-5 a number. What readers disagree about (08, 0o17, _1) is text, too."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        tag = super().resolve(kind, value, implicit)
        is_number = kind is ScalarNode and str(tag).endswith((":int", ":float"))
        return self.DEFAULT_SCALAR_TAG if is_number and not NUMBER.fullmatch(value) else tag


class _Representer(SafeRepresenter):
    """Writes members of a StrEnum (`Role`) as their text."""


_Representer.add_multi_representer(StrEnum, lambda representer, member: representer.represent_str(str(member)))


def _reader() -> YAML:
    yaml = YAML(typ="safe", pure=True)
    yaml.Resolver = _Resolver
    return yaml


def _write(values: Any, flow: bool, width: int) -> str:
    yaml, text = YAML(typ="safe", pure=True), io.StringIO()
    yaml.Representer = _Representer
    yaml.default_flow_style, yaml.width = flow, width
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment] # declared without a type
    yaml.dump(values, text)
    return text.getvalue()


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML, every default filled in; `load_recipe` reads the same recipe back."""
    return dump_values(recipe.model_dump())


def dump_values(values: Any) -> str:
    """YAML of plain values, as a recipe writes them."""
    return _write(values, flow=False, width=80)


def dump_value(value: Any) -> str:
    """One value on one line, as a recipe or an override writes it."""
    return _write(value, flow=True, width=UNLIMITED).removesuffix("...\n").strip()


def read_values(text: str) -> Any:
    """The plain values of YAML, read as a recipe is (`no` is text). Raises ValueError for text that is not YAML."""
    try:
        return _reader().load(text)
    except YAMLError as error:
        raise ValueError(str(error)) from None


class _Document(NamedTuple):
    """A YAML file: its values, and the place of every key for messages ("math.yaml, line 3")."""

    values: dict[str, Any]
    places: dict[KeyPath, str]


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in `path` with `key.path=value` overrides applied.

    Where there is no such file, or none that the recipe names, what comes along under that name is taken (`find_embedded`).

    Raises PollardError listing *all* faults, each with file, line and key, what is allowed, and the likeliest meaning; and
    with what `quick_checks` finds.
    """
    path = find_embedded(path)
    values, places = _read_file(path)
    for override in overrides:
        key = _override(values, override)
        places[key] = f"command line ({override})"
        for n in range(1, len(key)):
            places.setdefault(key[:n], places[key])
    values = find_embedded_in(values)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        faults = {_explain(fault, places, str(path)): None for fault in error.errors()}
        more = (f"{_place(key, places, str(path))}: `{'.'.join(key)}`: {what}" for key, what in quick_checks(values))
        raise PollardError("\n".join(faults | dict.fromkeys(more)), code="recipe.invalid") from None


def _read_file(path: Path) -> _Document:
    reader = _reader()
    try:
        with path.open(encoding="utf-8") as file:
            node = reader.compose(file)
        places = {key: f"{path}, line {line}" for key, line in _lines_of(node, path).items()}
        values = reader.constructor.construct_document(node) if node else None
    except OSError as error:
        folder = path if path.is_dir() else path.parent
        there = ", ".join(sorted(map(str, folder.glob("*.yaml")))) or "none"
        raise PollardError(
            f"No recipe at {path} ({error.strerror}). Recipes in that folder: {there}.", code="recipe.no-file"
        ) from None
    except (YAMLError, ValueError) as error:
        tab = " (YAML is indented by spaces: replace the tab)" if "'\\t'" in str(error) else ""
        raise PollardError(f"{path} is not valid YAML{tab}: {error}", code="recipe.not-yaml") from None
    if not isinstance(values, dict):
        raise PollardError(
            f"{path} must hold keys such as `model:` and `task:`, not {type(values).__name__}.", code="recipe.not-keys"
        )
    return _Document(values, places)


def _override(values: dict[str, Any], override: str) -> KeyPath:
    """Sets one `key.path=value` in place; returns the key's path."""
    name, equals, text = override.partition("=")
    key = tuple(name.split("."))
    if not equals or not all(key):
        raise PollardError(
            f"`{override}` is not an override: write key.path=value, e.g. pruning.keep=2.", code="recipe.not-an-override"
        )
    value = _value(key, text)
    for part in key[:-1]:
        if isinstance(values.get(part), str) and part in SHORTHANDS:
            values[part] = {SHORTHANDS[part]: values[part]}
        elif not isinstance(values.get(part), dict):
            values[part] = {}
        values = values[part]
    values[key[-1]] = value
    return key


def _value(key: KeyPath, text: str) -> Any:
    """The value of an override: YAML, or the text itself for a field that takes text (`task.prompt={question}`)."""
    section = _section_at(key[:-1])
    field = section.model_fields.get(key[-1]) if section else None
    if field and field.annotation in (str, str | None) and text[:1] not in ("", '"', "'") and text != "null":
        return text
    try:
        return read_values(text)
    except ValueError:
        return text


def _lines_of(node: Node | None, path: Path, prefix: KeyPath = (), above: tuple[Node, ...] = ()) -> dict[KeyPath, int]:
    """The line of every key below a YAML node; `above` are the nodes that it lies in, one of which an alias may repeat.

    Raises PollardError for two equal keys, of which YAML readers silently take one, and for keys that are not text.
    """
    lines: dict[KeyPath, int] = {}
    if any(node is other for other in above):
        return lines
    if isinstance(node, MappingNode):
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, ScalarNode):
                raise PollardError(
                    f"{path}, line {line} is not valid YAML for a recipe: a key must be text.", code="recipe.not-yaml"
                )
            at = (*prefix, key.value)
            if at in lines:
                raise PollardError(
                    f"{path}, line {line}: the key `{'.'.join(at)}` stands here twice: line {lines[at]} has it already.",
                    code="recipe.duplicate-key",
                )
            lines[at] = line
            lines |= _lines_of(value, path, at, (*above, node))
    elif isinstance(node, SequenceNode):
        for number, item in enumerate(node.value):
            at = (*prefix, str(number))
            lines[at] = item.start_mark.line + 1
            lines |= _lines_of(item, path, at, (*above, node))
    return lines


def _place(key: KeyPath, places: Mapping[KeyPath, str], file: str) -> str:
    """Where a key is set, or the section that it is missing from."""
    return next((places[key[:n]] for n in range(len(key), 0, -1) if key[:n] in places), file)


def _explain(fault: ErrorDetails, places: Mapping[KeyPath, str], file: str) -> str:
    """One fault as one line: where, which key, what is wrong, what to write instead."""
    location = tuple(map(str, fault["loc"]))
    where = _place(location, places, file)
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
    if isinstance(fault["input"], dict) and _section_at(location):  # a rule over several keys: what was given is all of them
        return f"{where}: {f'`{key}`: ' if location else ''}{message}."
    return f"{where}: `{key}`: {message} (given: {fault['input']!r})."


def _section_at(location: KeyPath) -> type[Section] | None:
    """The section at this key path; None where there is none."""
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
