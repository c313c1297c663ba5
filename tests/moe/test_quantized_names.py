"""What says how a checkpoint is quantized names the same experts before and after pruning."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import raises

from toolkit.moe.quantized_names import RenamedModules

KEPT = {0: [1, 3], 1: [0, 3]}  # of four experts, in two blocks: expert 3 becomes 1, expert 1 becomes 0, or goes
LINEARS = ("w1", "w2")


def tensor(layer: int, expert: int, linear: str) -> str:
    return f"model.layers.{layer}.mlp.experts.{expert}.{linear}.weight"


def modules() -> RenamedModules:
    renamed = {"lm_head.weight": "lm_head.weight"}
    left = ["mtp.layers.0.mlp.experts.0.w1.weight"]
    for layer, kept in KEPT.items():
        renamed |= dict.fromkeys([f"model.layers.{layer}.self_attn.q_proj.weight"])  # type: ignore[arg-type]
        for linear in LINEARS:
            renamed |= {tensor(layer, old, linear): tensor(layer, new, linear) for new, old in enumerate(kept)}
            left += [tensor(layer, expert, linear) for expert in range(4) if expert not in kept]
    return RenamedModules({old: new or old for old, new in renamed.items()}, left)


E0, E1 = "model.layers.0.mlp.experts", "model.layers.1.mlp.experts"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (f"{E0}.3.w1", [f"{E0}.1.w1"]),  # AutoRound, compressed-tensors: full names
        (f"{E0}.3", [f"{E0}.1"]),
        (f"{E0}.2.w1", []),
        ("-:" + re.escape(f"{E1}.3.w1"), ["-:" + re.escape(f"{E1}.1.w1")]),  # GPTQModel: escaped dots
        (f"re:^{re.escape(E0)}\\.1\\.w2$", [f"re:^{re.escape(E0)}\\.0\\.w2$"]),
        (r"+:.*layers\.0\..*experts\.3\..*", [r"+:.*layers\.0\..*experts\.1\..*"]),
        (r"+:.*layers\.0\..*experts\.0\..*", []),
        ("*layers.1.mlp.experts.3*", ["*layers.1.mlp.experts.1*"]),  # Quark, ModelOpt: a glob
        ("layers.0.mlp.experts.3", ["layers.0.mlp.experts.1"]),  # AWQ, FP8, bitsandbytes: a part of a name
        ("experts.3", ["experts.1"]),  # in every block, expert 3 is now number 1
        (f"{E0}.3.w1|lm_head", [f"{E0}.1.w1|lm_head"]),
        ("mtp.layers.0.mlp.experts.0.w1", []),  # of a layer that is left out
        ("model.layers.1.block_sparse_moe.experts.3.w1", ["model.layers.1.block_sparse_moe.experts.1.w1"]),  # another name
        # Those are others in every block: no expression says it any more
        ("re:.*experts.1.w1", ["re:" + re.escape(f"{E0}.0.w1")]),
        ("re:.*experts\\.[01]\\.w1", ["re:" + re.escape(f"{E0}.0.w1"), "re:" + re.escape(f"{E1}.0.w1")]),
        ("experts.(0|1).w1", [f"{E0}.0.w1", f"{E1}.0.w1"]),
    ],
)
def test_an_entry_matches_afterwards_what_it_matched_before(before: str, after: list[str]) -> None:
    assert modules().renumbered([before]) == after


@pytest.mark.parametrize(
    "entry",
    [
        "lm_head",
        "re:.*lm_head",
        "re:.*experts.*",
        r"re:.*experts\.\d+\.w1",
        "model.layers.*.self_attn",
        "Linear",
        "gptq",
        "[4, 4]",
    ],
)
def test_what_tells_no_experts_apart_stays_as_it_is(entry: str) -> None:
    assert modules().renumbered([entry]) == [entry]
    assert modules().renumbered({"key": entry, entry: 1}) == {"key": entry, entry: 1}


# The law, by another way: each entry is applied to the names before and after.
@pytest.mark.parametrize("pattern", [".*experts.[13].w[12]", ".*0.mlp.experts.(1|2).*", ".*(q_proj|experts.3.w2)", ".*[^3].w1"])
def test_expressions_keep_their_meaning(pattern: str) -> None:
    entries = modules().renumbered(["re:" + pattern])
    for layer, kept in KEPT.items():
        for new, old in enumerate(kept):
            for linear in LINEARS:
                before, after = (tensor(layer, number, linear).removesuffix(".weight") for number in (old, new))
                found = any(re.match(entry.removeprefix("re:"), after) for entry in entries)
                assert found == bool(re.match(pattern, before)), (before, entries)
    query = "model.layers.1.self_attn.q_proj"
    assert any(re.match(entry[3:], query) for entry in entries) == bool(re.match(pattern, query))


LAYERS = {0: 0, 2: 1, 3: 2}  # of four; the experts as above, in layers 0 and 2


def fewer_layers() -> RenamedModules:
    renamed, left = {"lm_head.weight": "lm_head.weight", "visual.layers.3.fc.weight": "visual.layers.3.fc.weight"}, []
    for layer in range(4):
        names = [f"model.layers.{layer}.self_attn.{name}.weight" for name in ("q_proj", "o_proj")]
        names += [tensor(layer, expert, "w1") for expert in range(4)]
        for name in names:
            if layer in LAYERS:
                renamed[name] = name.replace(f"layers.{layer}.", f"layers.{LAYERS[layer]}.")
            else:
                left.append(name)
    kept = {0: KEPT[0], 2: KEPT[1], 3: KEPT[1]}
    for layer, experts in kept.items():
        for expert in range(4):
            name = renamed.pop(tensor(layer, expert, "w1"))
            if expert in experts:
                renamed[tensor(layer, expert, "w1")] = name.replace(f"experts.{expert}", f"experts.{experts.index(expert)}")
            else:
                left.append(tensor(layer, expert, "w1"))
    return RenamedModules(renamed, left)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("model.layers.3.self_attn.q_proj", ["model.layers.2.self_attn.q_proj"]),
        ("model.layers.2", ["model.layers.1"]),
        ("model.layers.1.self_attn", []),
        ("model.layers.2.mlp.experts.3.w1", ["model.layers.1.mlp.experts.1.w1"]),
        ("-:" + re.escape("model.layers.3.self_attn.q_proj"), ["-:" + re.escape("model.layers.2.self_attn.q_proj")]),
        (r"re:.*layers\.2\..*experts\.0\..*", [r"re:.*layers\.1\..*experts\.0\..*"]),
        ("*layers.3.self_attn*", ["*layers.2.self_attn*"]),
        ("layers.2.self_attn", ["layers.1.self_attn"]),
        ("layers.1.self_attn", []),
        ("model.layers.3.self_attn.qkv_proj", ["model.layers.2.self_attn.qkv_proj"]),  # fused: no module of the files
        ("visual.layers.3.fc", ["visual.layers.3.fc"]),
        ("re:.*self_attn.*", ["re:.*self_attn.*"]),
        (
            r"re:model\.layers\.[01]\.self_attn",
            ["re:" + re.escape(f"model.layers.0.self_attn.{name}") for name in ("o_proj", "q_proj")],
        ),
    ],
)
def test_layers_are_renumbered_too(before: str, after: list[str]) -> None:
    assert fewer_layers().renumbered([before]) == after


def test_a_whole_configuration_is_renumbered_where_it_speaks_of_quantization() -> None:
    config: dict[str, Any] = {
        "architectures": [f"{E0}.3"],
        "text_config": {"quantization_config": {"modules_to_not_convert": [f"{E0}.3", f"{E0}.0", "lm_head"], "bits": 4}},
        "quantization_config": {
            "dynamic": {"+:" + re.escape(f"{E0}.3"): {"bits": 8}, "-:" + re.escape(f"{E0}.2"): {}},
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4}}},
        },
    }
    names = modules()
    found = names.renumbered_config(config)
    assert found["architectures"] == [f"{E0}.3"]
    assert found["text_config"]["quantization_config"] == {"modules_to_not_convert": [f"{E0}.1", "lm_head"], "bits": 4}
    assert found["quantization_config"]["dynamic"] == {"+:" + re.escape(f"{E0}.1"): {"bits": 8}}
    assert found["quantization_config"]["config_groups"] == config["quantization_config"]["config_groups"]
    assert (
        names.summary == "entries of the quantization's configuration: 2 renumbered with the experts, 2 of pruned experts dropped"
    )
    assert modules().summary is None


@pytest.mark.parametrize("value", [[r"re:wrong\.experts\.3\.w1"], {"module": "re:.*experts.1.w"}, ["experts.9.w1"]])
def test_what_cannot_be_told_is_refused_by_name(value: Any) -> None:
    names = modules()
    with raises("quantization.unclear-name", "experts", "cannot be renumbered", "Write the full names"):
        names.renumbered(value if isinstance(value, list) else {"module": r"re:.*experts\.(0|1)\.w1"})


def test_a_file_beside_the_weights_is_renumbered(tmp_path: Path) -> None:
    (tmp_path / "quantize_config.json").write_text(json.dumps({"dynamic": {f"-:{E0}.3": {}}}))
    assert json.loads(modules().renumbered_file(tmp_path / "quantize_config.json")) == {"dynamic": {f"-:{E0}.1": {}}}
    (tmp_path / "quantize_config.json").write_text("{")
    with raises("quantization.unreadable", "quantize_config.json"):
        modules().renumbered_file(tmp_path / "quantize_config.json")
