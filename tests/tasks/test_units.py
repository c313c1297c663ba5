import pytest

from toolkit.tasks.quantities import Unit, units_clash, units_in


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
