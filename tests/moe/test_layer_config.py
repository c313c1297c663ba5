"""What configurations say of single layers, with fewer of them: one rule per way of saying it."""

import json
from typing import Any

import pytest
from transformers import CONFIG_MAPPING, PreTrainedConfig

from toolkit.moe import meta_model
from toolkit.moe.layer_change import layer_change
from toolkit.moe.layer_config import CannotDropLayers, KeptLayers, changed, is_per_layer
from toolkit.moe.layer_file import Settings, layer_settings, update_layer_settings

STAY = KeptLayers(4, (0, 2, 3))


@pytest.mark.parametrize(
    ("key", "before", "after"),
    [
        ("num_hidden_layers", 4, 3),
        ("layer_types", ["a", "b", "c", "d"], ["a", "c", "d"]),
        ("layer_rope_theta", (1.0, 2.0, 3.0, 0), [1.0, 3.0, 0]),
        ("no_rope_layers", [1, 1, 1, 0], [1, 1, 0]),  # switches, not numbers of layers
        ("kv_source_layers", [0, 0, 2, 2], [0, 1, 1]),
        ("mlp_only_layers", [0, 1], [0]),
        ("full_attn_idxs", [2, 3], [1, 2]),
        ("full_attn_layers", [1, 2, 4], [1, 3]),  # from 1: there is a 4
        ("local_layer_ids", [0, 1, 2, 3], [0, 1, 2]),  # all layers, by number
        ("per_layer_config", {"1": {"a": 1}, "2": {"b": 2}}, {"1": {"b": 2}}),
        (
            "linear_attn_config",
            {"kda_layers": [1, 2, 3], "full_attn_layers": [4]},
            {"kda_layers": [1, 2], "full_attn_layers": [3]},
        ),
        ("hybrid_override_pattern", "M*-E", "M-E"),
        ("first_k_dense_replace", 2, 1),
        ("num_dense_layers", 1, 1),
        ("moe_layer_start_index", 1, 1),
        ("moe_layer_end_index", 3, 2),
        ("moe_layer_end_index", 1, 0),
        ("num_kv_shared_layers", 3, 2),
        ("max_window_layers", 3, 2),
    ],
)
def test_a_setting_of_single_layers(key: str, before: Any, after: Any) -> None:
    assert is_per_layer(key, before, 4)
    assert changed(key, before, STAY) == after


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("eos_token_id", [1, 2, 3, 4]),
        ("mrope_section", [1, 1, 1, 1]),
        ("moe_intermediate_size", [16, 12]),
        ("mtp_layer_types", ["a", "b", "c", "d"]),
        ("num_nextn_predict_layers", 1),
        ("decoder_sparse_step", 2),
        ("sliding_window_pattern", 4),
        ("hidden_size", 3),
        ("first_k_dense_replace", 4),  # all: it stays all
        ("max_window_layers", 28),
        ("rope_parameters", {"full_attention": {"rope_theta": 1e4}}),
        ("id2label", {"0": "a", "1": "b"}),
        ("mlp_only_layers", []),
        ("model_type", "moe4"),
    ],
)
def test_other_settings_stay(key: str, value: Any) -> None:
    assert not is_per_layer(key, value, 4)
    assert changed(key, value, STAY) is value


@pytest.mark.parametrize(
    ("key", "value", "borrower", "lender"),
    [("indexer_types", ["full", "full", "shared", "shared"], 2, 1), ("kv_source_layers", [0, 1, 1, 1], 2, 1)],
)
def test_a_layer_that_others_borrow_from_cannot_go(key: str, value: list[Any], borrower: int, lender: int) -> None:
    with pytest.raises(CannotDropLayers, match=f"layer {borrower}.* uses what layer {lender} computes"):
        changed(key, value, STAY)
    assert changed(key, value, KeptLayers(4, (0, 1, 3))) == (
        [0, 1, 1] if key == "kv_source_layers" else ["full", "full", "shared"]
    )


SLIDING, FULL = "sliding_attention", "full_attention"
LINEAR = {"full_attn_layers": [2, 4], "kda_layers": [1, 3], "head_dim": 128, "num_heads": 32, "short_conv_kernel_size": 4}

# Files as their makers wrote them: with keys that the class reads others from, and without those that it derives.
FILES: list[tuple[str, Settings, Settings]] = [
    ("mixtral", {}, {}),
    ("qwen3_moe", {"mlp_only_layers": [0, 1]}, {"mlp_only_layers": [0]}),
    ("qwen3_moe", {"mlp_only_layers": [1]}, {"mlp_only_layers": []}),
    ("qwen2_moe", {}, {}),  # without a sliding window all layers are alike
    (
        "qwen2_moe",
        {"use_sliding_window": True, "max_window_layers": 3},
        {"use_sliding_window": True, "max_window_layers": 2, "layer_types": [SLIDING, SLIDING, FULL]},
    ),
    ("gpt_oss", {}, {"layer_types": [SLIDING, SLIDING, FULL]}),  # derived: every second
    ("gpt_oss", {"layer_types": [SLIDING, FULL, FULL, SLIDING]}, {"layer_types": [SLIDING, FULL, SLIDING]}),
    ("deepseek_v3", {"first_k_dense_replace": 2, "moe_layer_freq": 1}, {"first_k_dense_replace": 1, "moe_layer_freq": 1}),
    ("axk1", {"moe_layer_freq": 2}, {"moe_layer_freq": 2, "mlp_layer_types": ["dense", "sparse", "dense"]}),
    ("ernie4_5_moe", {"moe_layer_end_index": -1}, {"moe_layer_end_index": -1}),
    ("ernie4_5_moe", {"moe_layer_end_index": 2}, {"moe_layer_end_index": 1}),
    ("glm_moe_dsa", {"index_topk_pattern": "FFFS"}, {"index_topk_pattern": "FFS", "first_k_dense_replace": 2}),
    (
        "kimi_linear",
        {"linear_attn_config": LINEAR},
        {
            "linear_attn_config": LINEAR | {"full_attn_layers": [3], "kda_layers": [1, 2]},
        },
    ),
    ("nemotron_h", {"hybrid_override_pattern": "EM*E"}, {"hybrid_override_pattern": "E*E"}),
]


@pytest.mark.parametrize(("family", "before", "after"), FILES, ids=lambda value: value if isinstance(value, str) else "")
def test_a_file_has_the_keys_that_it_needs_and_no_others(family: str, before: Settings, after: Settings) -> None:
    """Read by the class, it is the configuration that was changed in memory."""
    file = {"model_type": family, "num_hidden_layers": 4, **before}
    model = meta_model(read(file))
    layer_change(model, "model.layers", [0, 2, 3]).apply(model)
    update_layer_settings(file, model.config)
    assert file == {"model_type": family, "num_hidden_layers": 3, **after}
    assert layer_settings(read(file)) == layer_settings(model.config)


def read(file: Settings) -> PreTrainedConfig:
    copied = json.loads(json.dumps(file))
    return CONFIG_MAPPING[file["model_type"]].from_dict(copied)


def test_a_file_with_as_many_layers_stays_as_it_is() -> None:
    file = {"model_type": "gpt_oss", "num_hidden_layers": 4, "max_window_layers": 2}
    before = dict(file)
    update_layer_settings(file, read(file))
    assert file == before
