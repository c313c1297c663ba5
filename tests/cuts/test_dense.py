"""The dense form: what goes into it, what comes out of it, and what is refused."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from companions import FILES, LEFT, add_companions
from conftest import logits_of, raises, tiny_model
from drawn_plan import drawn_plan
from families import tiny_family
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from toolkit.cuts import (
    DenseBlock,
    Plan,
    apply_plan,
    dense_twin,
    dense_writer,
    masked,
    merged_model,
    prune_checkpoint,
    tensor_writer,
    with_fixed_gates,
)
from toolkit.cuts.checkpoint import EXPERTS_FOLDER
from toolkit.moe import find_blocks, sizes


def dense_plan(model: PreTrainedModel, keep: int = 4, coefficient: float = 0.3, **shape: Any) -> Plan:
    plan = drawn_plan(model, keep, **shape)
    blocks = {name: DenseBlock(coefficients=[coefficient + 0.1 * n for n in range(keep)]) for name in plan.blocks}
    return plan.model_copy(update={"form": "dense", "dense": blocks})


def with_fixed(model: PreTrainedModel, plan: Plan) -> torch.Tensor:
    """Logits of the masked model with the plan's gate weights."""
    assert plan.dense is not None
    with with_fixed_gates(model, plan.dense, {name: block.kept for name, block in plan.blocks.items()}), masked(model, plan):
        return logits_of(model)


@pytest.fixture
def model(tmp_path: Path) -> PreTrainedModel:
    model = tiny_model("mixtral", num_hidden_layers=4)
    model.save_pretrained(tmp_path / "original")
    return model


def test_every_cut_goes_into_it(model: PreTrainedModel, tmp_path: Path) -> None:
    plan = dense_plan(model, width=8, layers=[0, 2, 3])
    prune_checkpoint(tmp_path / "original", plan, tmp_path / "dense")
    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    assert (dense.config.model_type, dense.config.num_hidden_layers, dense.config.intermediate_size) == ("mistral", 3, 4 * 8)
    expected = with_fixed(model, plan)
    assert (logits_of(dense) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_one_expert_with_a_gate_of_one_is_the_pruned_model(model: PreTrainedModel) -> None:
    plan = dense_plan(model, keep=1, coefficient=1.0)
    with masked(model, plan):
        expected = logits_of(model)
    dense = merged_model(apply_plan(model, plan), plan.dense or {})
    assert torch.allclose(logits_of(dense), expected, rtol=0, atol=1e-6)


def test_bytes_fall_like_the_experts_and_every_parameter_is_active(model: PreTrainedModel) -> None:
    whole, pruned = sizes(model), sizes(apply_plan(model, drawn_plan(model, 4)))
    dense = sizes(dense_twin(model).model)
    routers = sum(p.numel() for block in find_blocks(model) for p in block.router.parameters())
    assert dense.active_parameters == dense.parameters == pruned.parameters - routers
    assert pruned.active_parameters < dense.active_parameters < whole.parameters


def test_layers_that_are_dense_already_are_filled_up_with_zeros() -> None:
    model = tiny_family("deepseek_v3", intermediate_size=40)
    plan = dense_plan(model)
    state = merged_model(apply_plan(model, plan), plan.dense or {}).state_dict()
    wide = state["model.layers.0.mlp.down_proj.weight"]
    assert wide.shape[1] == state["model.layers.1.mlp.down_proj.weight"].shape[1] == 4 * 24 + 24 > 40
    assert torch.equal(wide[:, :40], model.state_dict()["model.layers.0.mlp.down_proj.weight"]) and not wide[:, 40:].any()


def test_the_configuration_is_the_twins_and_the_companions_come_along(model: PreTrainedModel, tmp_path: Path) -> None:
    add_companions(tmp_path / "original", without="skipping.json")
    prune_checkpoint(tmp_path / "original", dense_plan(model), tmp_path / "dense")
    written = json.loads((tmp_path / "dense" / "config.json").read_text())
    assert (written["model_type"], written["architectures"], written["a_key_of_another_reader"]) == (
        "mistral", ["MistralForCausalLM"], {"b": [1]},
    )  # fmt: skip
    assert not [key for key in written if "expert" in key or "router" in key or key == "auto_map"]
    assert written["sliding_window"] is None  # the twin's own default is another
    assert all((tmp_path / "dense" / name).read_bytes() == content.encode() for name, content in FILES.items())
    assert not [name for name in LEFT if (tmp_path / "dense" / name).exists()]


def test_a_number_is_rounded_once(model: PreTrainedModel, tmp_path: Path) -> None:
    model.bfloat16().save_pretrained(tmp_path / "original")
    plan = dense_plan(model)
    prune_checkpoint(tmp_path / "original", plan, tmp_path / "dense")
    written = load_file(tmp_path / "dense" / "model.safetensors")["model.layers.0.mlp.down_proj.weight"]
    experts, first = find_blocks(model)[0].experts, next(iter(plan.blocks.values())).kept[0]
    exact = experts.down_proj[first].double() * 0.3  # type: ignore[index, operator, union-attr]
    assert written.dtype == torch.bfloat16 and torch.equal(written[:, : exact.shape[1]], exact.bfloat16())


def test_killed_anywhere_and_started_again_it_is_what_an_undisturbed_one_is(
    model: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = dense_plan(model)
    monkeypatch.setattr(tensor_writer, "FILE_BYTES", 1)  # a file for every layer
    prune_checkpoint(tmp_path / "original", plan, tmp_path / "undisturbed")
    real, written = dense_writer.write_tensors, []

    def kill(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        real(path, tensors)
        written.append(path.name)

    monkeypatch.setattr(dense_writer, "write_tensors", kill)
    with pytest.raises(KeyboardInterrupt):
        prune_checkpoint(tmp_path / "original", plan, tmp_path / "dense")
    assert not (tmp_path / "dense").exists()
    again: list[str] = []
    monkeypatch.setattr(dense_writer, "write_tensors", lambda path, tensors: (again.append(path.name), real(path, tensors)))
    prune_checkpoint(tmp_path / "original", plan, tmp_path / "dense")
    assert len(written) == 2 and not {*written} & {*again} and len(again) == 3  # the rest, and two of four layers
    files = {path.name: path.read_bytes() for path in (tmp_path / "dense").iterdir() if path.name != "pollard.json"}
    assert files == {p.name: p.read_bytes() for p in (tmp_path / "undisturbed").iterdir() if p.name != "pollard.json"}
    assert not (tmp_path / f"dense{EXPERTS_FOLDER}").exists()


def test_a_plan_without_the_form_is_written_as_ever(model: PreTrainedModel, tmp_path: Path) -> None:
    plan = drawn_plan(model, 4)
    assert not {"form", "dense"} & plan.model_dump().keys()
    dense = dense_plan(model)
    dense.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == dense
    assert dense.without_form == plan and dense.choice() != plan.choice() and dense.summary()["form"] == "dense"


@pytest.mark.parametrize("broken", [{"dense": None}, {"form": None}, {"dense": {"model.layers.0.mlp": {"coefficients": [1.0]}}}])
def test_a_plan_whose_coefficients_do_not_fit_is_refused(model: PreTrainedModel, tmp_path: Path, broken: dict) -> None:
    values = dense_plan(model).model_dump() | broken
    (tmp_path / "plan.json").write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    with raises("plan.invalid", "coefficients"):
        Plan.load(tmp_path / "plan.json")


def test_a_quantized_model_is_refused(model: PreTrainedModel, tmp_path: Path) -> None:
    config = json.loads((tmp_path / "original" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (tmp_path / "original" / "config.json").write_text(json.dumps(config))
    with raises("dense.quantized", "fp8", "pruning.form"):
        prune_checkpoint(tmp_path / "original", dense_plan(model), tmp_path / "dense")


def test_a_family_without_a_twin_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    model = tiny_family("olmoe")
    model.save_pretrained(tmp_path / "original")
    with raises("dense.no-twin", "olmoe"):
        prune_checkpoint(tmp_path / "original", dense_plan(model), tmp_path / "dense")
    assert [path.name for path in tmp_path.iterdir()] == ["original"]


def test_a_block_that_computes_more_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A family of tomorrow, of which nobody has said that its blocks multiply what the experts give."""
    from toolkit.cuts import dense_twins

    monkeypatch.setattr(dense_twins, "DIFFERENT", {})
    model = tiny_family("minimax_m3_vl")
    model.save_pretrained(tmp_path / "original")
    with raises("dense.no-twin", "more than a sum"):
        prune_checkpoint(tmp_path / "original", dense_plan(model), tmp_path / "dense")
    assert not (tmp_path / "dense").exists()
