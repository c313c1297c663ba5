import pytest

from toolkit.recovery.training_metrics import entropy_bits


def test_entropy_tells_how_many_experts_are_really_used() -> None:
    assert entropy_bits([5, 5, 5, 5]) == pytest.approx(2.0)  # log2 of four, used alike
    assert entropy_bits([9, 0, 0, 0]) == 0.0
    assert entropy_bits([1, 1, 0, 0]) == pytest.approx(1.0)
    assert 1.0 < entropy_bits([4, 2, 1, 1]) < 2.0
