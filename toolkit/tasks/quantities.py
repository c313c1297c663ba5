"""Numbers as people write them, read exactly, and the units behind them.

"1,234.5"  "-$5"  ".5"  "3/4"  "1 1/2"  "½"  "1e-05"  "2.5 x 10^3"  "1.5 million"  "\\frac{3}{4}"      one number each
"3,5,7"  "2,25"  "12 or 13"  "3:30"  "1/2/2020"  "2π"  "48 + 24"                                        none

Commas and thin spaces separate thousands, and commas nothing else. A unit, a currency or a percent sign may stand around a
number and does not change it: 25% is 25, as the answers of GSM8K have it. Values are fractions of integers, so 0.75 is 3/4 and
0.333 is not 1/3.

Units of measurement may stand behind a number in LaTeX or in words: 10 inches are not 10 cm. A missing unit is forgiven, and
a word that is no unit known here ("12 students") means nothing.
"""

import re
import unicodedata
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

LARGEST_EXPONENT = 1000  # 10^(10^9) would take more memory than there is
SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
SUPERSCRIPTS = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")

_CURRENCY = r"[$€£¥₹]"
_NUMBER = re.compile(
    rf"""
    (?<![A-Za-z\d])(?<![A-Za-z]\^)(?<![A-Za-zπ]/)          # not the 2 of H2O, cm^2, π/2
    (?P<spoilt_before>(?:√|±|\\pm|\\sqrt)\s?\{{?\s?)?
    (?P<sign>(?<![\w)])[-+])?{_CURRENCY}?(?P<sign_behind>-)?   # the - of 10-12 is no sign
    (?:
      (?P<whole>\d+)[ ](?P<part>\d+)\s?/\s?(?P<of>\d+)
    | (?P<above>\d+)[ ]?/[ ]?(?P<below>\d+)
    | 10(?:\s?(?:\^|\*\*)\s?[{{(]?(?P<power_alone>[-+]?\d+)[)}}]?|(?P<raised_alone>[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+))
    | (?P<decimal>(?:[1-9]\d{{0,2}}(?:,\d{{3}})+(?!\d)|\d+)(?:\.\d+)?|(?<![\w.])\.\d+)
      (?: [eE](?P<exponent>[-+]?\d+)(?![A-Za-z\d])
        | \s?(?:[x×*·]|\\times|\\cdot)\s?10(?:\s?(?:\^|\*\*)\s?[{{(]?(?P<power>[-+]?\d+)[)}}]?|(?P<raised>[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+))
        | [ ](?P<scale>{"|".join(SCALES)})s?\b
      )?
    )
    (?P<spoilt_behind>(?:[.,:/'’_]\d|[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]|\s?\^|\*\*[\s(]?\d|\s?(?:π|√|\\pi|\\sqrt)|[xyzi](?![A-Za-z\d]))[\d.,:/]*)?
    """,
    re.VERBOSE,
)
_THIN = r"(?:[\u00a0\u2009\u202f]|\\[, ])"
_THIN_THOUSANDS = re.compile(rf"(?<![\d.,])[1-9]\d{{0,2}}(?:{_THIN}\d{{3}})+(?![\d/])")
_MINUS = re.compile(
    r"(^|[=:(*]|\b(?:is|are|be|was|equals|about)\b)(\s*)(?:(?:minus|negative)\s+|–)(?=[$\d.])", re.IGNORECASE | re.MULTILINE
)
_VULGAR = re.compile("[¼½¾⅐-⅞]")
_LATEX_FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{\s*(-?\d+)\s*\}|(\d))\s*(?:\{\s*(\d+)\s*\}|(\d))")
_EQUALS = re.compile(r"=[\s*_\\({]*$")
_JOINED = re.compile(r"(?:\b(?:or|and|to|plus|minus|times)\s*|[-–—+*/×÷·,;&|]\s*|^\s*)$", re.IGNORECASE)
_HEDGED = re.compile(r"\s*,?\s*(?:(?:or|and)\s*|[+*×÷]\s*|\s[-–]\s)", re.IGNORECASE)
_CALCULATED = re.compile(r"\s*(?:[+×÷=!<>±]|\*\s?[A-Za-z(]|\\(?:times|cdot|pm)|-\s*(?:[a-z]\b|\())")
_IN_WORDS = re.compile(r"\band\s+an?\s|\b(?:or|minus)\b|[+×÷<>±]", re.IGNORECASE)


class Number(NamedTuple):
    """`undivided`: written as a fraction that comes out whole ("6/2"), which is a calculation not carried out."""

    value: Fraction
    undivided: bool = False

    def matches(self, gold: "Number") -> bool:
        """Whether it is a right answer where `gold` is the gold one: 0.75 matches 3/4, and 6/2 does not match 3."""
        return self.value == gold.value and (gold.undivided or not self.undivided)


def normalized_numbers(text: str) -> str:
    """The text with one way to write minus signs, fractions and spaces, and without bold type."""
    text = text.replace("\N{MINUS SIGN}", "-").replace("\\$", "$").replace("\\%", "%").replace("{,}", ",").replace(",\\!", ",")
    text = _MINUS.sub(r"\1\2-", _THIN_THOUSANDS.sub(lambda found: re.sub(_THIN, "", found[0]), text))
    text = re.sub(r"[\u00a0\u2009\u202f~]|\\[,;!: ]", " ", text)
    text = re.sub(r"(?<!\d)\*\*|\*\*(?!\s?[\d({])|__", "", text)
    text = re.sub(r"(\d?)" + _LATEX_FRACTION.pattern, _as_one_line, text)
    return _VULGAR.sub(_as_digits, text).replace("\N{FRACTION SLASH}", "/")


def _as_one_line(found: re.Match[str]) -> str:
    before, *parts = found.groups()
    above, below = (part for part in parts if part is not None)
    return f"{before} {above}/{below}" if before else f"{above}/{below}"


def _as_digits(found: re.Match[str]) -> str:
    before = found.string[max(found.start() - 1, 0) : found.start()]
    return (" " if before.isdigit() else "") + unicodedata.normalize("NFKC", found[0])


def numbers_in(text: str) -> list[re.Match[str]]:
    """Everything in a `normalized_numbers` text that looks like a number, also what `value_of` finds to be none ("3,5,7")."""
    return list(_NUMBER.finditer(text))


def value_of(found: re.Match[str]) -> Number | None:
    parts = found.groupdict()
    if parts["spoilt_before"] or parts["spoilt_behind"]:
        return None
    try:
        number = _size_of(parts)
    except (ValueError, ZeroDivisionError):  # thousands of digits; nothing to divide by
        return None
    if number is None or "-" not in (parts["sign"], parts["sign_behind"]):
        return number
    return number._replace(value=-number.value)


def _size_of(parts: dict[str, str | None]) -> Number | None:
    if parts["whole"]:
        fraction = Fraction(int(parts["part"] or 0), int(parts["of"] or 0))
        return Number(int(parts["whole"]) + fraction) if fraction < 1 else None
    if parts["above"]:
        fraction = Fraction(int(parts["above"]), int(parts["below"] or 0))
        return Number(fraction, undivided=fraction.denominator == 1)
    mantissa = Fraction((parts["decimal"] or "1").replace(",", ""))
    written = (parts[name] for name in ("exponent", "power", "power_alone", "raised", "raised_alone"))
    exponent = next((int(power.translate(SUPERSCRIPTS)) for power in written if power), SCALES.get(parts["scale"] or "", 0))
    return Number(mantissa * Fraction(10) ** exponent) if abs(exponent) <= LARGEST_EXPONENT else None


def sole_number(text: str) -> Number | None:
    """The number that a text is, apart from units; None where it holds several, none, or a number and more to calculate."""
    text = normalized_numbers(text).strip()
    found = numbers_in(text)
    if len(found) != 1:
        return None
    before, behind = text[: found[0].start()], text[found[0].end() :]
    if _CALCULATED.match(behind) or _IN_WORDS.search(behind) or _IN_WORDS.search(before):
        return None
    return value_of(found[0])


def leading_number(text: str, computed: bool = True) -> Number | None:
    """The first number of a text. Where it is joined to the next, as in "12 or 13", there is none; but `computed` takes 72 of
    "48 + 24 = 72"."""
    text = normalized_numbers(text)
    found = numbers_in(text)
    equals = False
    for position, number in enumerate(found):
        following = found[position + 1] if position + 1 < len(found) else None
        between = text[number.end() : following.start()] if following else ""
        equals_next = bool(_EQUALS.search(between))
        if following is None or re.search(r"[.!?]\s", between) or not (equals_next or _JOINED.search(between)):
            return value_of(number) if number is found[0] or (computed and equals) else None
        equals = equals_next
    return None


def last_number(text: str) -> Number | None:
    """The last number of a text; none where it is one of several to choose from or to calculate with ("12 or 13")."""
    text = normalized_numbers(text)
    found = numbers_in(text)
    if not found or _only_numbers(text, found) or _is_hedged(text, found):
        return None
    return value_of(found[-1])


def _only_numbers(text: str, found: Sequence[re.Match[str]]) -> bool:
    """A list: several numbers with nothing but commas or spaces between."""
    return len(found) > 1 and not _NUMBER.sub("", text).strip(" \n\t,;")


def _is_hedged(text: str, found: Sequence[re.Match[str]]) -> bool:
    return len(found) > 1 and bool(_HEDGED.fullmatch(text[found[-2].end() : found[-1].start()]))


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
