"""Laws of keeping zeros: they stay bit for bit, whatever trains, and where there are none it is refused."""

from pathlib import Path

import pytest
import torch
from conftest import PLAYGROUND, logits_of, raises, tiny_model
from sparse_checkpoint import make_sparse, zeros_of
from torch import nn

from toolkit.moe import decoder_linears, find_blocks
from toolkit.recipe.finetuning import LoraRecipe
from toolkit.recipe.schema import Recipe
from toolkit.recovery.method import Loaded
from toolkit.recovery.methods import METHODS, check_reach
from toolkit.recovery.settings import check_zeros
from toolkit.recovery.spp import ROWS, SCALE, Factors, take_factors_in
from toolkit.recovery.zeros import KeptZeros, hold_zeros


def recipe(model: Path | str, pruning: dict | None = None, **finetuning: object) -> Recipe:
    values = {"name": "t", "model": str(model), "task": "gsm8k", "finetuning": finetuning, "pruning": pruning or {}}
    return Recipe.model_validate(values)


def held(model: nn.Module) -> KeptZeros:
    kept = hold_zeros(recipe("m", keep_zeros=True), METHODS["full"], model, "m")
    assert kept is not None
    return kept


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    ids = torch.randint(3, 64, (4, 16), generator=torch.Generator().manual_seed(0))
    model.train()(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("method", ["full", "experts", "new", "spp"])
def test_zeros_stay_zeros_through_steps_with_weight_decay_and_the_rest_moves(family: str, method: str) -> None:
    model = make_sparse(tiny_model(family))
    before, zeros = {name: p.detach().clone() for name, p in model.state_dict().items()}, zeros_of(model)
    blocks = find_blocks(model)
    new = {block.name: [6, 7] for block in blocks}
    METHODS[method].set_up(Loaded(model, blocks, list(decoder_linears(model, blocks)), new), LoraRecipe())
    check_reach(model, blocks, METHODS[method], LoraRecipe())
    grown = {"grow": {"onto": "runs/a/recovered", "keep": 8}} if method == "new" else None
    kept = hold_zeros(recipe("m", grown, method=method, keep_zeros=method != "spp"), METHODS[method], model, "m")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)
    for _ in range(3):
        step(model, optimizer)
    assert kept is not None
    kept.check(model)
    take_factors_in(model)
    assert zeros_of(model) == zeros and sum(zeros.values()) > 1000
    moved = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
    assert any("experts" in name for name in moved)
    assert (method in ("full", "spp")) == any("self_attn" in name for name in moved)


def test_without_it_they_would_not_stay() -> None:
    model = make_sparse(tiny_model("mixtral"))
    before = sum(zeros_of(model).values())
    step(model, torch.optim.AdamW(model.parameters(), lr=1e-2))
    assert sum(zeros_of(model).values()) < before / 2


def test_lost_zeros_are_an_error() -> None:
    model = make_sparse(tiny_model("mixtral"))
    kept = held(model)
    weight = find_blocks(model)[0].experts.down_proj
    with torch.no_grad():
        weight[weight == 0] = 1.0
    with raises("recovery.zeros-lost", "finetuning.keep_zeros", f"{weight.numel() // 2:,}"):
        kept.check(model)


def test_a_bias_of_zeros_and_a_few_zeros_are_free() -> None:
    model = make_sparse(tiny_model("gpt_oss"))
    attention = model.model.layers[0].self_attn
    with torch.no_grad():
        attention.q_proj.bias.zero_()
        attention.q_proj.weight.fill_(1.0)[0, 0] = 0.0
    names = held(model).matrices
    assert not any("layers.0.self_attn.q_proj" in name for name in names)


def test_spp_multiplies_rows_and_columns_as_published() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(2 * ROWS, 10, generator=generator)
    factors = Factors(weight.shape, False, weight)
    torch.testing.assert_close(factors(weight), weight, rtol=0, atol=0)  # beta begins at zero
    factors.beta.data.normal_(generator=generator)
    alpha, beta = factors.alpha, factors.beta
    assert (alpha.shape, beta.shape) == ((ROWS, 10), (2 * ROWS, 1))
    expected = weight + SCALE * weight * alpha.repeat_interleave(2, 0) * beta.expand(-1, 10)
    torch.testing.assert_close(factors(weight), expected)
    turned = Factors(weight.mT.shape, True, weight)
    turned.load_state_dict(factors.state_dict())
    torch.testing.assert_close(turned(weight.mT), expected.mT)


def test_what_spp_merges_is_what_it_trained(family: str) -> None:
    model = make_sparse(tiny_model(family))
    names = set(model.state_dict())
    METHODS["spp"].set_up(Loaded(model, find_blocks(model), []), LoraRecipe())
    before = logits_of(model)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and name.endswith("beta"):
            parameter.data.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    trained = logits_of(model)
    assert (trained - before).abs().max() > 1e-2
    take_factors_in(model)
    assert set(model.state_dict()) == names
    torch.testing.assert_close(logits_of(model), trained, rtol=1e-5, atol=1e-5)


def test_factors_fit_matrices_with_fewer_rows_and_rows_that_do_not_divide() -> None:
    for rows in (3, ROWS + 5):
        weight = torch.randn(rows, 7)
        factors = Factors(weight.shape, False, weight)
        assert factors(weight).shape == weight.shape and factors.alpha.shape == (min(rows, ROWS), 7)


@pytest.mark.parametrize(
    ("method", "named"), [("lora", "method: spp"), ("qlora", "method: spp"), ("router", "router"), ("spp", "by itself")]
)
def test_methods_that_cannot_be_asked_say_why(method: str, named: str) -> None:
    with raises("recovery.zeros-not-kept", "finetuning.keep_zeros", named):
        check_zeros(recipe("m", method=method, keep_zeros=True), METHODS[method])


@pytest.mark.parametrize("how", [{"keep_zeros": True}, {"method": "spp"}])
def test_a_checkpoint_without_zeros_is_refused_beforehand(how: dict, tmp_path: Path) -> None:
    dense = recipe(PLAYGROUND / "model", **how)
    asked = METHODS[dense.finetuning.method]
    with raises("recovery.no-zeros", str(PLAYGROUND / "model"), "1%"):
        check_zeros(dense, asked)
    make_sparse(tiny_model("mixtral")).save_pretrained(tmp_path)
    check_zeros(recipe(tmp_path, **how), asked)
    with raises("recovery.zeros-not-kept", "pruning.refit"):
        check_zeros(recipe(tmp_path, pruning={"refit": True}, **how), asked)
    (tmp_path / "config.json").write_text(
        (tmp_path / "config.json").read_text().rstrip().removesuffix("}") + ', "quantization_config": {"quant_method": "fp8"}}'
    )
    with raises("recovery.zeros-not-kept", "fp8"):
        check_zeros(recipe(tmp_path, **how), asked)


@pytest.mark.parametrize("optimizer", ["adamw_bnb_8bit", "paged_adamw_8bit", "adamw_torch_4bit", "galore_adamw"])
def test_optimizers_that_move_what_has_no_gradient_are_refused(optimizer: str) -> None:
    asked = recipe("m", keep_zeros=True, trainer={"optim": optimizer})
    with raises("recovery.zeros-not-kept", "finetuning.trainer.optim", optimizer, "adamw_torch"):
        check_zeros(asked, METHODS["full"])


def test_a_recipe_that_keeps_nothing_is_not_looked_at() -> None:
    check_zeros(recipe("not/there"), METHODS["full"])
    assert hold_zeros(recipe("m"), METHODS["full"], tiny_model("mixtral"), "m") is None
