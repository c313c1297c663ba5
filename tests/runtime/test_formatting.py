import pytest

from toolkit.runtime import formatting as formats


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (formats.percent(0.962), "96.2 %"),
        (formats.change(0.5514), "−45 %"),
        (formats.change(0.998), "−0.2 %"),
        (formats.change(1.02), "+2.0 %"),
        (formats.change(1.0), "0.0 %"),
        (formats.change(0.99999), "0.0 %"),
        (formats.change(3.5), "+250 %"),
        (formats.plain_points(2.0), "2"),
        (formats.plain_points(0.5), "0.5"),
        (formats.percent(0.01834, 2), "1.83 %"),
        (formats.interval((0.9412, 0.9761)), "94.1–97.6 %"),
        (formats.amount(999), "999"),
        (formats.amount(4_190_000), "4.19 M"),
        (formats.amount(46_702_792_704), "46.70 B"),
        (formats.size(16 * 2**20), "16.0 MiB"),
        (formats.size(90 * 2**30), "90.0 GiB"),
        (formats.precise_size(280_000), "273.44 KiB"),
        (formats.precise_size(3_900_000), "3.72 MiB"),
        (formats.precise_size(12 * 10**9), "11.18 GiB"),
        (formats.signed_loss(0.35124), "+0.3512"),
        (formats.signed_loss(-0.002), "−0.0020"),
        (formats.signed_loss(-0.00001), "0.0000"),
        (formats.mean_count(41.26), "41.3"),
        (formats.mean_count(12_345.0), "12,345.0"),
        (formats.seconds_each(0.03412), "0.034 s"),
        (formats.seconds_each(0.0996), "0.10 s"),
        (formats.seconds_each(0.5), "0.50 s"),
        (formats.seconds_each(0.999), "1.0 s"),
        (formats.seconds_each(1.54), "1.5 s"),
        (formats.seconds_each(9.97), "10 s"),
        (formats.seconds_each(1_234.5), "1,234 s"),
        (formats.duration(5.23), "5.2 s"),
        (formats.duration(59.97), "1 min 0 s"),
        (formats.duration(200), "3 min 20 s"),
        (formats.duration(8040), "2 h 14 min"),
    ],
)
def test_numbers_are_written_to_be_read(written: str, expected: str) -> None:
    assert written == expected


def test_what_is_not_known_is_a_dash() -> None:
    writers = (
        formats.percent,
        formats.change,
        formats.amount,
        formats.size,
        formats.speed,
        formats.duration,
        formats.signed_loss,
    )
    writers += (formats.mean_count, formats.seconds_each)
    assert {write(None) for write in writers} == {formats.MISSING}  # type: ignore[operator]
