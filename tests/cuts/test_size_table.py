"""Laws: a table's sizes are those of the model that is cut so, and of the files that pruning writes."""

from pathlib import Path

import pytest
import torch
from conftest import FAMILIES, raises, tiny_model
from quantized_checkpoints import in_fp8, in_mxfp4

from toolkit.cuts import ModelShape, dense_twin, plan_of_shape, shaped_meta_model
from toolkit.cuts.checkpoint import prune_checkpoint
from toolkit.cuts.fit_result import FitShape
from toolkit.cuts.size_table import SizeTable
from toolkit.cuts.writer import planned_bytes
from toolkit.moe import checkpoint_bytes, load_config, meta_model
from toolkit.moe.tensor_files import stored_tensors

THREE_LAYERS = {**FAMILIES["deepseek_v2"], "intermediate_size": 48, "first_k_dense_replace": 1}


@pytest.mark.parametrize("kept", [[0, 2], [1, 2]])
@pytest.mark.parametrize(("experts", "width"), [(8, 16), (2, 8), (1, 4), (4, 16)])
def test_in_the_dense_form_a_layer_is_as_wide_as_the_widest_that_stays(experts: int, width: int, kept: list[int]) -> None:
    config = tiny_model("deepseek_v2", **THREE_LAYERS).config  # layer 0 is dense, with 48 channels
    table = SizeTable(config, "dense")
    twin = dense_twin(shaped_meta_model(config, ModelShape(experts, width, tuple(kept))))
    assert twin.width == max(experts * width + width, 48 * (0 in kept))  # with one shared expert
    parameters = sum(p.numel() for p in twin.model.parameters())
    assert table.size(FitShape(2, experts, width, 2, "dense"), kept) == (parameters, parameters, 4 * parameters)


def test_bytes_are_those_of_the_dtype_that_is_asked_for() -> None:
    config = tiny_model("mixtral", torch.bfloat16).config
    shape = FitShape(2, 4, 8, 2)
    parameters, _, plain = SizeTable(config).size(shape, [0, 1])
    assert plain == 2 * parameters and SizeTable(config, dtype="float32").size(shape, [0, 1]).bytes == 4 * parameters


def plain(folder: Path) -> Path:
    tiny_model("qwen2_moe", torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("write", [plain, in_fp8, in_mxfp4])
@pytest.mark.parametrize("kept", [(0, 1), (1,)])
def test_bytes_are_those_of_the_tensors_that_are_written(write: object, kept: tuple[int, ...], tmp_path: Path) -> None:
    original = write(tmp_path / "original")  # type: ignore[operator]
    config, narrower = load_config(str(original)), write is plain
    table = SizeTable(config, folder=original, narrower=narrower)
    layers = None if len(kept) == 2 else kept
    plan = plan_of_shape(meta_model(config), ModelShape(3, 4 if narrower else None, layers, 2))
    pruned = tmp_path / "pruned"
    prune_checkpoint(original, plan, pruned)
    written = sum(tensor.bytes for tensor in stored_tensors(pruned).values())
    assert table.size(FitShape(len(kept), 3, 4 if narrower else table.width, 2), kept).bytes == written
    assert planned_bytes(original, plan) == checkpoint_bytes(pruned) > written  # with the header


def test_experts_that_cannot_be_narrowed_can_be_fewer(tmp_path: Path) -> None:
    config = load_config(str(in_mxfp4(tmp_path)))
    with raises("width.quantized", "mxfp4"):
        SizeTable(config)
    table, model = SizeTable(config, narrower=False), shaped_meta_model(config, ModelShape(3))
    assert table.size(FitShape(2, 3, 32, 2), [0, 1]).parameters == sum(p.numel() for p in model.parameters())


def test_routers_that_choose_within_groups_need_so_many_experts() -> None:
    groups = {"n_group": 2, "topk_group": 1, "num_experts_per_tok": 3, "norm_topk_prob": True, "num_hidden_layers": 2}
    table = SizeTable(tiny_model("deepseek_v3", **{**FAMILIES["deepseek_v2"], **groups}).config)
    assert (table.groups, table.fewest_experts) == (2, 6)  # three in the one group that is chosen
    assert SizeTable(tiny_model("mixtral").config).fewest_experts == 1
