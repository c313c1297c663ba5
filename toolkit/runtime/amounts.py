"""Amounts as people write them: "12G" bytes, "7B" parameters."""

import re

BYTES = {"M": 2**20, "G": 2**30, "T": 2**40}
DECIMAL_BYTES = {"MB": 10**6, "GB": 10**9, "TB": 10**12}
COUNTS = {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
NUMBER_AND_UNIT = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", re.ASCII)


def bytes_in(text: str | int) -> int:
    """ "12G" and "12GiB" -> 12 * 2**30, "12GB" -> 12 * 10**9; a whole number is bytes. Raises ValueError for anything else."""
    if isinstance(text, int) and not isinstance(text, bool):
        return _positive(text, text)
    found = NUMBER_AND_UNIT.fullmatch(str(text).strip())
    unit = found[2].upper() if found else ""
    size = DECIMAL_BYTES.get(unit) or BYTES.get(unit.removesuffix("IB"))
    if not found or not size:
        number = found[1] if found else "12"
        raise ValueError(
            f"{text} is no number of bytes: write a number and its unit, e.g. {number}G (GiB; also M, T) or {number}GB"
        )
    return _positive(int(float(found[1]) * size), text)


def parameters_in(text: str | int) -> int:
    """ "7B" -> 7 * 10**9, "1.5M" -> 1_500_000; a whole number is itself. Raises ValueError for anything else."""
    if isinstance(text, int) and not isinstance(text, bool):
        return _positive(text, text)
    found = NUMBER_AND_UNIT.fullmatch(str(text).strip())
    size = COUNTS.get(found[2].upper()) if found else None
    if not found or not size:
        number = found[1] if found else "7"
        raise ValueError(f"{text} is no number of parameters: write a number and its unit, e.g. {number}B (also K, M, T)")
    return _positive(round(float(found[1]) * size), text)


def _positive(number: int, text: str | int) -> int:
    if number < 1:
        raise ValueError(f"{text} is nothing at all")
    return number
