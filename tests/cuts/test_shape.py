"""Law: sizes after each cut are those of the model that is cut so."""

import pytest
from conftest import FAMILIES, tiny_model

from toolkit.cuts import LayersCut, ModelShape, Plan, apply_plan, shape_of, shaped_meta_model, sizes_after_cuts, without_last
from toolkit.cuts.shape import plan_of_shape, shape_size
from toolkit.moe import sizes

SHAPE = ModelShape(experts=4, width=8, layers=(0, 2), experts_per_token=1)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "deepseek_v2"])
def test_each_row_is_the_model_as_cut_so_far(family: str) -> None:
    model = tiny_model(family, **{**FAMILIES[family], "num_hidden_layers": 3})
    plan = plan_of_shape(model, SHAPE)
    assert shape_of(plan) == SHAPE
    found = sizes_after_cuts(model.config, plan)
    assert list(found) == ["original", "layers", "experts", "width"]
    assert found["original"] == shape_size(model) and found["original"][-2:] == sizes(model)
    assert found["layers"].layers == 2 and found["layers"].experts == found["original"].experts
    assert (found["experts"].experts, found["experts"].experts_per_token, found["experts"].width) == (4, 1, 16)
    assert found["width"] == shape_size(apply_plan(model, plan))
    totals = [size.parameters for size in found.values()]
    assert totals == sorted(totals, reverse=True) and len(set(totals)) == 4


def test_what_cuts_nothing_has_no_row() -> None:
    model = tiny_model("mixtral")
    for shape, rows in (
        (ModelShape(experts=4), ["original", "experts"]),
        (ModelShape(experts_per_token=1), ["original", "experts"]),
        (ModelShape(width=8), ["original", "width"]),
    ):
        assert list(sizes_after_cuts(model.config, plan_of_shape(model, shape))) == rows
    only = Plan(model="", experts_per_token=2, cuts=[LayersCut.of(model, [1], "top")])  # as a tool may write it
    assert list(sizes_after_cuts(model.config, only)) == ["original", "layers"]


def test_the_configuration_stays_as_it_is() -> None:
    config = tiny_model("mixtral").config
    before = config.to_json_string()
    sizes_after_cuts(config, plan_of_shape(shaped_meta_model(config, ModelShape()), ModelShape(experts=2, width=4)))
    assert config.to_json_string() == before


def test_of_layers_the_last_before_the_final_one_go() -> None:
    assert without_last(3, 6) == (0, 1, 5) and without_last(1, 6) == (5,) and without_last(6, 6) == tuple(range(6))


def test_a_plan_says_what_each_cut_leaves() -> None:
    summary = plan_of_shape(tiny_model("mixtral", num_hidden_layers=3), SHAPE).summary()
    assert summary["cuts"] == [
        {"kind": "experts", "criterion": "", "keep": 4, "experts": 8}, {"kind": "width", "criterion": "", "keep": 8},
        {"kind": "layers", "criterion": "", "layers": 3, "kept": [0, 2]},
    ]  # fmt: skip
