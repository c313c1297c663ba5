"""True dimensions, without a download: the configurations are those of the published models."""

import re
from pathlib import Path

import pytest
import torch
from conftest import FAMILIES, plan_for, raises, tiny_model
from quantized_checkpoints import in_fp8
from transformers import AutoConfig

from toolkit.cuts.apply import apply_plan
from toolkit.cuts.checkpoint import prune_checkpoint
from toolkit.cuts.model_summary import model_summary, summary_of
from toolkit.cuts.shape import plan_of_shape
from toolkit.moe import checkpoint_bytes, sizes
from toolkit.report.inspection import checkpoint_text, show_model_summary


def test_mixtral_8x7b() -> None:
    found = summary_of(AutoConfig.for_model("mixtral", dtype="bfloat16"))  # the defaults are Mixtral-8x7B's
    assert (found.blocks, found.experts, found.experts_per_token, found.groups, found.shared_parameters) == (32, 8, 2, 1, 0)
    assert found.parameters == 46_702_792_704
    assert found.active_parameters == 12_879_925_248
    assert found.expert_parameters == 32 * 8 * 3 * 4096 * 14336
    assert found.bytes_per_parameter == 2
    left = found.cuts["experts"].sizes
    assert list(left) == [6, 4, 2, 1]
    assert left[4].parameters == 46_702_792_704 - found.expert_parameters // 2 - 32 * 4 * 4096
    assert left[4].active_parameters == found.active_parameters - 32 * 4 * 4096
    assert left[1].active_parameters == left[1].parameters  # one expert, one per token


def test_deepseek_v3_without_allocating_671_billion_parameters() -> None:
    found = summary_of(AutoConfig.for_model("deepseek_v3", dtype="bfloat16"))
    assert (found.blocks, found.experts, found.experts_per_token) == (58, 256, 8)
    assert (found.groups, found.groups_per_token) == (8, 4)
    assert round(found.parameters / 1e9) == 671 and round(found.active_parameters / 1e9) in (37, 38)
    assert found.shared_parameters == 58 * 3 * 7168 * 2048
    assert list(found.cuts["experts"].sizes) == [192, 128, 64, 32]


def test_what_cannot_be_routed_is_not_offered() -> None:
    config = AutoConfig.for_model("deepseek_v3", n_routed_experts=32, topk_group=2, num_hidden_layers=4)
    assert (
        list(summary_of(config).cuts["experts"].sizes) == []
    )  # 8 experts from two groups: four in each of eight are all there are
    assert summary_of(config).dtype == torch.float32  # says nothing, and transformers saves what it has


def test_sizes_are_those_of_a_model_that_is_pruned() -> None:
    model = tiny_model("qwen2_moe")
    expected = summary_of(model.config).cuts["experts"].sizes[4]
    assert sizes(apply_plan(model, plan_for(model, [0, 2, 3, 7]))) == expected


# The configuration of an FP8 checkpoint says in what it is computed, not in what it is stored.
def test_a_quantized_checkpoint_is_as_large_as_its_files(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    found = model_summary(str(in_fp8(tmp_path / "fp8")))
    assert found.stored and (found.quantization, found.dtype) == ("fp8", torch.bfloat16)
    header = checkpoint_bytes(tmp_path / "fp8") - found.stored.bytes
    assert 0 < header < 20_000 and found.stored.bytes < found.parameters * 2
    assert found.stored.dtypes.keys() == {"F8_E4M3", "BF16", "F32"}
    assert re.fullmatch(r"0\.\d MiB in fp8 \(bfloat16 \d+%, float8 \d+%\)", checkpoint_text(found))
    for keep, written in found.cuts["experts"].stored.items():
        model = tiny_model("mixtral", torch.bfloat16)
        prune_checkpoint(tmp_path / "fp8", plan_for(model, list(range(keep))), tmp_path / f"keep{keep}")
        stored = model_summary(str(tmp_path / f"keep{keep}")).stored
        assert stored and stored.bytes == written
    show_model_summary(found)
    assert "in fp8 (" in capsys.readouterr().out


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v2", "gpt_oss"])
def test_the_bytes_of_plain_files_are_those_of_the_parameters(family: str, tmp_path: Path) -> None:
    tiny_model(family, torch.bfloat16, **FAMILIES[family]).save_pretrained(tmp_path)
    found = model_summary(str(tmp_path))
    assert found.stored and found.stored.bytes == 2 * found.parameters
    assert found.cuts["experts"].stored == {keep: 2 * left.parameters for keep, left in found.cuts["experts"].sizes.items()}
    assert checkpoint_text(found).endswith(" in bfloat16")


def test_a_configuration_that_says_another_format_than_the_files_is_not_believed(tmp_path: Path) -> None:
    tiny_model("mixtral").save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"float32"', '"bfloat16"'))
    assert checkpoint_text(model_summary(str(tmp_path))).endswith(" in float32")


def test_without_files_a_quantized_size_is_not_made_up(tmp_path: Path) -> None:
    folder = in_fp8(tmp_path)
    (folder / "model.safetensors").unlink()
    found = model_summary(str(folder))
    assert found.stored is None and checkpoint_text(found).startswith("fp8, computed in bfloat16; how large is said by its files")


def test_files_that_are_another_models_are_told(tmp_path: Path) -> None:
    tiny_model("mixtral").save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 1'))
    with raises("checkpoint.too-many-layers", "1 layer,", "have 2"):
        model_summary(str(tmp_path))


def test_mixtral_8x7b_narrower_and_with_fewer_layers() -> None:
    found = summary_of(AutoConfig.for_model("mixtral", dtype="bfloat16"))
    assert (found.layers, found.width) == (32, 14336)
    assert list(found.cuts["width"].sizes) == [10752, 7168, 3584] and list(found.cuts["layers"].sizes) == [24, 16, 8]
    half = found.cuts["width"].sizes[7168]
    assert half.parameters == found.parameters - found.expert_parameters // 2
    assert half.active_parameters == found.active_parameters - found.expert_parameters // 8  # two of eight experts
    each = (found.parameters - found.cuts["layers"].sizes[16].parameters) / 16
    assert found.cuts["layers"].sizes[8].parameters == found.parameters - 24 * each
    assert not any(cut.refusal for cut in found.cuts.values())


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "deepseek_v2"])
def test_what_is_said_of_every_cut_is_what_pruning_leaves(family: str, tmp_path: Path) -> None:
    model = tiny_model(family, torch.bfloat16, **FAMILIES[family])
    model.save_pretrained(tmp_path / "whole")
    found = model_summary(str(tmp_path / "whole"))
    for kind in ("width", "layers"):
        cut = found.cuts[kind]
        assert cut.shapes and cut.shapes.keys() == cut.sizes.keys() == cut.stored.keys()
        for keep, shape in cut.shapes.items():
            target = tmp_path / f"{kind}{keep}"
            prune_checkpoint(tmp_path / "whole", plan_of_shape(model, shape), target)
            left = model_summary(str(target))
            assert left.stored and (left.parameters, left.active_parameters) == cut.sizes[keep]
            assert left.stored.bytes == cut.stored[keep] == 2 * left.parameters


def test_what_a_model_cannot_do_is_said_with_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    found = model_summary(str(in_fp8(tmp_path / "fp8")))
    assert found.cuts["width"].sizes == {} and "quantized (fp8)" in str(found.cuts["width"].refusal)
    show_model_summary(found)
    assert "channels: not possible. The weights are quantized (fp8)" in " ".join(capsys.readouterr().out.split())
