"""Amounts are read as people write them, or refused with what to write."""

import pytest

from toolkit.runtime.amounts import bytes_in, parameters_in


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("12G", 12 * 2**30), ("12GiB", 12 * 2**30), ("12GB", 12 * 10**9), ("1.5 g", 3 * 2**29), ("7M", 7 * 2**20), ("2T", 2**41),
        (5_000_000, 5_000_000),
    ],
)  # fmt: skip
def test_bytes(text: str | int, number: int) -> None:
    assert bytes_in(text) == number


@pytest.mark.parametrize(("text", "number"), [("7B", 7 * 10**9), ("1.5M", 1_500_000), ("3 b", 3 * 10**9), ("2K", 2000), (9, 9)])
def test_parameters(text: str | int, number: int) -> None:
    assert parameters_in(text) == number


@pytest.mark.parametrize("text", ["12", "12X", "G", "", "-3G", "12 GG", "0G", 0, -1, True])
def test_what_is_no_number_of_bytes_is_refused_with_an_example(text: object) -> None:
    with pytest.raises(ValueError, match=r"write a number and its unit, e\.g\. \S+G|nothing at all"):
        bytes_in(text)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["7", "7G", "B", "", "-7B", "0B", 0, False])
def test_what_is_no_number_of_parameters_is_refused_with_an_example(text: object) -> None:
    with pytest.raises(ValueError, match=r"write a number and its unit, e\.g\. \S+B|nothing at all"):
        parameters_in(text)  # type: ignore[arg-type]
