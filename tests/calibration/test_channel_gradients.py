"""Laws of the backward pass: channels' gradients say what parameters' gradients would, of which there are none.

LLM-Pruner's published rule (block_wise, `vectorize`) scores a channel of an MLP by |sum of w · dL/dw| over the weights of each of
its layers: the rows of gate and up projection, the column of the down projection. It is written out here with autograd.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from conftest import raises, tiny_model
from honest import batches_of
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from toolkit.calibration import CalibrationSource, calibrate, calibrate_mix
from toolkit.calibration.channel_gradients import observe_gradients
from toolkit.cuts.statistics import ExpertStatistics
from toolkit.moe import ChannelGroup, StreamedModel, channel_groups, expert_width, find_blocks
from toolkit.moe.channels import ChannelAxis
from toolkit.runtime.distributed import shard
from toolkit.selection import WidthChoice, choose_channels

W = 16
Batches = list[dict[str, torch.Tensor]]


def with_prompts(count: int, prompt: int = 5) -> Batches:
    """Batches in which every second sequence ends in padding."""
    batches = batches_of(count)
    for batch in batches:
        batch["completion_mask"] = batch["attention_mask"] * (torch.arange(batch["input_ids"].shape[1]) >= prompt)
    return batches


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": W, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes)).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def mlps_of(model: PreTrainedModel) -> list[ChannelGroup]:
    """Of a dense model, by hand: it has no experts whose width the configuration could lower."""
    groups = []
    for number in range(model.config.num_hidden_layers):
        mlp = f"model.layers.{number}.mlp"
        axes = {"gate": 0, "up": 0, "down": 1}
        tensors = {f"{mlp}.{name}_proj.weight": ChannelAxis(axis, torch.arange(W)) for name, axis in axes.items()}
        groups.append(ChannelGroup(mlp, None, W, W // 2, tensors, f"{mlp}.down_proj.weight"))
    return groups


def losses(model: PreTrainedModel, batches: Batches) -> Iterator[torch.Tensor]:
    """Per batch the summed cross entropy of the completion tokens, from plain logits."""
    for batch in batches:
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
        counted = batch["completion_mask"][:, 1:].bool()
        yield cross_entropy(logits[:, :-1][counted], batch["input_ids"][:, 1:][counted], reduction="sum")


def weights_times_gradients(model: PreTrainedModel, batches: Batches) -> dict[str, torch.Tensor]:
    """w · dL/dw of every parameter: what LLM-Pruner calls salience."""
    model.zero_grad()
    for loss in losses(model, batches):
        loss.backward()
    found = {name: p.detach() * p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def both_parts(vectors: dict[str, torch.Tensor], name: str, statistic: str) -> torch.Tensor:
    return vectors[f"{name}/{statistic}/prompt"] + vectors[f"{name}/{statistic}/completion"]


def test_taylor_chooses_what_the_published_rule_of_llm_pruner_chooses() -> None:
    model, batches = tiny_llama(), with_prompts(3)
    salience = weights_times_gradients(model, batches)
    groups = mlps_of(model)
    vectors = observe_gradients(model, batches, groups)
    for group in groups:
        down = salience[f"{group.name}.down_proj.weight"].sum(0).abs()
        up = salience[f"{group.name}.up_proj.weight"].sum(1).abs()
        ours = both_parts(vectors, group.name, "channel_taylor").abs()
        torch.testing.assert_close(ours, down, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(ours, up, rtol=1e-9, atol=1e-12)  # a is linear in the up projection
        for keep in (4, 8, 12):
            assert set(ours.topk(keep).indices.tolist()) == set(down.topk(keep).indices.tolist())
        assert len(set(down.tolist())) == W  # no ties that would make any choice right


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "deepseek_v2"])
def test_of_every_expert_and_shared_expert_it_is_the_column_times_its_gradient(family: str) -> None:
    model, batches = tiny_model(family, torch.float64), with_prompts(2)
    salience = weights_times_gradients(model, batches)
    groups = channel_groups(model, expert_width(model))
    vectors = observe_gradients(model, batches, groups)
    for group in groups:
        axis = group.tensors[group.down].axis
        expected = salience[group.down].sum({(3, 1): 2, (3, 2): 1, (2, 1): 0}[salience[group.down].ndim, axis])
        assert expected.any()
        torch.testing.assert_close(both_parts(vectors, group.name, "channel_taylor"), expected, rtol=1e-9, atol=1e-12)


def test_the_experts_of_a_mixtral_keep_what_the_rule_says() -> None:
    model, batches = tiny_model("mixtral", torch.float64), with_prompts(2)
    statistics = calibrate(model, batches, channels="gradients")
    salience = weights_times_gradients(model, batches)
    kept = {block: [1, 4, 6] for block in statistics.blocks}
    chosen = choose_channels(statistics, WidthChoice(8, "taylor"), kept)
    for block in statistics.blocks:
        scores = salience[f"{block}.experts.down_proj"].sum(1).abs()
        for row, expert in zip(chosen[block].tolist(), kept[block], strict=True):
            assert row == sorted(scores[expert].topk(8).indices.tolist())


# Scaling a channel at one token by m changes the loss by a · dL/da per unit of m: autograd on m knows no down projection.
def test_both_are_sums_over_the_tokens_of_a_part() -> None:
    model, batches = tiny_llama(), with_prompts(2)
    groups = mlps_of(model)
    vectors = observe_gradients(model, batches, groups)
    down = model.model.layers[0].mlp.down_proj
    expected = {f"{statistic}/{part}": 0 for statistic in ("taylor", "fisher") for part in ("prompt", "completion")}
    for batch in batches:
        scale = torch.ones(*batch["input_ids"].shape, W, dtype=torch.float64, requires_grad=True)
        hook = down.register_forward_pre_hook(lambda module, args, scale=scale: (args[0] * scale,))
        next(losses(model, [batch])).backward()
        hook.remove()
        real, completion = batch["attention_mask"].bool(), batch["completion_mask"].bool()
        for part, rows in (("prompt", real & ~completion), ("completion", completion)):
            expected[f"taylor/{part}"] += scale.grad[rows].sum(0)
            expected[f"fisher/{part}"] += scale.grad[rows].square().sum(0)
    for name, values in expected.items():
        assert values.any()
        torch.testing.assert_close(vectors[f"{groups[0].name}/channel_{name}"], values, rtol=1e-9, atol=1e-15)


def test_batches_add_up_and_padding_never_counts() -> None:
    model, batches = tiny_model("deepseek_v2", torch.float64), with_prompts(2)
    groups = channel_groups(model, expert_width(model))
    together = observe_gradients(model, batches, groups)
    alone = []
    for batch in batches:
        for row in range(2):
            length = int(batch["attention_mask"][row].sum())
            alone.append({name: tensor[row : row + 1, :length] for name, tensor in batch.items()})
    apart = observe_gradients(model, alone, groups)
    assert together.keys() == apart.keys()
    for name, vector in together.items():
        torch.testing.assert_close(vector, apart[name], rtol=1e-9, atol=1e-12)


def test_the_model_is_left_as_it_was() -> None:
    model, batches = tiny_model("mixtral"), with_prompts(1)
    model.model.embed_tokens.weight.requires_grad_(False)
    before, implementation = [p.requires_grad for p in model.parameters()], model.config._experts_implementation
    logits = model(batches[0]["input_ids"]).logits
    observe_gradients(model, batches, channel_groups(model, expert_width(model)))
    assert [p.requires_grad for p in model.parameters()] == before
    assert all(p.grad is None for p in model.parameters())
    assert model.config._experts_implementation == implementation
    assert torch.equal(model(batches[0]["input_ids"]).logits, logits)


def test_calibration_adds_gradients_to_what_it_finds_without_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, batches = tiny_model("mixtral"), with_prompts(2)
    model.save_pretrained(tmp_path)
    forward, both = (calibrate(tmp_path, batches, channels=channels) for channels in (True, "gradients"))
    assert "loaded whole: gradients" in capsys.readouterr().out
    added = both.vectors.keys() - forward.vectors.keys()
    assert {name.split("/")[-2] for name in added} == {"channel_taylor", "channel_fisher"}
    assert all(torch.equal(vector, both.vectors[name]) for name, vector in forward.vectors.items())


def test_a_prompt_alone_has_no_loss_and_so_no_gradient() -> None:
    batches = with_prompts(1, prompt=99)
    statistics = calibrate(tiny_model("mixtral"), batches, channels="gradients")
    assert not statistics.get("model.layers.0.mlp", "channel_fisher").any()


def test_gradients_need_the_whole_model_and_finite_numbers(tmp_path: Path) -> None:
    model = tiny_model("mixtral")
    with raises("calibration.channels", "'gradient'"):
        calibrate(model, with_prompts(1), channels="gradient")
    model.save_pretrained(tmp_path)
    with raises("calibration.gradients-need-whole-model", "width_criterion energy"):
        calibrate(StreamedModel(str(tmp_path)), with_prompts(1), channels="gradients")
    with torch.no_grad():
        model.lm_head.weight.fill_(torch.inf)  # the experts' outputs are finite, the loss is not
    with raises("calibration.not-finite", "channel_"):
        calibrate(model, with_prompts(1), channels="gradients")


def test_in_a_mix_gradients_count_by_share() -> None:
    model, batches = tiny_model("mixtral", torch.float64), with_prompts(2)
    parts = [calibrate(model, [batch], channels="gradients") for batch in batches]
    sources = [CalibrationSource("a", batches[:1], 3.0), CalibrationSource("b", batches[1:], 1.0)]
    mixed = calibrate_mix(model, sources, channels="gradients")
    for block in (block.name for block in find_blocks(model)):
        one, other = (part.get(block, "channel_taylor", "completion") for part in parts)
        expected = 2 * (0.75 * one + 0.25 * other)  # as many tokens in both
        torch.testing.assert_close(mixed.get(block, "channel_taylor", "completion"), expected)


def _calibrate_on(rank: int, folder: str) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE="2")
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    for batches in (1, 3):  # of one batch a rank has none
        model = tiny_model("deepseek_v2", torch.float64)
        calibrate(model, shard(with_prompts(batches)), channels="gradients").save(f"{folder}/{batches}/rank{rank}")
    torch.distributed.destroy_process_group()


@pytest.mark.launcher
def test_two_ranks_find_the_channels_and_gradients_that_one_finds(tmp_path: Path) -> None:
    mp.spawn(_calibrate_on, (str(tmp_path),), nprocs=2)
    for batches in (1, 3):
        alone = calibrate(tiny_model("deepseek_v2", torch.float64), with_prompts(batches), channels="gradients")
        for rank in (0, 1):
            found = ExpertStatistics.load(tmp_path / str(batches) / f"rank{rank}")
            assert found.vectors.keys() == alone.vectors.keys() and found.about.channels == alone.about.channels
            for name, vector in alone.vectors.items():
                torch.testing.assert_close(found.vectors[name], vector, rtol=1e-9, atol=1e-12)
