"""Numbers as people write them, and the units behind them."""

from fractions import Fraction

import pytest

from toolkit.tasks.quantities import Unit, last_number, leading_number, sole_number, units_clash, units_in


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,234,567.50", "1234567.5"),
        ("-$5", "-5"),
        ("$-5", "-5"),
        ("−5", "-5"),
        ("–5", "-5"),
        ("minus 5", "-5"),
        ("It is negative $5.", "-5"),
        ("+5", "5"),
        (r"10\,000", "10000"),
        (r"1\ 234\ 567", "1234567"),
        ("10\u202f000.5", "10000.5"),
        (".5", "1/2"),
        ("3/4", "3/4"),
        ("3 / 4", "3/4"),
        ("-3/4", "-3/4"),
        ("1 1/2", "3/2"),
        ("-1 1/2", "-3/2"),
        ("½", "1/2"),
        ("2½", "5/2"),
        ("2 ⅔", "8/3"),
        (r"\frac{3}{4}", "3/4"),
        (r"\dfrac34", "3/4"),
        (r"-\frac{3}{4}", "-3/4"),
        (r"11\frac56", "71/6"),
        ("1e-05", "1/100000"),
        ("1.5E6", "1500000"),
        ("1e+16", "10000000000000000"),
        ("2.5 x 10^3", "2500"),
        ("2.5 × 10³", "2500"),
        (r"2.5 \times 10^{-3}", "1/400"),
        ("2.5*10**3", "2500"),
        ("10^6", "1000000"),
        ("1.5 million", "1500000"),
        (r"\$1{,}000", "1000"),
        ("**72**", "72"),
        ("*72*", "72"),
        ("72 clips", "72"),
        ("72clips", "72"),
        ("25 %", "25"),
        ("€3.50", "7/2"),
        ("12 cm^2", "12"),
        ("12 m²", "12"),
        ("5 km/h", "5"),
        ("$5/hour", "5"),
        ("a 5-year plan", "5"),
        ("Rs.500", "500"),
        ("x = 5", "5"),
        ("007", "7"),
        ("0.1000000000000000055511151231257827", "0.1000000000000000055511151231257827"),
    ],
)
def test_a_number_is_read_whole_and_exactly(text: str, value: str) -> None:
    for read in (sole_number, leading_number, last_number):
        number = read(text)
        assert number is not None and number.value == Fraction(value)


@pytest.mark.parametrize(
    "text",
    [
        "3,5,7",
        "2,25",
        "1,2345",
        "0,500",
        "12,34",
        "1.234.567",
        "3:30",
        "1/2/2020",
        "2π",
        r"2\pi",
        "√2",
        r"\sqrt{2}",
        "±5",
        "2x",
        "2^5",
        "1/0",
        "2 5/3",
        "1e999999999",
        "9" * 5000,
        "H2O",
        "x^2",
        "seven",
        "",
    ],
)
def test_what_looks_like_a_number_and_is_none_is_read_by_nobody(text: str) -> None:
    assert [read(text) for read in (sole_number, leading_number, last_number)] == [None, None, None]


@pytest.mark.parametrize(
    "text",
    [
        "12 or 13",
        "3, 5",
        "70 000",
        "48 + 24",
        "48 + 24 = 72",
        "8-10",
        "12 dollars and 3 cents",
        "1-1/2",
        "3 and a half",
        "7 minus 5",
        "x minus 5",
        "5²",
        "12'345",
        "1_000",
        "5!",
        "<5",
        "5 or more",
        "3+4i",
        "5 * x",
        "72 clips in 2 months",
    ],
)
def test_several_numbers_or_more_to_calculate_are_not_one_number(text: str) -> None:
    assert sole_number(text) is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("72 clips in 2 months", 72),
        ("72, since 48 + 24 = 72", 72),
        ("72 (48 + 24)", 72),
        ("72. And 3 are left", 72),
        ("25 % of 40", 25),
        ("48 + 24 = 72", 72),
        ("48 clips + 24 clips = 72 clips in 2 months", 72),
        ("48 + 24 = **72**", 72),
        ("6 * 12 = 36 + 36 = 72", 72),
        ("48 + 24", None),
        ("= 36 * 2", None),
        ("12 or 13", None),
        ("3, 5 and 7", None),
        ("70 000", None),
        ("12 dollars and 3 cents", None),
    ],
)
def test_the_first_number_counts_unless_it_is_joined_to_the_next(text: str, value: int | None) -> None:
    found = leading_number(text)
    assert (found and found.value) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("48 in April and 24 in May, and 72 in all", 72),
        ("pages 8-10", 10),
        ("12 or 13", None),
        ("3, 5, 7", None),
        ("48 + 24", None),
    ],
)
def test_the_last_number_of_a_text_is_not_one_of_several_to_choose_from(text: str, value: int | None) -> None:
    found = last_number(text)
    assert (found and found.value) == value


def test_a_division_that_was_not_carried_out_answers_only_one_that_is_none_either() -> None:
    six_halves, three, half, halves = (sole_number(text) for text in ("6/2", "3", "1/2", "2/4"))
    assert six_halves and three and half and halves
    assert not six_halves.matches(three) and three.matches(six_halves) and six_halves.matches(six_halves) and halves.matches(half)


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        (r"10\text{ inches}", Unit("in")),
        ("10 cm", Unit("cm")),
        (r"15\mbox{ cm}^2", Unit("cm", 2)),
        (r"12\text{ square inches}", Unit("in", 2)),
        (r"144 \mbox{ m}^3", Unit("m", 3)),
        (r"5\,\mathrm{m/s}", Unit("m", 1, "s")),
        (r"45\text{ mph}", Unit("mi", 1, "h")),
        ("45 miles per hour", Unit("mi", 1, "h")),
        (r"90^\circ", Unit("degree")),
        (r"\$5.40", Unit("dollar")),
        (r"\frac{648}{\pi} \text{ cm}^2", Unit("cm", 2)),
    ],
)
def test_a_unit_behind_a_number_is_known_however_it_is_written(text: str, unit: Unit) -> None:
    assert units_in(text) == {unit}


@pytest.mark.parametrize("text", [r"81\text{ teachers}", "3x + 2m", "Paris", "5 in total", "12 s", r"9\text{ a.m.}", "cm"])
def test_what_is_no_unit_means_nothing(text: str) -> None:
    assert units_in(text) == set()


@pytest.mark.parametrize(
    ("gold", "text", "clash"),
    [
        ("10 inches", "10 cm", True),
        ("10 inches", "10 in.", False),
        ("10 inches", "10", False),
        ("10", "10 cm", False),
        ("5 cm", r"5\text{ cm}^2", True),
        ("5 kg", "5 g", False),  # a variable, outside of \text{}
        ("5 kg", r"5\text{ g}", True),
        ("10 minutes", "She ran 5 miles in 10 minutes", False),
    ],
)
def test_units_clash_where_both_have_one_and_none_in_common(gold: str, text: str, clash: bool) -> None:
    assert units_clash(gold, text) is clash
