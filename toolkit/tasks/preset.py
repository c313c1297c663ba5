"""What a named task fixes in advance; a recipe's own keys win over it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from toolkit.tasks.data_files import Source


def as_it_is(row: dict) -> dict:
    return row


@dataclass(frozen=True)
class Preset:
    """Defaults for the fields of the same names in `TaskRecipe`; `prepare` cleans a raw line before the templates, `sizes`
    says how many lines a hub data set's splits have, and `about` is one line for `pollard tasks`."""

    about: str = ""
    dataset: str | None = None
    subset: str | None = None
    train: Source | None = None
    test: Source | None = None
    system: str | None = None
    prompt: str | None = None
    completion: str | None = None
    answer: str | None = None
    scorer: str | None = None
    pattern: str | None = None
    labels: Sequence[str] | None = None
    label: str | None = None
    label_format: str | None = None
    choices: str | Sequence[str] | None = None
    cloze: str | None = None
    shots: int = 0
    chat: bool = True
    stop: Sequence[str] = ()
    prepare: Callable[[dict], dict] = as_it_is
    sizes: Mapping[str, int] = field(default_factory=dict)
