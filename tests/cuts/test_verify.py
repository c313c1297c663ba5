import json
from pathlib import Path

import pytest
import torch
from conftest import plan_for, raises, tiny_model
from safetensors.torch import load_file, save_file

from toolkit.cuts.checkpoint import prune_checkpoint
from toolkit.cuts.verify import load_block, sampled_blocks, verify
from toolkit.cuts.writer import PruneJob, plan_prune
from toolkit.moe import find_blocks
from toolkit.moe.model_files import SINGLE
from toolkit.moe.tensor_files import stored_tensors

KEPT = [0, 3, 5, 6]


@pytest.fixture
def job(tmp_path: Path) -> PruneJob:
    """A mixtral that is pruned already, at `tmp_path/pruned`."""
    model = tiny_model("mixtral", num_hidden_layers=4)
    model.save_pretrained(tmp_path / "original")
    prune_checkpoint(tmp_path / "original", plan_for(model, KEPT), tmp_path / "pruned")
    return plan_prune(tmp_path / "original", plan_for(model, KEPT))


def test_what_was_pruned_well_passes_again(job: PruneJob, tmp_path: Path) -> None:
    verify(job, tmp_path / "pruned", oracle=True)
    assert sampled_blocks(job) == ["model.layers.0.mlp", "model.layers.2.mlp", "model.layers.3.mlp"]


@pytest.mark.parametrize("tensor", ["lm_head.weight", "model.layers.1.block_sparse_moe.experts.2.w3.weight"])
def test_one_wrong_bit_in_any_tensor_is_found_and_its_file_removed(tensor: str, job: PruneJob, tmp_path: Path) -> None:
    file = tmp_path / "pruned" / SINGLE
    with file.open("r+b") as stream:
        stream.seek(stored_tensors(tmp_path / "pruned")[tensor].begin + 5)
        byte = stream.read(1)[0]
        stream.seek(-1, 1)
        stream.write(bytes([byte ^ 1]))
    with raises("prune.file-damaged", f"{tensor} in {file}"):
        verify(job, tmp_path / "pruned", oracle=False)
    assert not file.exists()


def test_a_configuration_of_another_model_is_found(job: PruneJob, tmp_path: Path) -> None:
    path = tmp_path / "pruned" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_local_experts": 5, "num_experts": 5}))
    with raises("prune.verification-failed", "its configuration describes another model"):
        verify(job, tmp_path / "pruned", oracle=False)


def test_a_missing_tensor_is_found(job: PruneJob, tmp_path: Path) -> None:
    tensors = load_file(tmp_path / "pruned" / SINGLE)
    del tensors["model.norm.weight"]
    save_file(tensors, tmp_path / "pruned" / SINGLE)
    with raises("prune.verification-failed", "do not hold the tensors they should"):
        verify(job, tmp_path / "pruned", oracle=False)


def test_one_block_is_loaded_and_nothing_else(job: PruneJob) -> None:
    block = load_block(job.model, job.stored, "model.layers.2.mlp")
    expected = find_blocks(tiny_model("mixtral", num_hidden_layers=4))[2].module.state_dict()
    assert all(torch.equal(block.module.state_dict()[name], tensor) for name, tensor in expected.items())
    loaded = {name.rsplit(".mlp.", 1)[0] for name, tensor in job.model.state_dict().items() if not tensor.is_meta}
    assert loaded == {"model.layers.2"}
