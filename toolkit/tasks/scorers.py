"""Is this answer right? One small function per rule; SCORERS is all there is."""

import re
from collections.abc import Callable
from decimal import Decimal, InvalidOperation

NUMBER = re.compile(r"(?:(?<!\d)-)?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")  # the - of 10-12 is no sign
MARK = "####"


def final_part(text: str) -> str:
    """What follows the first `####` up to the end of its line; the whole text where there is no mark."""
    _, mark, rest = text.partition(MARK)
    return " ".join((rest.strip().partition("\n")[0] if mark else text).split())


def number_in(text: str) -> Decimal | None:
    """The number after `####`, else the last one in the text; None where there is none."""
    marked = MARK in text
    numbers = NUMBER.findall(final_part(text) if marked else text)
    if not numbers:
        return None
    try:
        return Decimal(re.sub(r"[$,]", "", numbers[0 if marked else -1]))
    except InvalidOperation:
        return None


def exact(prediction: str, gold: str) -> bool:
    """The final part is the same text, apart from white space."""
    return final_part(prediction) == final_part(gold)


def numeric(prediction: str, gold: str) -> bool:
    """The same number: 1,000 = 1000.0 = $1000."""
    right = number_in(gold)
    return right is not None and number_in(prediction) == right


def contains(prediction: str, gold: str) -> bool:
    """The gold text occurs somewhere in the prediction, whatever its case."""
    return final_part(gold).casefold() in prediction.casefold()


SCORERS: dict[str, Callable[[str, str], bool]] = {"exact": exact, "numeric": numeric, "contains": contains}
