"""Narrower experts: the laws of the cut, its file, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from conftest import logits_of, plan_for, raises, tiny_model
from drawn_plan import drawn_plan
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from toolkit.cuts import ExpertsCut, Plan, WidthCut, apply_plan, check_plan, masked, prune_checkpoint
from toolkit.moe import channel_groups, find_blocks

FAMILIES = ("mixtral", "gpt_oss", "deepseek_v2")  # separate matrices; fused, interleaved, transposed, biases; shared experts


def width_cut(plan: Plan) -> WidthCut:
    cut = plan.cut(WidthCut)
    assert cut
    return cut


# Independent of how `masked` works: by hand, in the weights.
@pytest.mark.parametrize("family", FAMILIES)
def test_masked_is_zeros_in_the_down_projection(family: str) -> None:
    model = tiny_model(family)
    plan = drawn_plan(model, width=6)
    with masked(model, plan):
        found = logits_of(model)
    for group in channel_groups(model, 6):
        down, kept = model.get_parameter(group.down).data, width_cut(plan).channels[group.name]
        gone = torch.ones(*kept.shape[:-1], group.width).scatter(-1, kept, 0.0).bool()
        if group.experts is None:
            down[:, gone] = 0
        else:
            axis = group.tensors[group.down].axis
            down.masked_fill_(gone.unsqueeze(1 if axis == 2 else 2), 0)
    assert torch.equal(found, logits_of(model))


@pytest.mark.parametrize("family", FAMILIES)
def test_permuting_all_channels_changes_nothing(family: str) -> None:
    model = tiny_model(family)
    before = logits_of(model)
    for group in channel_groups(model, 6):
        order = torch.randperm(group.width, generator=torch.Generator().manual_seed(0))
        for name, axis in group.tensors.items():
            rows = axis.channel_of_row.argsort(stable=True).view(group.width, -1)  # of each channel
            moved = torch.empty(rows.numel(), dtype=torch.int64)
            moved[rows] = rows[order]
            parameter = model.get_parameter(name)
            parameter.data = parameter.data.index_select(axis.axis, moved)
    assert (logits_of(model) - before).abs().max() <= 1e-5


def test_full_width_is_the_same_bytes(tmp_path: Path) -> None:
    model = tiny_model("mixtral")
    model.save_pretrained(tmp_path / "original")
    prune_checkpoint(tmp_path / "original", drawn_plan(model, width=16), tmp_path / "cut")
    for before, after in zip(
        *(load_file(tmp_path / name / "model.safetensors").items() for name in ("original", "cut")), strict=True
    ):
        assert before[0] == after[0] and torch.equal(before[1], after[1])


@pytest.mark.parametrize("family", FAMILIES)
def test_experts_and_width_commute(family: str) -> None:
    model, other = tiny_model(family), tiny_model(family)
    both = drawn_plan(model, keep=4, width=6)
    at_once = apply_plan(model, both).state_dict()
    # The other way round: width of all experts first, those that go narrowed to whatever channels
    rows = both.experts.kept
    channels = {
        name: kept if kept.ndim == 1 else torch.arange(6).repeat(8, 1).index_copy(0, torch.tensor(rows[name]), kept)
        for name, kept in width_cut(both).channels.items()
    }
    narrow = Plan(model="tiny", experts_per_token=2, cuts=[WidthCut(criterion="by hand", keep=6, channels=channels)])
    apply_plan(other, narrow)
    one_by_one = apply_plan(other, Plan(model="tiny", experts_per_token=2, cuts=[both.experts])).state_dict()
    assert all(torch.equal(at_once[name], tensor) for name, tensor in one_by_one.items())


def test_a_cut_on_the_meta_device_has_the_same_shapes() -> None:
    model = tiny_model("gpt_oss")
    plan = drawn_plan(model, keep=4, width=6)
    shapes = {name: p.shape for name, p in apply_plan(model.to("meta"), plan).named_parameters()}
    assert shapes == {name: p.shape for name, p in apply_plan(tiny_model("gpt_oss"), plan).named_parameters()}


def test_a_forward_pass_that_fails_leaves_no_mask_behind() -> None:
    model = tiny_model("mixtral")
    plan, before = drawn_plan(model, width=6), logits_of(model)
    with masked(model, plan):
        expected = logits_of(model)
        with pytest.raises(RuntimeError):
            model.model.layers[0].mlp.experts(torch.zeros(2, 5), torch.zeros(2, 2).long(), torch.ones(2, 2))
        assert torch.equal(logits_of(model), expected)
    assert torch.equal(logits_of(model), before)


def test_the_plan_and_its_channels_are_two_files(tmp_path: Path) -> None:
    model = tiny_model("qwen2_moe")
    plan = drawn_plan(model, keep=4, width=8)
    plan.save(tmp_path / "plan.json")
    stored = load_file(tmp_path / "plan.safetensors")
    assert all(stored[block.name].shape == (4, 8) for block in find_blocks(model))
    cut = json.loads((tmp_path / "plan.json").read_text())["cuts"][1]
    assert cut == {
        "kind": "width", "criterion": "by hand", "keep": 8, "file": "plan.safetensors", "checksum": width_cut(plan).checksum,
    }  # fmt: skip
    loaded = Plan.load(tmp_path / "plan.json")
    assert loaded.choice() == plan.choice()
    assert all(torch.equal(kept, width_cut(plan).channels[name]) for name, kept in width_cut(loaded).channels.items())


def test_channels_that_are_missing_damaged_or_another_plans(tmp_path: Path) -> None:
    plan, file = tmp_path / "plan.json", tmp_path / "plan.safetensors"
    model = tiny_model("mixtral")
    drawn_plan(model, width=8).save(plan)
    save_file({name: kept.flip(0) for name, kept in load_file(file).items()}, file)
    with raises("plan.other-channels", file):
        Plan.load(plan)
    file.write_bytes(b"no tensors")
    with raises("plan.no-channels", file):
        Plan.load(plan)
    file.unlink()
    with raises("plan.no-channels", file):
        Plan.load(plan)
    with raises("plan.no-channels", "plan.safetensors"):
        check_plan(model, Plan(model="tiny", experts_per_token=2, cuts=[WidthCut(criterion="by hand", keep=8)]))


def with_channels(model: PreTrainedModel, width: int, change: dict[str, torch.Tensor]) -> Plan:
    plan = drawn_plan(model, keep=4, width=width)
    width_cut(plan).channels |= change
    return plan


def test_a_plan_that_does_not_fit_is_refused() -> None:
    model = tiny_model("mixtral")
    name = find_blocks(model)[0].name
    for code, named, plan in (
        ("plan.other-width", name, with_channels(model, 8, {name: torch.arange(8).repeat(8, 1)})),  # experts that go
        ("plan.other-width", name, with_channels(model, 8, {name: torch.arange(7).repeat(4, 1)})),
        ("plan.channels", "0…15", with_channels(model, 8, {name: torch.arange(9, 17).repeat(4, 1)})),
        ("plan.channels", name, with_channels(model, 8, {name: torch.arange(8).flip(0).repeat(4, 1)})),
        ("plan.other-model", "elsewhere", with_channels(model, 8, {"elsewhere": torch.arange(8)})),
        ("width.out-of-range", "1…16", Plan(model="tiny", experts_per_token=2, cuts=[
            WidthCut(criterion="by hand", keep=17, channels={name: torch.arange(17).repeat(8, 1)})])),
    ):  # fmt: skip
        with raises(code, named):
            check_plan(model, plan)
    with raises("plan.other-model", "model.layers.2.mlp"):
        check_plan(tiny_model("mixtral", num_hidden_layers=3), drawn_plan(model, width=8))


def test_quantized_weights_are_refused() -> None:
    model = tiny_model("mixtral")
    plan = drawn_plan(model, width=8)
    model.config.quantization_config = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    with raises("width.quantized", "fp8", "bfloat16"):
        check_plan(model, plan)


def test_a_width_cut_may_stand_beside_a_format_1_choice_of_experts(tmp_path: Path) -> None:
    """A plan of the first format loads as a cut of experts; narrowing adds to it."""
    model = tiny_model("mixtral")
    old = plan_for(model, [1, 2, 6])
    content = {"format": 1, "model": "tiny", "criterion": "by hand", "keep": 3, "experts_per_token": 2}
    content["blocks"] = {name: {"experts": 8, "kept": block.kept} for name, block in old.blocks.items()}
    (tmp_path / "plan.json").write_text(json.dumps(content))
    experts = Plan.load(tmp_path / "plan.json").cut(ExpertsCut)
    channels = {name: torch.arange(0, 16, 2).repeat(3, 1) for name in old.blocks}
    assert experts
    plan = Plan(model="tiny", experts_per_token=2, cuts=[experts, WidthCut(criterion="by hand", keep=8, channels=channels)])
    with masked(model, plan):
        expected = logits_of(model)
    assert (logits_of(apply_plan(model, plan)) - expected).abs().max() <= 1e-5
