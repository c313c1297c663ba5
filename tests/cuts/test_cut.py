"""The contract of a cut, shown by two kinds that only this file has: writer, resume and verification stay as they are.

For both, alone and with a cut of experts: masked ≡ applied ≡ written and reloaded by stock transformers.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pytest
import torch
from conftest import logits_of, plan_for, tiny_model
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from toolkit.cuts import KINDS, Cut, ExpertsCut, Plan, apply_plan, masked, prune_checkpoint
from toolkit.cuts.cut import AffectedTensor, Indices, PlanView, Shape
from toolkit.moe.completeness import Source


class PlainMask(NamedTuple):
    name: str
    applied: Callable[[], AbstractContextManager[None]]


class PlainCut(Cut):
    """What the two have in common: they refuse and check nothing."""

    def check(self, model: PreTrainedModel, plan: PlanView) -> None: ...

    def without(self, model: PreTrainedModel) -> AbstractContextManager[None]:
        raise NotImplementedError

    def masks(self, model: PreTrainedModel, plan: PlanView) -> list[PlainMask]:
        return [PlainMask("", partial(self.without, model))]

    def refuses(self, name: str) -> str | None:
        return None

    def check_stored(self, sources: Mapping[str, Sequence[Source]], affected: Mapping[str, Shape]) -> None: ...

    def rename(self, name: str, parameter: str) -> str | None:
        return name

    def takes(self, model: PreTrainedModel, plan: PlanView, tensors: Sequence[AffectedTensor]) -> Mapping[str, Indices]:
        return {}

    def choice(self) -> Any:
        return self.model_dump()

    def summary(self) -> dict[str, object]:
        return self.model_dump()


class WithoutFirstLayers(PlainCut):
    """Whole tensors go, and the others' names change."""

    kind: Literal["first layers"] = "first layers"
    gone: int

    def apply(self, model: PreTrainedModel, plan: PlanView) -> None:
        model.model.layers = nn.ModuleList(model.model.layers[self.gone :])
        model.config.num_hidden_layers -= self.gone
        for number, layer in enumerate(model.model.layers):
            layer.self_attn.layer_idx = number

    @contextmanager
    def without(self, model: PreTrainedModel) -> Iterator[None]:
        for layer in model.model.layers[: self.gone]:
            layer.forward = lambda hidden, *args, **kwargs: hidden
        yield
        for layer in model.model.layers[: self.gone]:
            del layer.forward

    def rename(self, name: str, parameter: str) -> str | None:
        head, found, rest = name.partition("model.layers.")
        number, _, tail = rest.partition(".")
        if not found:
            return name
        return None if int(number) < self.gone else f"{head}{found}{int(number) - self.gone}.{tail}"

    @classmethod
    def config(cls, config: Any) -> dict[str, Any]:
        return {"num_hidden_layers": config.num_hidden_layers}


class Narrower(PlainCut):
    """Rows of one matrix and columns of another go, the same in every expert."""

    kind: Literal["narrower"] = "narrower"
    kept: list[int]
    width: int

    def apply(self, model: PreTrainedModel, plan: PlanView) -> None:
        for layer in model.model.layers:
            experts = layer.mlp.experts
            experts.gate_up_proj = nn.Parameter(experts.gate_up_proj.data[:, self._both()])
            experts.down_proj = nn.Parameter(experts.down_proj.data[:, :, self.kept])
            experts.intermediate_dim = len(self.kept)
        model.config.intermediate_size = len(self.kept)

    def _both(self) -> list[int]:
        return [*self.kept, *(self.width + channel for channel in self.kept)]

    @contextmanager
    def without(self, model: PreTrainedModel) -> Iterator[None]:
        before = [layer.mlp.experts.down_proj.data for layer in model.model.layers]
        for layer in model.model.layers:
            down = layer.mlp.experts.down_proj
            down.data = down.data * torch.tensor([float(i in self.kept) for i in range(self.width)], device=down.device)
        yield
        for layer, data in zip(model.model.layers, before, strict=True):
            layer.mlp.experts.down_proj.data = data

    def takes(self, model: PreTrainedModel, plan: PlanView, tensors: Sequence[AffectedTensor]) -> Mapping[str, Indices]:
        ends = {"gate_up_proj": 0, "down_proj": 1}  # the axis of one expert's matrix, as Mixtral's files hold it
        return {t.name: {axis: np.array(self.kept)} for t in tensors for end, axis in ends.items() if t.parameter.endswith(end)}

    @classmethod
    def config(cls, config: Any) -> dict[str, Any]:
        return {"intermediate_size": config.intermediate_size}


@pytest.fixture(autouse=True)
def known() -> Iterator[None]:
    """The one line that a new kind needs in toolkit/cuts/plan.py."""
    new = [WithoutFirstLayers, Narrower]
    KINDS.extend(new)
    Plan.model_rebuild(force=True)
    yield
    del KINDS[-len(new) :]
    Plan.model_rebuild(force=True)


FEWER_LAYERS = WithoutFirstLayers(criterion="by hand", gone=1)
NARROWER = Narrower(criterion="by hand", kept=[0, 3, 4, 5, 9, 11, 12, 15], width=16)


@pytest.mark.parametrize("with_experts", [False, True])
@pytest.mark.parametrize("cuts", [[FEWER_LAYERS], [NARROWER], [FEWER_LAYERS, NARROWER]], ids=["layers", "width", "both"])
def test_masked_is_applied_is_written(cuts: list[Cut], with_experts: bool, tmp_path: Path) -> None:
    model = tiny_model("mixtral", num_hidden_layers=3)
    model.save_pretrained(tmp_path / "original")
    choice = plan_for(model, [1, 2, 6]).blocks  # in the layers that stay
    choice = {name: block for name, block in choice.items() if all(cut.rename(name, name) for cut in cuts)}
    experts = [ExpertsCut.of(choice, criterion="by hand", keep=3)] if with_experts else []
    Plan(model="tiny", experts_per_token=2, cuts=[*experts, *cuts]).save(tmp_path / "plan.json")
    plan = Plan.load(tmp_path / "plan.json")
    before = logits_of(model)
    with masked(model, plan):
        expected = logits_of(model)
    assert torch.equal(logits_of(model), before) and (expected - before).abs().max() > 1e-3
    prune_checkpoint(tmp_path / "original", plan, tmp_path / "pruned")
    applied = logits_of(apply_plan(model, plan))
    assert (applied - expected).abs().max() <= 1e-5
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned")
    assert torch.equal(logits_of(stock), applied)
    assert {name: p.shape for name, p in stock.named_parameters()} == {name: p.shape for name, p in model.named_parameters()}
