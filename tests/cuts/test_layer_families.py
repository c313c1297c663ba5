"""Every family of the installed transformers with fewer layers, alone and together with fewer experts: masked, applied, written
file by file, reloaded by stock transformers, trained and generated with; or refused for the reason that docs/families.md gives.
"""

from pathlib import Path

import pytest
from conftest import raises
from drawn_plan import drawn_plan
from families import EXCEPTIONS, KEPT_LAYERS, LAYER_CHANGES, LAYER_EXCEPTIONS, LAYERS_WHOLE, families, tiny_family
from whole_way import check_the_whole_way

from toolkit.cuts import check_plan


@pytest.mark.parametrize("keep", [None, 4], ids=["layers", "layers and experts"])
@pytest.mark.parametrize("family", [family for family in families() if family not in EXCEPTIONS.keys() | LAYER_EXCEPTIONS.keys()])
def test_a_family_goes_the_whole_way(family: str, keep: int | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_family(family, **LAYER_CHANGES.get(family, {}))
    check_the_whole_way(family, model, drawn_plan(model, keep, layers=KEPT_LAYERS.get(family, [0, 2, 3])), tmp_path)
    assert ("the whole model is loaded" in capsys.readouterr().out) == (family in LAYERS_WHOLE)  # else file by file


REFUSALS = {"beam": "attn_residual_add_idx", "minimax": "num_hidden_layers", "gemma4": "embed_tokens_per_layer"}


@pytest.mark.parametrize("family", sorted(LAYER_EXCEPTIONS.keys() | LAYER_CHANGES.keys()))
def test_an_exception_is_refused(family: str) -> None:
    model = tiny_family(family)
    with raises("layers.cannot-drop", family, REFUSALS[family]):
        check_plan(model, drawn_plan(model, layers=[0, 2, 3]))
