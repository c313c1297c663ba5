"""Where a model is held. That answers do not depend on it: tests/test_launch.py."""

import pytest
import torch
from conftest import raises, tiny_model
from small_run import small_recipe

from toolkit.calibration import calibrate
from toolkit.moe import placement
from toolkit.moe.placement import automatic_placement, shard_batches, with_model

GB = 10**9


@pytest.fixture
def two_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As rank 0 of two nodes sees it: two GPUs of 80 GB each on the first, on the second two of 40 GB."""
    monkeypatch.setattr(placement, "device", lambda: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number=0: (0, 80 * GB))
    monkeypatch.setattr(placement, "gather", lambda mine: [mine, mine, (40 * GB, 80 * GB), (40 * GB, 80 * GB)])


# Weights, and a fifth of them for what answering needs beside them.
@pytest.mark.parametrize(("size", "found"), [(33, "copies"), (34, "spread"), (133, "spread"), (134, "zero3"), (200, "zero3")])
def test_the_first_placement_with_room_is_taken(two_nodes: None, size: int, found: str) -> None:
    assert automatic_placement(size * GB) == found


def test_a_model_that_fits_nowhere_says_what_to_do(two_nodes: None) -> None:
    with raises("model.fits-nowhere", "201 GB of weights", "(240 GB;", "3-offload", "evaluation.models=[pruned,recovered]"):
        automatic_placement(201 * GB)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine without a GPU is meant")
def test_without_a_gpu_every_rank_has_a_copy() -> None:
    assert automatic_placement(10**15) == "copies"


def test_what_needs_a_whole_model_refuses_one_in_parts(tiny_checkpoint) -> None:
    recipe = small_recipe(model={"path": str(tiny_checkpoint()), "placement": "zero3"})
    with raises("model.needs-whole-placement", "a sweep masks routers", "model.placement zero3", "model.placement=spread"):
        with_model(recipe, recipe.model.path, None, lambda model: None, why_whole="a sweep masks routers")


# A rank that has fewer batches than another still takes part in every forward pass.
def test_a_batch_of_padding_adds_nothing_to_the_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("mixtral")
    ids = torch.randint(3, 64, (2, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    batches = [{"input_ids": ids, "attention_mask": mask, "completion_mask": mask * (torch.arange(9) > 5)}]
    expected = calibrate(model, batches)
    monkeypatch.setattr(placement, "is_partitioned", lambda model: True)
    monkeypatch.setattr(placement, "shard_in_step", lambda items, filler: [*items, filler, filler])
    filled = shard_batches(model, batches)
    assert len(filled) == 3
    found = calibrate(model, filled)
    assert found.about == expected.about
    assert all(torch.equal(found.vectors[name], vector) for name, vector in expected.vectors.items())
