"""The keys that say how much stays: those of `pruning`, and of one step of its schedule (a part of toolkit/recipe/pruning.py)."""

from typing import Any

from pydantic import (
    GetJsonSchemaHandler,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from toolkit.recipe.data import Section

COUNTED = {"keep": "experts", "width": "channels of an expert", "layers": "decoder layers"}
"""The keys that say how much stays, and of what."""


def check_count(key: str, value: Any) -> Any:
    """Raises ValueError unless `value` is a number of at least 1, a fraction in (0, 1), or None."""
    if value is None:
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{key} must be a number of {COUNTED[key]} (4) or a fraction of them (0.5)")
    if (isinstance(value, int) and value < 1) or (isinstance(value, float) and not 0 < value < 1):
        raise ValueError(f"{key} must be an integer of at least 1 or a fraction in (0, 1)")
    return value


class StepRecipe(Section):
    """One step of a schedule: all that stays of the original after it. `6` is short for `{keep: 6}`."""

    keep: int | float | None = None
    """Experts per block. Default: all."""
    width: int | float | None = None
    """Channels per expert. Default: all."""
    layers: int | float | None = None
    """Decoder layers. Default: all."""

    @model_validator(mode="before")
    @classmethod
    def _expand_short_form(cls, step: Any) -> Any:
        if type(step) is int:
            return {"keep": step}
        if not isinstance(step, dict | StepRecipe):
            raise ValueError("a step of a schedule is a number of experts (4), or keys: {keep: 4, width: 0.5}")
        if isinstance(step, dict) and all(value is None for value in step.values()):
            raise ValueError("a step of a schedule says what stays: keep, width or layers")
        return step

    @field_validator("keep", "width", "layers", mode="before")
    @classmethod
    def _is_a_count(cls, value: Any, info: ValidationInfo) -> Any:
        return check_count(str(info.field_name), value)

    @model_serializer(mode="wrap")
    def _short_form(self, dump: SerializerFunctionWrapHandler) -> int | dict[str, Any]:
        values = {key: value for key, value in dump(self).items() if value is not None}
        return self.label if isinstance(self.label, int) else values

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [{"type": "integer", "minimum": 1}, handler(core)]}

    @property
    def name(self) -> str:
        """Of its round's stage and folder: "6", "4-width8-layers3", "width0.5"."""
        parts = [] if self.keep is None else [str(self.keep)]
        parts += [f"{key}{value}" for key, value in (("width", self.width), ("layers", self.layers)) if value is not None]
        return "-".join(parts)

    @property
    def label(self) -> int | str:
        """The number of a step that only cuts experts to one, else words."""
        return self.keep if isinstance(self.keep, int) and self.width is self.layers is None else str(self)

    def __str__(self) -> str:
        """ "6 experts, 0.5 of the width"."""
        words = (("keep", "experts"), ("width", "channels"), ("layers", "layers"))
        found = [(getattr(self, key), of) for key, of in words]
        return ", ".join(
            f"{value} {'of the ' if isinstance(value, float) else ''}{of}" for value, of in found if value is not None
        )
