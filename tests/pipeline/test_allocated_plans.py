"""Plans of a fit's shapes, which also drop layers and channels of what one calibration of the whole model has observed."""

import torch
from conftest import tiny_model

import toolkit
from toolkit.cuts import LayersCut, WidthCut, masked
from toolkit.cuts.fit_result import FitShape, OriginalSize
from toolkit.evaluation import completion_loss
from toolkit.pipeline.allocation import allocate
from toolkit.pipeline.fit_plans import ShapePlans
from toolkit.recipe.pruning import PruningRecipe

IDS = torch.randint(3, 64, (4, 24), generator=torch.Generator().manual_seed(3))
BATCHES = [{"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "completion_mask": (torch.arange(24) > 11).expand(4, 24)}]


def test_with_fewer_layers_and_narrower_experts_the_rest_stays_as_the_shape_says() -> None:
    model = tiny_model("mixtral", num_hidden_layers=4)
    statistics = toolkit.calibrate(model, BATCHES, channels=True)
    original = OriginalSize(
        layers=4, experts=8, width=16, experts_per_token=2, parameters=1, active_parameters=1, bytes=4
    )  # fmt: skip
    plans = ShapePlans(model, statistics, {3: [0, 2, 3]}, original.shape, PruningRecipe(criterion="reap", keep=4))
    plan = plans.plan(FitShape(layers=3, experts=4, width=8, experts_per_token=1))
    found = allocate(model, plan, statistics, BATCHES)
    cut, width = found.plan.experts, found.plan.cut(WidthCut)
    assert found.plan.cut(LayersCut) == plan.cut(LayersCut) and width
    assert [list(width.channels[name].shape) for name in cut.kept] == [[len(kept), 8] for kept in cut.kept.values()]
    active = [cut.active(name, found.plan) for name in cut.kept]
    assert sum(map(len, cut.kept.values())) == 12 and sum(active) == 3 and found.found.loss < found.found.uniform_loss
    for each, expected in ((plan, found.found.uniform_loss), (found.plan, found.found.loss)):
        with masked(model, each):
            assert completion_loss(model, BATCHES).mean == expected
