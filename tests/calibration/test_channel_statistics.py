"""Laws of the statistics of channels: they are their formulas, wherever the weights come from, and only where asked for.

That two ranks find what one does is shown in test_channel_gradients.py, with all of them.
"""

from pathlib import Path

import pytest
import torch
from conftest import raises, tiny_model
from families import tiny_family
from honest import batches_of
from transformers import PreTrainedModel

from toolkit.calibration import CalibrationSource, calibrate, calibrate_mix
from toolkit.cuts.statistics import ExpertStatistics
from toolkit.moe import MoEBlock, find_blocks

FAMILIES = ("mixtral", "deepseek_v2", "gpt_oss")  # plain; shared experts; transposed, gate and up rows in turns, biases
W, H = 16, 32  # of all tiny models


def with_prompts(count: int, prompt: int = 5) -> list[dict[str, torch.Tensor]]:
    """Batches in which every second sequence ends in padding."""
    batches = batches_of(count)
    for batch in batches:
        batch["completion_mask"] = batch["attention_mask"] * (torch.arange(batch["input_ids"].shape[1]) >= prompt)
    return batches


@torch.no_grad()
def channels_by_the_stock_forward(block: MoEBlock, hidden_TH: torch.Tensor, expert: int) -> torch.Tensor:
    """a [T, W], without a word about layouts: what stock experts return whose down projection is the identity."""
    experts, saved = block.experts, {name: tensor.clone() for name, tensor in block.experts.state_dict().items()}
    experts.down_proj.copy_(torch.eye(W, H) if experts.is_transposed else torch.eye(H, W))
    if experts.has_bias:
        experts.down_proj_bias.zero_()
    index = torch.full((len(hidden_TH), 1), expert)
    found = experts(hidden_TH, index, torch.ones(len(hidden_TH), 1, dtype=hidden_TH.dtype))
    experts.load_state_dict(saved)
    return found[:, :W]


@torch.no_grad()
def energy_by_a_loop(model: PreTrainedModel, batches: list, part: str) -> dict[str, torch.Tensor]:
    """Per block Σ g² a² [E, W], token after token."""
    calls: list[tuple] = []
    blocks = find_blocks(model)
    for block in blocks:
        block.experts.register_forward_pre_hook(lambda experts, args: calls.append(args))
    energy = {block.name: torch.zeros(block.expert_count, W, dtype=torch.float64) for block in blocks}
    for batch in batches:
        calls.clear()
        model.base_model(batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
        real, completion = batch["attention_mask"].bool().flatten(), batch["completion_mask"].bool().flatten()
        counted = real & (completion if part == "completion" else ~completion)
        for block, (hidden_TH, index_TK, gate_TK) in zip(blocks, list(calls), strict=True):
            for expert in range(block.expert_count):
                a_TW = channels_by_the_stock_forward(block, hidden_TH, expert).double()
                gate_T = (gate_TK.double() * (index_TK == expert)).sum(1)
                energy[block.name][expert] += (gate_T**2 * counted) @ a_TW**2
    return energy


@pytest.mark.parametrize("family", FAMILIES)
def test_energy_is_its_formula_over_the_tokens_of_a_part(family: str) -> None:
    batches = with_prompts(2)
    statistics = calibrate(tiny_model(family, torch.float64), batches, channels=True)
    for part in ("prompt", "completion"):
        for block, expected in energy_by_a_loop(tiny_model(family, torch.float64), batches, part).items():
            assert expected.any()
            torch.testing.assert_close(statistics.get(block, "channel_energy", part), expected, rtol=1e-9, atol=0)


def test_the_energy_of_shared_experts_is_that_of_every_token() -> None:
    model, batches, seen = tiny_model("deepseek_v2", torch.float64), with_prompts(2), []
    name = "model.layers.1.mlp.shared_experts"
    statistics = calibrate(model, batches, channels=True)
    model.get_submodule(f"{name}.down_proj").register_forward_pre_hook(lambda module, args: seen.append(args[0].flatten(0, -2)))
    with torch.no_grad():
        for batch in batches:
            model(batch["input_ids"], attention_mask=batch["attention_mask"])
    real = torch.cat([batch["attention_mask"].bool().flatten() for batch in batches])
    expected = (torch.cat(seen)[real] ** 2).sum(0)
    torch.testing.assert_close(statistics.get(name, "channel_energy"), expected.detach(), rtol=1e-9, atol=0)
    assert statistics.about.channels[name].experts is None and statistics.about.channels[name].width == W


def test_facts_of_the_weights_are_the_norms_of_rows_and_columns() -> None:
    mixtral, gpt_oss = tiny_model("mixtral"), tiny_model("gpt_oss")
    layouts = []
    experts = mixtral.model.layers[1].mlp.experts
    gate_up, down = experts.gate_up_proj.detach().double(), experts.down_proj.detach().double()
    layouts.append((mixtral, gate_up[:, :W].norm(dim=2), gate_up[:, W:].norm(dim=2), down.norm(dim=1)))
    experts = gpt_oss.model.layers[1].mlp.experts
    gate_up, down = experts.gate_up_proj.detach().double(), experts.down_proj.detach().double()
    layouts.append((gpt_oss, gate_up[..., 0::2].norm(dim=1), gate_up[..., 1::2].norm(dim=1), down.norm(dim=2)))
    for model, gate, up, down in layouts:
        statistics, block = calibrate(model, with_prompts(1), channels=True), "model.layers.1.mlp"
        torch.testing.assert_close(statistics.of_weights(block, "down_norm"), down, rtol=1e-6, atol=0)
        torch.testing.assert_close(statistics.of_weights(block, "channel_magnitude"), gate * up * down, rtol=1e-6, atol=0)
    model, mlp = tiny_model("deepseek_v2"), "model.layers.1.mlp.shared_experts"
    gate, up, down = (model.get_parameter(f"{mlp}.{name}_proj.weight").detach().double() for name in ("gate", "up", "down"))
    found = calibrate(model, with_prompts(1), channels=True).of_weights(mlp, "channel_magnitude")
    torch.testing.assert_close(found, gate.norm(dim=1) * up.norm(dim=1) * down.norm(dim=0), rtol=1e-6, atol=0)


# Experts without a gate (Nemotron-H) have one row per channel.
def test_experts_without_a_gate_have_two_norms() -> None:
    model = tiny_family("nemotron_h")
    block = find_blocks(model)[0]
    up, down = block.experts.up_proj.detach().double(), block.experts.down_proj.detach().double()
    found = calibrate(model, with_prompts(1), channels=True).of_weights(block.name, "channel_magnitude")
    torch.testing.assert_close(found, up.norm(dim=2) * down.norm(dim=1), rtol=1e-6, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_layer_by_layer_gives_exactly_what_the_loaded_model_gives(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    model.save_pretrained(tmp_path)
    loaded, streamed = (calibrate(source, with_prompts(2), channels=True) for source in (model, tmp_path))
    assert loaded.vectors.keys() == streamed.vectors.keys() and loaded.about.channels == streamed.about.channels
    assert all(torch.equal(vector, streamed.vectors[name]) for name, vector in loaded.vectors.items())


def test_channels_are_observed_where_asked_for_and_change_nothing_else(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    without, with_channels = (calibrate(model, with_prompts(2), channels=channels) for channels in (False, True))
    assert not [name for name in without.vectors if "channel" in name or "down_norm" in name]
    assert all(torch.equal(vector, with_channels.vectors[name]) for name, vector in without.vectors.items())
    without.save(tmp_path)
    assert "channels" not in (tmp_path / "statistics.json").read_text()
    with_channels.save(tmp_path)
    loaded = ExpertStatistics.load(tmp_path)
    assert loaded.about.channels == with_channels.about.channels != {}
    for name, group in loaded.about.channels.items():
        shape = (group.width,) if group.experts is None else (group.experts, group.width)
        assert loaded.get(name, "channel_energy").shape == loaded.of_weights(name, "down_norm").shape == shape


def test_padding_never_counts_for_channels() -> None:
    model, padded = tiny_model("deepseek_v2", torch.float64), with_prompts(3)
    alone = []
    for batch in padded:
        for row in range(2):
            length = int(batch["attention_mask"][row].sum())
            alone.append({name: tensor[row : row + 1, :length] for name, tensor in batch.items()})
    one, other = (calibrate(model, batches, channels=True) for batches in (padded, alone))
    for name, vector in one.vectors.items():
        torch.testing.assert_close(vector, other.vectors[name], rtol=1e-9, atol=1e-12)


def test_in_a_mix_channels_count_by_share() -> None:
    model, batches = tiny_model("deepseek_v2", torch.float64), with_prompts(3)
    parts = [calibrate(model, each, channels=True) for each in (batches[:1], batches[1:])]
    mixed = calibrate_mix(
        model, [CalibrationSource("a", batches[:1], 3.0), CalibrationSource("b", batches[1:], 1.0)], channels=True
    )
    tokens = [part.about.tokens for part in parts]
    for name in mixed.about.channels:
        energies = [part.get(name, "channel_energy", "completion") for part in parts]
        seen = [part.about.blocks["model.layers.1.mlp"].tokens["completion"] for part in parts]
        expected = sum(share * sum(seen) / n * each for share, n, each in zip((0.75, 0.25), seen, energies, strict=True))
        torch.testing.assert_close(mixed.get(name, "channel_energy", "completion"), expected)
        assert torch.equal(mixed.of_weights(name, "down_norm"), parts[0].of_weights(name, "down_norm"))
    assert sum(tokens) == mixed.about.tokens


def test_an_expert_that_no_token_reached_has_channels_without_energy() -> None:
    model = tiny_model("mixtral")
    with torch.no_grad():
        for block in find_blocks(model):
            block.router.weight[1:] = block.router.weight[:1] + 1e-3 * block.router.weight[1:]
    statistics = calibrate(model, [{"input_ids": torch.tensor([[3]]), "attention_mask": torch.ones(1, 1).long()}], channels=True)
    energy, count = (statistics.get("model.layers.0.mlp", name) for name in ("channel_energy", "count"))
    assert torch.equal(energy.sum(1) > 0, count > 0) and (count == 0).sum() == 6
    assert (statistics.of_weights("model.layers.0.mlp", "channel_magnitude") > 0).all()


def test_a_family_whose_experts_cannot_be_narrowed_is_refused_before_anything_runs() -> None:
    with raises("width.several-widths", "12 and 16"):
        calibrate(tiny_family("ernie4_5_vl_moe"), [], channels=True)
