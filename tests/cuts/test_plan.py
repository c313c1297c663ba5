import json
from pathlib import Path
from typing import Any

import pytest

from toolkit.cuts.plan import BlockPlan, Plan
from toolkit.runtime.errors import PollardError

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
    plan = Plan(
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
        ({"format": 2}, "format: Input should be 1"),
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


def test_every_fault_of_a_plan_is_named(tmp_path: Path) -> None:
    blocks = {"a": {"experts": 4, "kept": [1, 0]}, "b": {"experts": 2, "kept": [1, 2]}, "c": {"kept": [0, 1]}}
    with pytest.raises(PollardError) as caught:
        Plan.load(write(tmp_path, model=5, blocks=blocks))
    places = [line.split(": ")[0].strip() for line in str(caught.value).splitlines()[1:]]
    assert places == ["model", "blocks.a", "blocks.b", "blocks.c.experts"]


# A checkpoint has one count of experts for all its blocks.
def test_uneven_counts_are_refused(tmp_path: Path) -> None:
    blocks = {"a": {"experts": 4, "kept": [0, 1]}, "b": {"experts": 4, "kept": [0]}, "c": {"experts": 4, "kept": [0, 1, 2]}}
    with pytest.raises(PollardError, match=r"every block must keep 2 experts \(.*\), but: \{'b': 1, 'c': 3\}"):
        Plan.load(write(tmp_path, blocks=blocks))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe"])
def test_a_damaged_file_is_explained(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "plan.json").write_bytes(content)
    with pytest.raises(PollardError, match=r"plan\.json is not a valid plan:\n  as a whole: "):
        Plan.load(tmp_path / "plan.json")


def test_a_missing_file_is_explained(tmp_path: Path) -> None:
    with pytest.raises(PollardError, match=r"No plan at .*plan\.json: No such file or directory\."):
        Plan.load(tmp_path / "plan.json")
