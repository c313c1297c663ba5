"""Formats numbers for reports and the terminal alike. None becomes a dash."""

from collections.abc import Sequence

MISSING = "–"


def percent(fraction: float | None, digits: int = 1) -> str:
    """0.962 -> "96.2 %"."""
    return MISSING if fraction is None else f"{100 * fraction:.{digits}f} %"


def interval(ends: tuple[float, float]) -> str:
    """An interval of fractions: (0.941, 0.976) -> "94.1–97.6 %"."""
    low, high = ends
    return f"{100 * low:.1f}–{100 * high:.1f} %"


def count(number: int | None) -> str:
    return MISSING if number is None else f"{number:,}"


def ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers: [0, 1, 2, 5, 7, 8] -> "0–2, 5, 7–8"."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(f"{first}–{last}" if first < last else str(first) for first, last in parts)


def points(difference: float) -> str:
    """A difference of two fractions in percentage points, with its sign: -0.006 -> "−0.6"."""
    rounded = round(100 * difference, 1)
    return f"{rounded:+.1f}".replace("-", "−") if rounded else "0.0"


def change(ratio: float | None) -> str:
    """A ratio to what was before, as the change that it is: 0.551 -> "−45 %", 1.02 -> "+2.0 %"."""
    if ratio is None:
        return MISSING
    percents = 100 * (ratio - 1)
    digits = 0 if abs(percents) >= 9.95 else 1
    return f"{percents:+.{digits}f} %".replace("-", "−") if round(percents, 1) else "0.0 %"


def plain_points(number: float) -> str:
    """A number of percentage points as people write it: 2.0 -> "2", 0.5 -> "0.5"."""
    return f"{number:g}"


def p_value(p: float) -> str:
    """A p value: "p = 0.41", "p = 0.003", "p < 0.001"."""
    if p < 0.001:
        return "p < 0.001"
    return f"p = {p:.2f}" if p >= 0.0995 else f"p = {p:.3f}"


def loss(nats: float | None) -> str:
    """Nats per token, with four digits: 0.0017 is a good model's."""
    return MISSING if nats is None else f"{nats:.4f}"


def signed_loss(nats: float | None) -> str:
    """A difference of two losses, with its sign: "+0.3512", "−0.0020"."""
    if nats is None:
        return MISSING
    rounded = round(nats, 4)
    return f"{rounded:+.4f}".replace("-", "−") if rounded else "0.0000"


def with_error(value: float | None, error: float | None) -> str:
    """A value with its standard error, where that is known: "0.5120 ± 0.0130"."""
    return loss(value) + (f" ± {loss(error)}" if error is not None else "")


def percent_with_error(fraction: float | None, error: float | None) -> str:
    """ "91.2 ± 0.4 %"."""
    if fraction is None or error is None:
        return percent(fraction)
    return f"{100 * fraction:.1f} ± {100 * error:.1f} %"


def amount(number: int | None) -> str:
    """4_190_000 -> "4.19 M"."""
    if number is None:
        return MISSING
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:,.2f} {unit}"
    return f"{number:,}"


def size(count: int | None) -> str:
    """Bytes: 16_777_216 -> "16.0 MiB"; from 10 GiB on in GiB."""
    if count is None:
        return MISSING
    return f"{count / 2**30:,.1f} GiB" if count >= 10 * 2**30 else f"{count / 2**20:,.1f} MiB"


def precise_size(count: int) -> str:
    """Bytes where sizes are close to each other: 3_712_345 -> "3.54 MiB", 12_800_000_000 -> "11.92 GiB"."""
    for unit, bytes_ in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20)):
        if count >= bytes_:
            return f"{count / bytes_:,.2f} {unit}"
    return f"{count / 2**10:,.2f} KiB"


def speed(tokens_per_second: float | None) -> str:
    return MISSING if tokens_per_second is None else f"{tokens_per_second:,.0f}"


def mean_count(number: float | None) -> str:
    """A mean of counts: "41.3"."""
    return MISSING if number is None else f"{number:,.1f}"


def seconds_each(seconds: float | None) -> str:
    """What one of many took, with two significant digits: "0.034 s", "1.5 s", "120 s"."""
    if seconds is None:
        return MISSING
    return (
        f"{seconds:,.0f} s"
        if seconds >= 9.95
        else f"{float(f'{seconds:.2g}'):.{1 if seconds >= 0.995 else 2 if seconds >= 0.0995 else 3}f} s"
    )


def duration(seconds: float | None) -> str:
    """5.23 -> "5.2 s"; 200 -> "3 min 20 s"; 8040 -> "2 h 14 min"."""
    if seconds is None:
        return MISSING
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
