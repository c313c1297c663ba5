"""Every family of the installed transformers with narrower experts, alone, together with fewer experts, and with fewer layers as
well; or refused for the reason that docs/families.md gives."""

from pathlib import Path

import pytest
from conftest import raises
from drawn_plan import drawn_plan
from families import (
    EXCEPTIONS,
    KEPT_LAYERS,
    LAYER_CHANGES,
    LAYER_EXCEPTIONS,
    WIDTH_EXCEPTIONS,
    WIDTH_WHOLE,
    families,
    tiny_family,
)
from whole_way import check_the_whole_way

from toolkit.moe import channel_groups, expert_width

NARROWED = [family for family in families() if family not in EXCEPTIONS.keys() | WIDTH_EXCEPTIONS.keys()]


@pytest.mark.parametrize("keep", [None, 4], ids=["width", "width and experts"])
@pytest.mark.parametrize("family", NARROWED)
def test_a_family_goes_the_whole_way(family: str, keep: int | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_family(family)
    check_the_whole_way(family, model, drawn_plan(model, keep, expert_width(model) // 2), tmp_path)
    assert ("the whole model is loaded" in capsys.readouterr().out) == (family in WIDTH_WHOLE)  # else file by file


@pytest.mark.parametrize("family", [family for family in NARROWED if family not in LAYER_EXCEPTIONS])
def test_all_three_cuts_together(family: str, tmp_path: Path) -> None:
    model = tiny_family(family, **LAYER_CHANGES.get(family, {}))
    plan = drawn_plan(model, 4, expert_width(model) // 2, KEPT_LAYERS.get(family, [0, 2, 3]))
    check_the_whole_way(family, model, plan, tmp_path)


@pytest.mark.parametrize("family", WIDTH_EXCEPTIONS)
def test_an_exception_is_refused(family: str) -> None:
    code = {"ernie4_5_vl_moe": "width.several-widths", "inkling": "width.unsupported-family"}[family]
    with raises(code):
        channel_groups(tiny_family(family), 8)
