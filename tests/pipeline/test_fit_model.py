"""`toolkit.fit`: a plan within the limit for a loaded model, which is as it was before; what cannot be is refused first."""

from collections.abc import Sequence

import pytest
import torch
from conftest import raises, tiny_model
from transformers import PreTrainedModel

import toolkit
from toolkit.cuts import apply_plan, masked, shape_of
from toolkit.evaluation import completion_loss
from toolkit.moe import sizes

LIMIT = 0.6


@pytest.fixture
def model() -> PreTrainedModel:
    return tiny_model("mixtral", num_hidden_layers=3)


@pytest.fixture
def batches() -> list[dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    ids = torch.randint(3, 64, (10, 4, 12))
    mask = torch.ones(4, 12, dtype=torch.long)
    return [{"input_ids": each, "attention_mask": mask, "completion_mask": (torch.arange(12) > 5).expand(4, 12)} for each in ids]


def limit_of(model: PreTrainedModel) -> int:
    return int(LIMIT * sizes(model).parameters)


def test_the_plan_meets_the_limit_and_no_single_cut_has_a_smaller_loss(
    model: PreTrainedModel, batches: list[dict[str, torch.Tensor]]
) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plan = toolkit.fit(model, batches[2:], parameters=limit_of(model), width_multiple=4, dev_batches=batches[:2])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    singles = [
        toolkit.fit(model, batches[2:], parameters=limit_of(model), cuts=[cut], width_multiple=4, dev_batches=batches[:2])
        for cut in ("experts", "width", "layers")
    ]
    best, *others = (_loss(model, each, batches[:2]) for each in (plan, *singles))
    assert best <= min(others) + 1e-6
    assert sizes(apply_plan(model, plan)).parameters <= limit_of(tiny_model("mixtral", num_hidden_layers=3))


def _loss(model: PreTrainedModel, plan: toolkit.Plan, batches: Sequence[dict[str, torch.Tensor]]) -> float:
    with masked(model, plan):
        return completion_loss(model, batches).mean


def test_every_fifth_batch_is_kept_for_the_loss_and_the_same_batches_give_the_same_plan(
    model: PreTrainedModel, batches: list[dict[str, torch.Tensor]]
) -> None:
    size = limit_of(model)
    asked = toolkit.fit(model, batches, parameters=size, cuts=["experts"])
    by_hand = toolkit.fit(
        model, [b for n, b in enumerate(batches) if n % 5], parameters=size, cuts=["experts"], dev_batches=batches[::5]
    )
    assert asked == by_hand and shape_of(asked).experts is not None


@pytest.mark.parametrize(
    ("settings", "code", "named"),
    [
        ({}, "fit.settings", "fit needs a limit"),
        ({"bytes": "4X"}, "fit.settings", "4X is no number of bytes"),
        ({"bytes": "1G"}, "fit.nothing-to-cut", "nothing to cut"),
        ({"bytes": 10}, "fit.limit-too-small", "the smallest shape"),
        ({"bytes": "1M", "cuts": ["dense"]}, "fit.dense-in-memory", "pruning.fit"),
        ({"bytes": "1M", "keep": 4}, "fit.settings", "leave keep out"),
        ({"bytes": "1M", "criterion": "reepp"}, "fit.settings", "criterion"),
        ({"bytes": "1M", "refit": True}, "fit.settings", "refit"),
        ({"bytes": "1M", "skipping": 0.5}, "fit.settings", "skipping"),
    ],
)
def test_what_cannot_be_is_refused_before_the_model_runs(model: PreTrainedModel, settings: dict, code: str, named: str) -> None:
    with raises(code, named):
        toolkit.fit(model, [], **settings)


def test_channels_may_be_chosen_by_gradients(model: PreTrainedModel, batches: list[dict[str, torch.Tensor]]) -> None:
    plan = toolkit.fit(model, batches, parameters=limit_of(model), cuts=["width"], width_multiple=4, width_criterion="taylor")
    assert (shape_of(plan).width or 16) < 16


def test_one_batch_is_too_few_to_compare_on(model: PreTrainedModel, batches: list[dict[str, torch.Tensor]]) -> None:
    with raises("fit.too-few-batches", "dev_batches"):
        toolkit.fit(model, batches[:1], parameters=limit_of(model))


def test_a_loss_that_is_not_finite_is_said(model: PreTrainedModel, batches: list[dict[str, torch.Tensor]]) -> None:
    for batch in batches:
        batch["completion_mask"] = torch.zeros_like(batch["attention_mask"])
    with raises("fit.no-loss", "dev"):
        toolkit.fit(model, batches, parameters=limit_of(model), cuts=["experts"])
