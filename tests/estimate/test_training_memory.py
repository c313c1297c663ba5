"""The memory that is estimated for DeepSpeed, against the tensors that it makes on two real ranks."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, raises
from rank_launcher import RANKS, ranks
from transformers import AutoConfig

from toolkit.estimate.training_memory import (
    BUCKET,
    STATE_BYTES,
    TrainingModel,
    ZeroSettings,
    checkpoint_bytes,
    state_bytes,
    training_memory,
)
from toolkit.moe import meta_model
from toolkit.runtime.zero import deepspeed_config

MODEL = {
    "model_type": "mixtral", "hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 64, "num_local_experts": 4, "num_experts_per_tok": 2, "vocab_size": 1000,
}  # fmt: skip
CASES = {"0, bfloat16": 0, "1, float32": 1, "2, bfloat16": 2, "3, float32": 3, "3-offload, bfloat16": "3-offload"}
NUMBERS = sum(p.numel() for p in meta_model(AutoConfig.for_model(**MODEL)).parameters())


def config_of(zero: int | str, bf16: bool) -> dict[str, Any]:
    """Our preset, with the values that transformers fills in, and buckets in proportion to a small model."""
    config = deepspeed_config(zero) | {
        "train_micro_batch_size_per_gpu": 2, "train_batch_size": 4, "gradient_accumulation_steps": 1,
        "gradient_clipping": 1.0, "bf16": {"enabled": bf16}, "fp16": {"enabled": False},
    }  # fmt: skip
    config["zero_optimization"] |= {"reduce_bucket_size": 600_000, "stage3_param_persistence_threshold": 0}
    for offloaded in ("offload_optimizer", "offload_param"):
        if offloaded in config["zero_optimization"]:
            config["zero_optimization"][offloaded]["pin_memory"] = False  # a CPU has no pinned memory
    return config


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, int]]:
    root = tmp_path_factory.mktemp("zero")
    cases = {name: {"model": MODEL, "config": config_of(zero, name.endswith("bfloat16"))} for name, zero in CASES.items()}
    (root / "cases.json").write_text(json.dumps(cases))
    command = ranks(RANKS, str(Path(__file__).parent / "every_zero.py"), str(root))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=540, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return json.loads((root / "measured.json").read_text())


@pytest.mark.launcher
@pytest.mark.parametrize("name", CASES)
def test_a_rank_holds_what_is_estimated(measured: dict[str, dict[str, int]], name: str) -> None:
    weight = 2 if name.endswith("bfloat16") else 4
    model = TrainingModel(NUMBERS, MODEL["hidden_size"], NUMBERS // 3, trained=NUMBERS, frozen_bytes=0)
    zero = ZeroSettings.of(config_of(CASES[name], weight == 2))
    memory = training_memory(model, zero, ranks=2, weight=weight, optimizer="adamw_torch")
    found, on_rank = measured[name], memory.gpu
    if CASES[name] == "3-offload":  # on a machine without GPUs, what is moved to the host and what is not lie side by side
        assert sum(found[part] for part in ("weights", "optimizer", "gradients and buckets")) == pytest.approx(
            memory.host + on_rank["buckets"], rel=0.15
        )
        assert on_rank["weights"] == on_rank["gradients"] == on_rank["optimizer"] == 0
    else:
        assert found["weights"] == pytest.approx(on_rank["weights"], rel=0.15)
        assert found["optimizer"] == pytest.approx(on_rank["optimizer"], rel=0.15)
        buckets = on_rank["buckets"] if CASES[name] else 0  # ZeRO 0 fills its bucket after the backward pass
        assert found["gradients and buckets"] == pytest.approx(on_rank["gradients"] + buckets, rel=0.15)
    stage = int(str(CASES[name])[0])
    assert found["checkpoint"] == pytest.approx(checkpoint_bytes(NUMBERS, stage, weight, "adamw_torch"), rel=0.15)


def test_states_are_as_large_as_torch_and_bitsandbytes_make_them() -> None:
    from bitsandbytes.optim import AdamW8bit

    kinds = {"adamw_torch": torch.optim.AdamW, "adamw_bnb_8bit": AdamW8bit, "sgd": torch.optim.SGD}
    for name, kind in kinds.items():
        parameter = torch.nn.Parameter(torch.zeros(2**16))
        parameter.grad = torch.ones(2**16)
        optimizer = kind([parameter], lr=1e-3)
        optimizer.step()
        state = [value for value in optimizer.state[parameter].values() if torch.is_tensor(value)]
        held = sum(value.numel() * value.element_size() for value in state if value.numel() > 256)
        assert held / 2**16 == pytest.approx(STATE_BYTES[name], rel=0.05), name


def test_an_unknown_optimizer_is_an_error_that_names_the_known() -> None:
    with raises("estimate.unknown-optimizer", "galore", *STATE_BYTES):
        state_bytes("galore")


def test_partitioned_parts_shrink_with_the_ranks_and_offloaded_ones_leave_the_gpu() -> None:
    model = TrainingModel(10**9, 1024, 10**8, trained=10**9, frozen_bytes=0)

    def held(zero: int | str, ranks: int) -> dict[str, int]:
        return training_memory(model, ZeroSettings.of(deepspeed_config(zero)), ranks, 2, "adamw_torch").gpu

    for stage, parts in {1: ["optimizer"], 2: ["optimizer", "gradients"], 3: ["optimizer", "gradients", "weights"]}.items():
        one, eight = held(stage, 1), held(stage, 8)
        assert {part for part in one if one[part] and one[part] == 8 * eight[part]} == set(parts)
    assert not any(held("3-offload", 8)[part] for part in ("weights", "gradients", "optimizer"))
    assert held(2, 8)["buckets"] == 2 * 2 * BUCKET  # two of them, bfloat16: reserved whole, whatever the model's size
