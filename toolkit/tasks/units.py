"""Units of measurement behind a number, in LaTeX or in words: what is 10 inches is not 10 cm.

A missing unit is forgiven, and a word that is no unit known here ("12 students") means nothing.
"""

import re
from typing import NamedTuple

_NAMES = {
    "in": "inch inches",
    "ft": "foot feet",
    "yd": "yard yards",
    "mi": "mile miles",
    "mm": "millimeter millimeters millimetre millimetres",
    "cm": "centimeter centimeters centimetre centimetres",
    "m": "meter meters metre metres",
    "km": "kilometer kilometers kilometre kilometres",
    "mg": "milligram milligrams",
    "g": "gram grams",
    "kg": "kilogram kilograms",
    "lb": "lbs pound pounds",
    "oz": "ounce ounces",
    "s": "sec secs second seconds",
    "min": "mins minute minutes",
    "h": "hr hrs hour hours",
    "day": "days",
    "week": "weeks",
    "month": "months",
    "year": "yr yrs years",
    "ml": "milliliter milliliters millilitre millilitres",
    "l": "liter liters litre litres",
    "gal": "gallon gallons",
    "degree": "degrees deg °",
    "radian": "radians rad",
    "dollar": "dollars",
    "cent": "cents",
    "euro": "euros €",
}
_UNITS = {word: unit for unit, words in _NAMES.items() for word in (unit, *words.split())}
_LONG = {unit: words.split()[-1] for unit, words in _NAMES.items() if len(unit) == 1}
_POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
_IN_TEXT = re.compile(r"\\(?:text|mbox|mathrm|textrm|textnormal|operatorname|rm)\s*\{([^{}]*)\}")
_BEHIND_A_NUMBER = re.compile(
    r"(?:\d|[})])\s*(?:(?P<power>square|sq|cubic|cu)\.?\s+)?(?P<unit>[a-z]+|°|€)\.?(?:\s*\^\s*\{?(?P<exponent>[23]))?"
    r"(?:\s*(?:/|\bper\b)\s*(?P<per>[a-z]+))?(?![a-z])(?!(?<=\bin)\s+[a-z])"  # not the word "in"
)
_DOLLARS = re.compile(r"\\\$\s*\d")


class Unit(NamedTuple):
    """`cm^2` is ("cm", 2, None), `miles per hour` is ("mi", 1, "h")."""

    name: str
    power: int = 1
    per: str | None = None


def units_in(text: str) -> set[Unit]:
    """The known units that stand behind numbers in a text or formula."""
    found = {Unit("dollar")} if _DOLLARS.search(text) else set()
    text = _IN_TEXT.sub(_in_words, text.replace("²", "^2").replace("³", "^3"))
    text = re.sub(r"\s*\^\s*\{?\s*\\circ\s*\}?", " degrees ", text)
    text = re.sub(r"\\[,;:! ]|~|\$|\*\*", " ", text).lower()
    for match in _BEHIND_A_NUMBER.finditer(text):
        name, per = match["unit"], match["per"]
        if name in ("mph", "kmh", "kph"):
            found.add(Unit("mi" if name == "mph" else "km", per="h"))
        elif (name in _UNITS and len(name) > 1) or name in "°€":
            power = int(match["exponent"] or _POWERS.get(match["power"] or "", 1))
            found.add(Unit(_UNITS[name], power, _UNITS.get(per, per) if per else None))
    return found


def _in_words(found: re.Match[str]) -> str:
    """Units of one letter by their longer names: outside of `\\text{}` they would be variables."""
    return f" {re.sub(r'[a-z]+', lambda unit: _LONG.get(unit[0], unit[0]), found[1])} "


def units_clash(gold: str, text: str) -> bool:
    """Whether both have units, and the gold one is not among those of the text."""
    right, found = units_in(gold), units_in(text)
    return bool(right and found and not right & found)
