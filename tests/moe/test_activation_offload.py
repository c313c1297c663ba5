from typing import Any

import pytest
import torch

from toolkit.moe import activation_offload
from toolkit.moe.activation_offload import ActivationOffload, OffloadedTensors


def held() -> dict[str, Any]:
    hidden = torch.randn(2, 5, 8)
    return {"hidden": hidden, "again": [hidden], "mask": torch.ones(2, 1, 5, 5).bool(), "scale": 1.0, "none": None}


def on_disk(tensor: torch.Tensor) -> bool:
    return tensor.untyped_storage().filename is not None


def test_nothing_moves_while_there_is_room() -> None:
    for place in (ActivationOffload(), ActivationOffload(torch.device("cpu"))):
        tensors = held()
        before = tensors["hidden"].data_ptr()
        offloaded = OffloadedTensors(place)
        offloaded.offload(tensors)
        assert tensors["hidden"].data_ptr() == before
        offloaded.fetch()


def test_past_the_limit_tensors_keep_their_values_on_disk(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path
) -> None:
    monkeypatch.setattr(activation_offload.tempfile, "tempdir", str(tmp_path))
    place, first, second = ActivationOffload(torch.device("cpu")), held(), held()
    place.free_bytes["cpu"] = 500  # bytes: of one of them
    before = {name: second[name].clone() for name in ("hidden", "mask")}
    for tensors in (first, second):
        offloaded = OffloadedTensors(place)
        offloaded.offload(tensors)
    assert not on_disk(first["hidden"])
    assert on_disk(second["hidden"]) and on_disk(second["mask"]) and second["again"][0] is second["hidden"]
    mapped = second["mask"].data_ptr()
    offloaded.fetch()
    second["hidden"] = second["hidden"] + 1  # the layer's output
    offloaded.offload(second)
    assert torch.equal(second["hidden"], before["hidden"] + 1) and torch.equal(second["mask"], before["mask"])
    assert second["mask"].data_ptr() == mapped  # written once
    assert not list(tmp_path.iterdir())  # nothing to clean up, whatever happens
    assert capsys.readouterr().out.count("hidden states beyond 50% of the free memory wait on disk") == 1


def test_the_models_own_tensors_stay() -> None:
    weight = torch.nn.Parameter(torch.randn(4))
    place = ActivationOffload(torch.device("cpu"), [weight])
    place.free_bytes["cpu"] = 0
    OffloadedTensors(place).offload((weight,))
    assert not on_disk(weight)


# A pass needs its bytes twice, once of them where the model is.
def test_capacity_is_what_fits_before_the_disk() -> None:
    place = ActivationOffload(torch.device("cpu"))
    place.free_bytes = {"cpu": 1000}
    assert [place.capacity(needed) for needed in (100, 250, 501)] == [5, 2, 0]
    place.free_bytes = {"cuda:0": 300, "cpu": 1000}
    assert [place.capacity(needed) for needed in (100, 301)] == [3, 0]
    assert place.capacity(0) is None and ActivationOffload().capacity(10**15) is None
