"""What to do: a YAML file, overridden key by key on the command line, checked as a whole before anything starts.

    deepspeed toolkit/train.py recipes/math.yaml pruning.keep=2 model=data/playground/model

Starts in an instant: neither torch nor trl is imported here, so names that other rooms register (criteria, scorers)
stand here as literals; a test keeps both in step.
"""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from toolkit.errors import PollardError

Criterion = Literal[
    "random", "frequency", "gate_weight", "soft_activation", "ean", "weighted_ean", "reap", "easy_ep", "max_activation",
    "reconstruction",
]  # fmt: skip
TaskName = Literal[
    "custom", "gsm8k", "playground/arithmetic", "playground/sorting", "playground/reversing", "playground/facts",
    "playground/logic", "playground/code",
]  # fmt: skip
Scorer = Literal["exact", "numeric", "contains"]
ZERO_PRESETS = (0, 1, 2, 3, "3-offload")
ModelRole = Literal["original", "pruned", "recovered"]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelRecipe(Section):
    """The original model. `model: some/id` is short for `model: {path: some/id}`."""

    path: str
    """A folder with a transformers checkpoint, or a hub id."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: float32 on CPU (bfloat16 is slow there), the checkpoint's own on GPU."""


class TaskRecipe(Section):
    """What the model is for. `task: gsm8k` is short for `task: {name: gsm8k}`; what a named task leaves open, or all of
    a `custom` one, is said by the other keys."""

    name: TaskName = "custom"
    dataset: str | None = None
    """Hub id of a data set; `train` and `test` are then its splits."""
    subset: str | None = None
    revision: str | None = None
    train: str | None = None
    """A split of `dataset`, or a local JSONL file."""
    test: str | None = None
    prompt: str | None = None
    """Template over a line's columns, e.g. "{question}"."""
    completion: str | None = None
    """Template of what the model should write."""
    messages: str | None = None
    """Column with chat messages, instead of the templates: the last message, the assistant's, is the completion."""
    answer: str | None = None
    """Template of the text the scorer compares with; the completion unless given."""
    scorer: Scorer | None = None
    dev_examples: int = Field(default=500, ge=1)
    """Carved from train (at most a fifth of it), never trained on: what choices are made with."""


class CalibrationRecipe(Section):
    """Watching the experts on the task's training examples."""

    examples: int = Field(default=512, ge=1)
    batch_size: int = Field(default=8, ge=1)
    max_length: int = Field(default=1024, ge=2)
    """Longer examples are left out, and counted."""


class PruningRecipe(Section):
    """Which experts stay."""

    criterion: Criterion = "weighted_ean"
    keep: int | float = 0.5
    """Experts per block: a number, or a fraction in (0, 1)."""
    tokens: Literal["all", "prompt", "completion"] = "all"
    """Which tokens' statistics decide."""
    mode: Literal["layerwise", "progressive"] = "layerwise"
    """Of `reconstruction`: every block by itself, or one after the other on what the pruned ones before it pass on."""

    @field_validator("keep", mode="before")
    @classmethod
    def _keep_makes_sense(cls, keep: Any) -> Any:
        if isinstance(keep, bool) or not isinstance(keep, int | float):
            raise ValueError("keep must be a number of experts (4) or a fraction of them (0.5)")
        if (isinstance(keep, int) and keep < 1) or (isinstance(keep, float) and not 0 < keep < 1):
            raise ValueError("keep must be an integer of at least 1 or a fraction in (0, 1)")
        return keep

    @model_validator(mode="after")
    def _reconstruction_takes_all_tokens(self) -> "PruningRecipe":
        if self.criterion == "reconstruction" and self.tokens != "all":
            raise ValueError("reconstruction compares the block's output on all tokens: say tokens: all")
        return self


class FinetuningRecipe(Section):
    """Winning the accuracy back: TRL's SFTTrainer under DeepSpeed."""

    zero: int | str = 2
    """ZeRO stage (0, 1, 2, 3, 3-offload), or the path of a DeepSpeed JSON file."""
    max_length: int = Field(default=1024, ge=2)
    """Longer examples are left out, and counted."""
    examples: int | None = Field(default=None, ge=1)
    """How many training examples to use; all of them unless given."""
    trainer: dict[str, Any] = {}
    """Any field of TRL's SFTConfig (learning_rate, max_steps, optim: adamw_bnb_8bit, …)."""

    @field_validator("zero", mode="before")
    @classmethod
    def _preset_or_file(cls, zero: Any) -> Any:
        if isinstance(zero, bool) or (zero not in ZERO_PRESETS and not str(zero).endswith(".json")):
            raise ValueError(f"{zero!r} is neither a ZeRO preset (0, 1, 2, 3, 3-offload) nor a path to a .json file")
        return zero


class EvaluationRecipe(Section):
    """Measuring on the task's test set, greedily, the same prompts for every model."""

    models: list[ModelRole] = ["original", "pruned", "recovered"]
    examples: int | None = Field(default=None, ge=1)
    """The first n of the test set; all of it unless given."""
    split: Literal["test", "dev"] = "test"
    """`dev` while choosing anything; `test` to report."""
    batch_size: int = Field(default=32, ge=1)
    max_new_tokens: int = Field(default=512, ge=1)


class Recipe(Section):
    """One whole job."""

    name: str
    """Results go to runs/<name>."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    model: ModelRecipe
    task: TaskRecipe
    calibration: CalibrationRecipe = CalibrationRecipe()
    pruning: PruningRecipe = PruningRecipe()
    finetuning: FinetuningRecipe = FinetuningRecipe()
    evaluation: EvaluationRecipe = EvaluationRecipe()

    @model_validator(mode="before")
    @classmethod
    def _expand_shorthands(cls, values: Any) -> Any:
        if isinstance(values, dict):
            # A section whose keys are all commented out reads as null: nothing is said, so its defaults hold
            values = {key: value for key, value in values.items() if value is not None or key not in cls.model_fields}
            for key, field in SHORTHANDS.items():
                if isinstance(values.get(key), str):
                    values[key] = {field: values[key]}
        return values

    @field_validator("name", mode="after")
    @classmethod
    def _name_makes_a_folder(cls, name: str) -> str:
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise ValueError("a name is a folder's: letters, digits, _ . and -, beginning with a letter or digit")
        return name


SHORTHANDS = {"model": "path", "task": "name"}


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
    return yaml.dump(recipe.model_dump(), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in `path` with `key.path=value` overrides applied.

    Raises PollardError listing *all* faults, each with file, line and key, what is allowed, and the likeliest meaning.
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
        raise PollardError(f"{path} is not valid YAML: {error}") from None
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
        raise PollardError("\n".join(faults)) from None


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
    return lines


def _explain(fault: dict[str, Any], lines: dict[tuple[str, ...], str], file: str) -> str:
    """One fault as one line: where, which key, what is wrong, what to write instead."""
    location = tuple(map(str, fault["loc"]))
    where = next((lines[location[:n]] for n in range(len(location), 0, -1) if location[:n] in lines), file)
    key = ".".join(location) or "the recipe"
    if fault["type"] == "extra_forbidden":
        section = _section_at(location[:-1])
        allowed = list(section.model_fields) if section else []
        return (
            f"{where}: `{key}` is not a key of a recipe{did_you_mean(location[-1], allowed)} Allowed here: {', '.join(allowed)}."
        )
    if fault["type"] == "missing":
        return f"{where}: `{key}` is missing."
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
        section = getattr(section.model_fields.get(part), "annotation", None)
        if not (isinstance(section, type) and issubclass(section, Section)):
            return None
    return section


def did_you_mean(word: str, allowed: Sequence[str]) -> str:
    """ ". Did you mean `x`?" where something allowed is close to `word`, else "."."""
    close = difflib.get_close_matches(word, allowed, n=1, cutoff=0.5)
    return f". Did you mean `{close[0]}`?" if close else "."
