"""Law: geometry follows the numbers."""

import pytest

from toolkit.report.charts import agreement, forest


def test_differences_stand_on_one_scale_that_holds_every_interval_and_zero() -> None:
    found = forest([{"difference": -0.2, "interval": [-0.4, 0.0]}, {"difference": 0.3, "interval": [0.2, 0.4]}])
    assert found is not None
    (low, middle, zero), (_, _, high) = found.rows
    assert low == pytest.approx(100 - high) and zero == found.zero == 50.0
    assert 0 < low < middle < zero < high < 100


def test_nothing_compared_is_no_scale() -> None:
    assert forest([]) is None


def test_a_strip_has_a_bar_for_every_block_and_the_least_is_named() -> None:
    shares = {"layers.3.mlp": 1.0, "layers.4.mlp": 0.25, "layers.5.mlp": 0.0}
    found = agreement({"agreement": {"reap": shares}})
    assert found is not None
    assert found.strips["reap"] == "M0.1 1v-1h.8V1zM1.1 1v-0.25h.8V1z"
    assert found.least["reap"] == (0.0, "5")
    assert agreement(None) is None
