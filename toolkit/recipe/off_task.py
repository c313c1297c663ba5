"""The key with which a recipe names data that models are measured on beside their task."""

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, SerializerFunctionWrapHandler, model_serializer, model_validator

from toolkit.recipe.data import DataRecipe, named_data

EMBEDDED_TEXTS = Path(__file__).parents[1] / "evaluation" / "off_task.jsonl"


class OffTaskRecipe(DataRecipe):
    """Data that models are measured on beside their task. `true` is short for the texts that come with Pollard, `false` for no
    data."""

    @model_validator(mode="before")
    @classmethod
    def _expand_shorthands(cls, values: Any) -> Any:
        return {} if values is True else named_data(values)

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if self.task and self.text:
            raise ValueError("give either a `task` or a `text` (a .jsonl or .txt file), or `true`")
        return self

    @model_serializer(mode="wrap")
    def _as_written(self, dump: SerializerFunctionWrapHandler) -> Any:
        return True if self.is_embedded and self.examples is None else dump(self)

    @property
    def is_embedded(self) -> bool:
        """Whether these are the texts that come with Pollard."""
        return not self.task and not self.text

    @property
    def source(self) -> DataRecipe:
        """The task or the file that is read."""
        return DataRecipe(text=str(EMBEDDED_TEXTS), examples=self.examples) if self.is_embedded else self

    @property
    def name(self) -> str:
        """The name in messages and reports."""
        return "Pollard's texts" if self.is_embedded else super().name


OffTaskData = Annotated[OffTaskRecipe | None, BeforeValidator(lambda value: None if value is False else value)]
