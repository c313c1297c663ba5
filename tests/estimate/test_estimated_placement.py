"""Where a model is held while it answers, in bytes, on machines that are not there."""

import json
from pathlib import Path

import pytest
import torch

from toolkit.estimate import Machine, resolve_machine
from toolkit.estimate.model_size import ModelSize, model_size
from toolkit.estimate.placement import LINK_BANDWIDTH, place_model
from toolkit.moe import load_config, meta_model

MIB = 2**20


@pytest.fixture
def model(tmp_path: Path) -> ModelSize:
    """Mixtral's shape, about 50 MiB in bfloat16; two layers."""
    config = {"model_type": "mixtral", "dtype": "bfloat16", "vocab_size": 64, "hidden_size": 256, "intermediate_size": 2048,
              "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    return model_size(meta_model(load_config(str(tmp_path))), torch.bfloat16)


def there(gpus: int, memory: float, nodes: int = 1) -> Machine:
    """GPUs of `memory` MiB."""
    return resolve_machine(gpus, nodes, gpu_memory=f"{memory}M" if gpus else None, cpu_memory="64G")


def test_copies_are_whole_on_every_rank(model: ModelSize) -> None:
    found = place_model(model, there(4, 20, nodes=2), "copies", 3)
    assert (found.gpu, found.host, found.parts, found.copies) == ({"weights": model.bytes}, 0, 1, 8)


def test_spread_is_one_copy_and_what_the_gpus_do_not_hold_is_on_the_host(model: ModelSize) -> None:
    roomy = place_model(model, there(4, 400), "spread", 3)
    assert (roomy.gpu["weights"], roomy.host, roomy.parts, roomy.copies) == (-(-model.bytes // 4), 0, 4, 1)
    assert not roomy.notes
    tight = place_model(model, there(2, 20), "spread", 3)
    layer = model.largest_layer * 2
    assert tight.gpu["weights"] == pytest.approx((0.9 * 2 * 20 * MIB - layer) / 2, abs=2)
    assert tight.host + 2 * tight.gpu["weights"] == pytest.approx(model.bytes, abs=2)
    assert "GiB of its weights are on the host" in tight.notes[0] and tight.description == "one copy over 2 GPUs and the host"
    assert tight.transfer_seconds(10) == 10 * tight.host / LINK_BANDWIDTH
    nothing = place_model(model, there(1, 1), "spread", 3)
    assert (nothing.gpu["weights"], nothing.host) == (0, model.bytes)


def test_without_gpus_spread_is_one_copy_instead_of_one_per_rank(model: ModelSize) -> None:
    spread, copies = (place_model(model, there(0, 0), how, 3) for how in ("spread", "auto"))
    assert (spread.gpu, spread.host, spread.copies) == ({}, model.bytes, 1)
    assert (copies.gpu, copies.host, copies.copies) == ({"weights": model.bytes}, 0, 2)


def test_zero3_is_a_part_on_every_gpu_or_on_the_hosts(model: ModelSize) -> None:
    on_gpus = place_model(model, there(4, 40, nodes=2), "zero3", 3)
    assert on_gpus.gpu == {"weights": -(-model.bytes // 8), "gathered layers": model.bytes}  # all of so small a model
    assert (on_gpus.host, on_gpus.copies) == (0, 8)
    on_hosts = place_model(model, there(4, 40, nodes=2), "zero3", "3-offload")
    assert on_hosts.gpu["weights"] == 0 and on_hosts.host == pytest.approx(model.bytes / 2, abs=8)


@pytest.mark.parametrize(
    ("gpus", "share", "nodes", "where"),
    [
        (2, 1.25, 1, "2 copies"),
        (2, 1.15, 1, "one copy over 2 GPUs"),
        (2, 0.55, 2, "in parts over 4 ranks"),
        (2, 0.29, 1, "one copy over 2 GPUs"),
        (2, 0.29, 2, "one copy over 4 GPUs"),
    ],
)
def test_auto_takes_the_first_that_has_room(gpus: int, share: float, nodes: int, where: str, model: ModelSize) -> None:
    found = place_model(model, there(gpus, share * model.bytes / MIB, nodes), "auto", 3)
    assert found.description.startswith(where)
    assert any("finds no room" in note for note in found.notes) == (share == 0.29)


# Weights that would just fit are still too many for auto, which keeps a fifth for the rest.
@pytest.mark.parametrize("share", [0.2, 0.27, 0.28, 0.299])
def test_what_auto_refuses_does_not_fit(share: float, model: ModelSize) -> None:
    here = there(4, share * model.bytes / MIB)
    assert not here.fits_gpu(sum(place_model(model, here, "auto", 3).gpu.values()))


def test_work_on_a_whole_model_has_no_parts(model: ModelSize) -> None:
    found = place_model(model, there(4, 40), "zero3", 3, whole=True)
    assert (found.parts, found.copies) == (4, 1) and "runs with model.placement=spread only" in found.notes[-1]
