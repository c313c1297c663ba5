"""Gauss–Newton steps for what makes the experts' channels."""

import pytest
import torch
from families import tiny_family
from refit_cases import cut_copy, drawn_batches
from transformers import PreTrainedModel

from toolkit.moe import find_blocks
from toolkit.moe.residual_writers import ExpertsWriter, WriterInputs
from toolkit.recovery.refit import layer, refit_model
from toolkit.recovery.refit.layer import solve_layer
from toolkit.recovery.refit.projections import Linearised, refit_projections
from toolkit.recovery.refit.tokens import LayerTokens, Unit, channels_of_group, groups_of

CPU = torch.device("cpu")
LAYOUTS = ["mixtral", "gpt_oss", "nemotron_h"]  # gate rows before up rows; in turns, biases, transposed; no gate


def case(model: PreTrainedModel, lacking: float = 1.0, tokens: int = 200) -> tuple[list[Unit], LayerTokens]:
    """The units of the first block's experts, and drawn tokens, of which every fifth is held out; the first weighs the most."""
    block = find_blocks(model.requires_grad_(False))[0]
    writer, draw = ExpertsWriter(block), torch.Generator().manual_seed(3)
    dtype = next(block.experts.parameters()).dtype
    read = writer.projection(0).shape[1]
    index = torch.rand(tokens, writer.units, generator=draw).argsort(1)[:, :2]
    scale = torch.linspace(2, 0.5, tokens).to(dtype)
    inputs = WriterInputs(
        torch.randn(tokens, read, generator=draw).to(dtype), index, torch.rand(tokens, 2, generator=draw).to(dtype), scale
    )
    missing = lacking * torch.randn(tokens, writer.weight(0).shape[1], generator=draw).to(dtype)
    (units,) = groups_of([(writer, 0.5)])
    return units, LayerTokens({writer.name: inputs}, missing, torch.arange(tokens) % 5 == 0)


def written(units: list[Unit], tokens: LayerTokens) -> torch.Tensor:
    Z_RN, _ = channels_of_group(units, tokens, CPU)
    return Z_RN @ torch.cat([unit.writer.weight(unit.number) for unit in units]).to(Z_RN.dtype)


def projection(unit: Unit) -> torch.Tensor:
    assert isinstance(unit.writer, ExpertsWriter)
    return unit.writer.projection(unit.number)


def weights_of(units: list[Unit]) -> torch.Tensor:
    return torch.cat([weight.flatten() for unit in units for weight in (unit.writer.weight(unit.number), projection(unit))])


@pytest.mark.parametrize("family", LAYOUTS)
def test_it_is_linearised_as_the_experts_move(family: str) -> None:
    """J d is the difference quotient of what the experts write, and what goes back is its transpose."""
    units, tokens = case(tiny_family(family).double())
    problem, draw = Linearised(units, [tokens], CPU), torch.Generator().manual_seed(0)
    directions = [torch.randn(projection(unit).shape, generator=draw, dtype=torch.float64) for unit in units]
    (image,), curved = problem.apply(directions)
    gradients, _ = problem.start()
    fitted = tokens.fitted
    across = sum(float((a * b).sum()) for a, b in zip(directions, gradients, strict=True))
    assert across == pytest.approx(float((image[fitted] * tokens.lacking_RH[fitted]).sum()), rel=1e-9)
    curvature = sum(float((a * b).sum()) for a, b in zip(directions, curved, strict=True))
    assert curvature == pytest.approx(float(image[fitted].square().sum()), rel=1e-9)

    before, small = written(units, tokens), 1e-6
    for unit, direction in zip(units, directions, strict=True):
        projection(unit).add_(small * direction)
    moved = (written(units, tokens) - before) / small
    assert (moved - image).abs().max() < 1e-3 * image.abs().max()


@pytest.mark.parametrize("family", LAYOUTS)
def test_projections_that_were_lost_are_found_again(family: str) -> None:
    """What experts lack is what they wrote before their projections were disturbed: half of the error goes at least, and what is
    lacking then is what was lacking less what they write more."""
    units, tokens = case(tiny_family(family).double(), lacking=0.0, tokens=2000)
    right, draw = written(units, tokens), torch.Generator().manual_seed(1)
    for unit in units:
        weight = projection(unit)
        weight.add_(0.1 * weight.std() * torch.randn(weight.shape, generator=draw).to(weight))
    tokens.lacking_RH = right - written(units, tokens)
    before = float(tokens.lacking_RH[tokens.held_out].square().sum())
    assert refit_projections(units, [tokens], CPU, torch.float64) > 0
    assert torch.allclose(tokens.lacking_RH, right - written(units, tokens), atol=1e-9)
    assert float(tokens.lacking_RH[tokens.held_out].square().sum()) < 0.5 * before


def test_the_held_out_error_never_rises_and_nothing_lacking_is_nothing_to_do() -> None:
    """Noise is nothing that held-out tokens have in common with the others."""
    for lacking in (1e-3, 0.0):
        units, tokens = case(tiny_family("mixtral"), lacking, tokens=20)
        weights = [projection(unit).clone() for unit in units]
        missing = tokens.lacking_RH.clone()
        steps = refit_projections(units, [tokens], CPU, torch.float32)
        unchanged = [torch.equal(projection(unit), weight) for unit, weight in zip(units, weights, strict=True)]
        assert all(unchanged) if not steps else not all(unchanged)
        left = tokens.lacking_RH[tokens.held_out].square().sum()
        assert left <= missing[tokens.held_out].square().sum() * (1 + 1e-6)
        if not lacking:
            assert steps == 0


def test_the_error_falls_with_every_round(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches = tiny_family("mixtral"), drawn_batches(120)
    errors = []
    for rounds in (0, 1, 2):
        monkeypatch.setattr(layer, "ROUNDS", rounds)
        first = refit_model(model, cut_copy(model), batches).blocks[0]
        errors.append(first.error_after)
        assert any("gate_up_proj" in name for name in first.weights) == any(first.steps) == bool(rounds)
    assert errors == sorted(errors, reverse=True) and errors[2] < 0.97 * errors[0]


def test_a_token_of_twice_the_weight_is_a_token_that_is_there_twice() -> None:
    """In the down projections and in what makes their channels alike."""
    found = []
    for twice in (True, False):
        units, tokens = case(tiny_family("mixtral").double(), tokens=300)
        inputs = tokens.inputs[units[0].writer.name]
        first = torch.arange(300) < 150
        rows = torch.cat([torch.arange(300), first.nonzero().flatten()]) if twice else torch.arange(300)
        scale = torch.ones(300, dtype=torch.float64) if twice else torch.where(first, 2.0, 1.0).double().sqrt()
        lacking = (inputs.hidden * scale.unsqueeze(1))[rows]  # can be learnt, unlike noise
        batch = LayerTokens({units[0].writer.name: inputs._replace(scale_R=scale).rows(rows)}, lacking, tokens.held_out_R[rows])
        solve_layer([(units[0].writer, 0.5)], [batch], CPU, torch.float64)
        found.append(weights_of(units))
    start = weights_of(case(tiny_family("mixtral").double())[0])
    assert (found[0] - start).abs().max() > 1e-3
    assert (found[0] - found[1]).abs().max() < 1e-9
