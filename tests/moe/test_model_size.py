from pathlib import Path

import torch
from conftest import plan_for, tiny_model

from toolkit.cuts.apply import apply_plan
from toolkit.moe import checkpoint_bytes, load_config, sizes, weight_bytes


def test_active_parameters_leave_out_the_experts_a_token_does_not_use() -> None:
    model = tiny_model("mixtral")
    expert = 3 * 32 * 16  # gate, up and down projections of one expert
    total, active = sizes(model)
    assert total - active == 2 * 6 * expert  # two blocks, six of eight idle
    assert sizes(apply_plan(model, plan_for(model, [0, 1]))).active_parameters == active - 2 * 6 * 32  # fewer router rows


def test_bytes_are_those_of_the_weights(tmp_path: Path) -> None:
    model = tiny_model("mixtral", torch.bfloat16)
    model.save_pretrained(tmp_path)
    in_memory = sum(p.numel() * p.element_size() for p in model.parameters())
    assert weight_bytes(load_config(str(tmp_path))) == in_memory
    assert weight_bytes(load_config(str(tmp_path)), "float32") == 2 * in_memory
    assert 0 <= checkpoint_bytes(tmp_path) - in_memory < 20_000  # the file's header
