from itertools import combinations

import pytest
from conftest import tiny_model
from honest import batches_of, honest_losses

from toolkit.calibration import calibrate
from toolkit.calibration.exhaustive_search import TABLE_LIMIT
from toolkit.cuts.statistics import SubsetResult


# Whether gate weights are normalised over the chosen experts (rank by rank) or over all that are left (one by one).
@pytest.mark.parametrize("k", [1, 2, 3])
def test_every_entry_is_the_loss_of_running_the_block_over_that_subset(family: str, k: int) -> None:
    model, batches = tiny_model(family, num_experts_per_tok=k), batches_of(3)
    statistics = calibrate(model, batches, reconstruction=True)
    for number, found in enumerate(statistics.about.reconstruction["layerwise"].values()):
        assert found.search == "exhaustive" and found.tokens == found.tokens_searched == 3 * 35
        for keep in (k, 5, 7):
            subsets = list(combinations(range(8), keep))
            table = found.keep[keep].table
            assert list(table) == [",".join(map(str, kept)) for kept in subsets]
            expected = honest_losses(model, batches, number, subsets)
            assert list(table.values()) == pytest.approx(expected, rel=2e-5, abs=1e-5)
            assert found.keep[keep].loss == min(table.values())
            assert table[",".join(map(str, found.keep[keep].kept))] == min(table.values())
        assert found.keep[8] == SubsetResult(list(range(8)), 0.0, table={"0,1,2,3,4,5,6,7": 0.0})


def test_sixteen_experts_are_enumerated_and_only_small_tables_are_written() -> None:
    model, batches = tiny_model("mixtral", num_local_experts=16), batches_of(2)
    found = calibrate(model, batches, reconstruction=True).about.reconstruction["layerwise"]["model.layers.1.mlp"]
    assert found.search == "exhaustive"
    tables = {keep for keep, entry in found.keep.items() if entry.table is not None}
    assert tables == {2, 3, 13, 14, 15, 16} and TABLE_LIMIT == 1000
    some = [found.keep[8].kept, [0, 2, 4, 6, 8, 10, 12, 14]]
    best, other = honest_losses(model, batches, 1, some)
    assert found.keep[8].loss == pytest.approx(best, rel=2e-5) and best < other


def test_of_sets_that_lose_the_same_the_lower_indices_stay() -> None:
    model = tiny_model("mixtral")
    for layer in model.model.layers:
        layer.mlp.experts.down_proj.data.zero_()
    statistics = calibrate(model, batches_of(1), reconstruction=True)
    for found in statistics.about.reconstruction["layerwise"].values():
        assert found.keep[3].kept == [0, 1, 2]
