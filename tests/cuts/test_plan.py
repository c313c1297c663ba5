import json
from pathlib import Path
from typing import Any

import pytest
from conftest import raises

from toolkit.cuts.block_plan import BlockPlan
from toolkit.cuts.plan import Plan
from toolkit.runtime.errors import PollardError

# Format 1, which is read for ever: experts were the only kind of cut
WRITTEN: dict[str, Any] = {
    "format": 1,
    "model": "some/model",
    "criterion": "by hand",
    "keep": 2,
    "experts_per_token": 2,
    "blocks": {"layers.0.mlp": {"experts": 4, "kept": [0, 3]}, "layers.1.mlp": {"experts": 4, "kept": [1, 2]}},
}


def block(**changes: Any) -> dict[str, Any]:
    return {"blocks": {"layers.0.mlp": {"experts": 4, "kept": [0, 3]} | changes}}


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "plan.json"
    path.write_text(json.dumps(WRITTEN | changes))
    return path


def test_save_then_load_changes_nothing(tmp_path: Path) -> None:
    blocks = {"layers.0.mlp": BlockPlan(experts=4, kept=[0, 3], scores=[0.1, 1 / 3, 1e-300, 7e22])}
    plan = Plan.of_experts(
        model="some/model", criterion="reap", mode="layerwise", tokens="prompt", seed=3, keep=2, experts_per_token=2,
        blocks=blocks, calibration={"task": "gsm8k", "examples": 512, "tokens": 131072, "fingerprint": "f"},
    )  # fmt: skip
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan


def test_a_plan_written_by_hand_needs_only_the_essentials(tmp_path: Path) -> None:
    plan = Plan.load(write(tmp_path))
    assert [block.kept for block in plan.blocks.values()] == [[0, 3], [1, 2]]
    assert (plan.tokens, plan.mode, plan.blocks["layers.0.mlp"].scores) == ("all", None, None)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"format": 3}, "format: Input should be 2"),
        ({"kep": 2}, "kep: Extra inputs are not permitted"),
        ({"keep": None}, "keep: Input should be a valid integer"),
        ({"blocks": {}}, "as a whole: a plan needs at least one block"),
        ({"blocks": [1]}, "blocks: Input should be an object"),
        (block(kept=[3, 0]), "blocks.layers.0.mlp: kept must be ascending and without duplicates, not [3, 0]"),
        (block(kept=[3, 3]), "blocks.layers.0.mlp: kept must be ascending and without duplicates, not [3, 3]"),
        (block(kept=[]), "blocks.layers.0.mlp: kept must be ascending and without duplicates, not []"),
        (block(kept=[0, 4]), "blocks.layers.0.mlp: kept names experts outside 0…3: [0, 4]"),
        (block(kept=[-1, 2]), "blocks.layers.0.mlp: kept names experts outside 0…3: [-1, 2]"),
        (block(scores=[1.0]), "blocks.layers.0.mlp: 1 scores for 4 experts"),
        (block(scores=[1, 2, 3, None]), "blocks.layers.0.mlp.scores.3: Input should be a valid number"),
        (block(experts="many"), "blocks.layers.0.mlp.experts: Input should be a valid integer"),
    ],
)
def test_a_faulty_plan_is_explained(tmp_path: Path, changes: dict[str, Any], fault: str) -> None:
    path = write(tmp_path, **changes)
    with pytest.raises(PollardError) as caught:
        Plan.load(path)
    assert str(caught.value).startswith(f"{path} is not a valid plan:\n  {fault}")


FORMAT_2: dict[str, Any] = {
    "format": 2,
    "model": "some/model",
    "seed": 3,
    "experts_per_token": 2,
    "cuts": [
        {
            "kind": "experts", "criterion": "reap", "mode": None, "tokens": "prompt", "keep": 2,
            "experts": {"layers.0.mlp": 4, "layers.1.mlp": 4},
            "kept": {"layers.0.mlp": [0, 3], "layers.1.mlp": [1, 2]},
            "scores": {"layers.0.mlp": [4.0, 1.5, 2.0, 3.0], "layers.1.mlp": [0.0, 9.0, 8.0, 1.0]},
        }
    ],
    "calibration": {"task": "gsm8k", "examples": 512, "tokens": 131072, "fingerprint": "f"},
}  # fmt: skip
AS_FORMAT_1: dict[str, Any] = {
    "format": 1, "model": "some/model", "criterion": "reap", "mode": None, "tokens": "prompt", "seed": 3, "keep": 2,
    "experts_per_token": 2,
    "blocks": {
        "layers.0.mlp": {"experts": 4, "kept": [0, 3], "scores": [4.0, 1.5, 2.0, 3.0]},
        "layers.1.mlp": {"experts": 4, "kept": [1, 2], "scores": [0.0, 9.0, 8.0, 1.0]},
    },
    "calibration": FORMAT_2["calibration"],
}  # fmt: skip


# A run made before format 2 must not be done again: what is hashed of a plan is the same for both formats.
def test_both_formats_are_one_plan_and_format_2_is_written(tmp_path: Path) -> None:
    plans = []
    for number, content in enumerate((AS_FORMAT_1, FORMAT_2)):
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps(content))
        plans.append(Plan.load(path))
    assert plans[0] == plans[1]
    assert plans[0].choice() == {"layers.0.mlp": [0, 3], "layers.1.mlp": [1, 2]}
    plans[0].save(tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text()) == FORMAT_2


def test_of_format_2_the_counts_may_be_left_to_the_scores(tmp_path: Path) -> None:
    cut = {key: value for key, value in FORMAT_2["cuts"][0].items() if key not in ("experts", "mode", "tokens")}
    (tmp_path / "plan.json").write_text(json.dumps(FORMAT_2 | {"cuts": [cut]}))
    assert Plan.load(tmp_path / "plan.json").experts.experts == {"layers.0.mlp": 4, "layers.1.mlp": 4}


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"cuts": []}, "as a whole: a plan needs cuts"),
        ({"cuts": FORMAT_2["cuts"] * 2}, "as a whole: a plan needs cuts, of each kind one at most, not ['experts', 'experts']"),
        ({"cuts": [FORMAT_2["cuts"][0] | {"kind": "heads"}]}, "cuts.0: Input tag 'heads'"),
        ({"cuts": [FORMAT_2["cuts"][0] | {"kept": {}}]}, "cuts.0.experts: a plan needs at least one block"),
        (
            {"cuts": [FORMAT_2["cuts"][0] | {"experts": {"layers.0.mlp": 4}}]},
            "cuts.0.experts: experts, kept and scores must name",
        ),
        ({"cuts": [FORMAT_2["cuts"][0] | {"kep": 2}]}, "cuts.0.experts.kep: Extra inputs are not permitted"),
        ({"experts_per_token": 3}, "as a whole: experts_per_token must be in 1…2 (the experts kept), not 3"),
        ({"criterion": "reap"}, "criterion: Extra inputs are not permitted"),
    ],
)
def test_a_faulty_plan_of_format_2_is_explained(tmp_path: Path, changes: dict[str, Any], fault: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(FORMAT_2 | changes))
    with raises("plan.invalid", f"{path} is not a valid plan:\n  {fault}"):
        Plan.load(path)


def test_another_choice_of_experts_keeps_the_rest_of_the_plan(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(json.dumps(FORMAT_2))
    plan = Plan.load(tmp_path / "plan.json")
    composed = plan.with_experts({"layers.0.mlp": BlockPlan(experts=6, kept=[2, 5])}, model="the/original")
    assert (composed.model, composed.criterion, composed.seed, composed.keep) == ("the/original", "reap", 3, 2)
    assert composed.blocks == {"layers.0.mlp": BlockPlan(experts=6, kept=[2, 5])} and plan.model == "some/model"


def test_every_fault_of_a_plan_is_named(tmp_path: Path) -> None:
    blocks = {"a": {"experts": 4, "kept": [1, 0]}, "b": {"experts": 2, "kept": [1, 2]}, "c": {"kept": [0, 1]}}
    with pytest.raises(PollardError) as caught:
        Plan.load(write(tmp_path, model=5, blocks=blocks))
    places = [line.split(": ")[0].strip() for line in str(caught.value).splitlines()[1:]]
    assert places == ["model", "blocks.a", "blocks.b", "blocks.c.experts"]


# A checkpoint has one count of experts for all its blocks.
def test_uneven_counts_are_refused(tmp_path: Path) -> None:
    blocks = {"a": {"experts": 4, "kept": [0, 1]}, "b": {"experts": 4, "kept": [0]}, "c": {"experts": 4, "kept": [0, 1, 2]}}
    with raises("plan.invalid", "every block must keep 2 experts", "{'b': 1, 'c': 3}"):
        Plan.load(write(tmp_path, blocks=blocks))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe"])
def test_a_damaged_file_is_explained(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "plan.json").write_bytes(content)
    with raises("plan.invalid", "plan.json is not a valid plan:\n  as a whole: "):
        Plan.load(tmp_path / "plan.json")


def test_a_missing_file_is_explained(tmp_path: Path) -> None:
    with raises("plan.missing", "plan.json"):
        Plan.load(tmp_path / "plan.json")
