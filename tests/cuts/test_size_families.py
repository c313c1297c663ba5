"""Law, for every family: a table's sizes are those of the model that is cut so, whichever of its layers stay."""

import random
from typing import Literal

import pytest
from families import (
    DENSE_EXCEPTIONS,
    EXCEPTIONS,
    KEPT_LAYERS,
    LAYER_CHANGES,
    LAYER_EXCEPTIONS,
    WIDTH_EXCEPTIONS,
    families,
    tiny_family,
)

from toolkit.cuts import ModelShape, dense_twin, shaped_meta_model
from toolkit.cuts.fit_result import FitShape
from toolkit.cuts.size_table import SizeTable
from toolkit.moe import sizes

UNEQUAL = ("ernie4_5_vl_moe",)  # experts of several widths in one model
CUTTABLE = [family for family in families() if family not in (*EXCEPTIONS, *UNEQUAL)]


@pytest.mark.parametrize("family", CUTTABLE)
def test_sizes_are_those_of_the_model_that_is_cut_so(family: str) -> None:
    check_sizes(family, "moe")


@pytest.mark.parametrize("family", [family for family in CUTTABLE if family not in DENSE_EXCEPTIONS])
def test_and_in_the_dense_form(family: str) -> None:
    check_sizes(family, "dense")


def check_sizes(family: str, form: Literal["moe", "dense"]) -> None:
    config = tiny_family(family, **LAYER_CHANGES.get(family, {})).config
    narrows = family not in WIDTH_EXCEPTIONS
    table, draw = SizeTable(config, form, narrower=narrows), random.Random(family)
    everything = list(range(table.depth))
    some = everything if family in LAYER_EXCEPTIONS else KEPT_LAYERS.get(family, [0, 2, 3])
    fewest = max(2, table.fewest_experts)  # jamba's configuration calls a layer with one expert dense
    for kept in (everything, some, some):
        experts, width = draw.randrange(fewest, table.experts + 1, table.groups), draw.randint(1, table.width)
        shape = FitShape(len(kept), experts, width if narrows else table.width, draw.randint(1, min(table.active, experts)), form)
        layers = None if kept == everything else tuple(kept)
        wanted = ModelShape(experts, None if shape.width == table.width else width, layers, shape.experts_per_token)
        model = shaped_meta_model(config, wanted)
        if form == "dense":
            model = dense_twin(model).model
        assert table.size(shape, kept)[:2] == sizes(model), shape
