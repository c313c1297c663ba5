"""A text and one of a few words for it.

{"text": "The food was cold.", "label": "negative"}        or "label": 0, the number of the word in `labels`
"""

from collections.abc import Sequence
from typing import Any

from toolkit.errors import PollardError
from toolkit.tasks.preset import Preset

CLASSIFICATION = Preset(
    about="a text and one of a few words for it (`labels`)",
    train="train",
    test="test",
    prompt="{text}\nAnswer with one of: {labels}.",
    completion="{label}",
    scorer="label",
    label="label",
)


def labelled(row: dict[str, Any], column: str, labels: Sequence[str]) -> dict[str, Any]:
    """The row with its label as a word, and all of them as `labels`. Raises PollardError for one that is none of them."""
    if column not in row:
        raise PollardError(f"no field `{column}` (task.label names it). Fields there: {', '.join(row) or 'none'}.")
    said = row[column]
    number = isinstance(said, int) and not isinstance(said, bool)
    if number and 0 <= said < len(labels) and str(said) not in labels:
        said = labels[said]
    said = str(said).strip()
    if said not in labels:
        numbers = f" (or 0 to {len(labels) - 1})" if number else ""
        raise PollardError(f"`{column}` is {row[column]!r}, and the labels are {', '.join(labels)}{numbers}.")
    return row | {"label": said, "labels": ", ".join(labels)}
