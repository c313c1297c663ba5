"""How much each kept expert counts in the dense form: the formulas, written out; layer by layer, and over ranks."""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import ROOT, raises, tiny_model
from drawn_plan import drawn_plan
from families import tiny_family
from rank_launcher import RANKS, ranks

from toolkit.calibration import fit_dense
from toolkit.cuts import Plan, masked, with_fixed_gates
from toolkit.moe import StreamedModel, every_expert_outputs, find_blocks, observing
from toolkit.moe.observe import BlockActivations

ids = torch.randint(3, 64, (4, 24), generator=torch.Generator().manual_seed(2))
real = (torch.arange(24) >= torch.tensor([[7], [0]])).long()
batches = [
    {"input_ids": ids[:2], "attention_mask": torch.ones_like(ids[:2]), "completion_mask": (torch.arange(24) > 11).expand(2, 24)},
    {"input_ids": ids[2:], "attention_mask": real, "completion_mask": (torch.arange(24) > 11).expand(2, 24)},
]


def errors(plan: Plan) -> list[tuple[float, float]]:
    found = [(block.error, block.mean_gate_error) for block in (plan.dense or {}).values()]
    assert found and None not in [number for pair in found for number in pair]
    return found  # type: ignore[return-value]


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "deepseek_v3", "granitemoe", "flex_olmo", "cohere2_moe"])
def test_least_squares_are_never_worse_than_mean_gates_and_streamed_is_in_memory(family: str, tmp_path: Path) -> None:
    model = tiny_family(family)
    model.save_pretrained(tmp_path)
    plan = fit_dense(model, drawn_plan(model, 4, None), batches)
    assert all(error < mean for error, mean in errors(plan))  # fitted, in a model in which nothing is constant
    streamed = fit_dense(StreamedModel(str(tmp_path)), drawn_plan(model, 4, None), batches)
    for name, block in (plan.dense or {}).items():
        assert (streamed.dense or {})[name].coefficients == pytest.approx(block.coefficients, rel=1e-6, abs=1e-9)


def test_the_first_block_has_the_formulas_numbers() -> None:
    """Its inputs are the original's. Both errors are measured as well, in the model that is changed so."""
    model = tiny_model("mixtral")
    plan = drawn_plan(model, 4, None)
    plan.experts.tokens = "completion"
    first = find_blocks(model)[0]
    kept = plan.blocks[first.name].kept
    F, y, gates = [], [], []
    for batch in batches:
        rows = (batch["attention_mask"].bool() & batch["completion_mask"]).flatten().nonzero().flatten()

        def see(found: BlockActivations, rows: torch.Tensor = rows, into: list[torch.Tensor] = F) -> None:
            if found.block == first.name and into is F:
                F.append(every_expert_outputs(found.experts, found.hidden_TH[rows], first.expert_count)[:, kept].double())
                y.append(found.routed_TH[rows].double())
            elif found.block == first.name:
                gate = torch.zeros(len(rows), first.expert_count, dtype=torch.float64)
                gates.append(gate.scatter_(1, found.index_TK[rows], found.gate_TK[rows].double())[:, kept])

        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "use_cache": False}
        with observing(model, see), torch.no_grad():
            model.model(**inputs)
        with observing(model, lambda found, see=see: see(found, into=gates)), masked(model, plan), torch.no_grad():
            model.model(**inputs)
    F_TnH, y_TH, gate_Tn = torch.cat(F), torch.cat(y), torch.cat(gates)
    design = F_TnH.transpose(1, 2).reshape(-1, len(kept))
    expected = torch.linalg.lstsq(design, y_TH.reshape(-1)).solution
    block = (fit_dense(model, plan, batches).dense or {})[first.name]
    assert block.coefficients == pytest.approx(expected.tolist(), rel=1e-3)  # the ridge is small

    def error(c: torch.Tensor) -> float:
        return float((torch.einsum("n,tnh->th", c, F_TnH) - y_TH).square().sum() / y_TH.square().sum())

    assert block.error == pytest.approx(error(torch.tensor(block.coefficients, dtype=torch.float64)), rel=1e-5)
    assert block.mean_gate_error == pytest.approx(error(gate_Tn.mean(0)), rel=1e-5)


def test_one_expert_and_a_softmax_are_exactly_the_pruned_model() -> None:
    model = tiny_model("mixtral")
    plan = fit_dense(model, drawn_plan(model, 1, None), batches)
    dense = plan.dense or {}
    assert [block.coefficients for block in dense.values()] == [[1.0]] * len(dense)
    inputs = {"input_ids": ids, "use_cache": False}
    with torch.no_grad(), masked(model, plan):
        routed = model(**inputs).logits
    kept = {name: block.kept for name, block in plan.blocks.items()}
    with torch.no_grad(), with_fixed_gates(model, dense, kept), masked(model, plan):
        fixed = model(**inputs).logits
    assert torch.allclose(routed, fixed, rtol=0, atol=1e-6)


@pytest.mark.parametrize("layers", [None, [0, 2, 3]])
def test_it_is_fitted_to_the_experts_as_the_other_cuts_leave_them(layers: list[int] | None) -> None:
    model = tiny_model("mixtral", num_hidden_layers=4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plan = fit_dense(model, drawn_plan(model, 4, 8, layers), batches)
    assert {*(plan.dense or {})} == {*plan.blocks} and len(plan.blocks) == len(layers or range(4))
    assert all(error < mean for error, mean in errors(plan))
    wider = fit_dense(model, drawn_plan(model, 4, None, layers), batches)
    assert wider.dense != plan.dense
    assert model.config.num_hidden_layers == 4
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_padding_is_not_counted() -> None:
    model = tiny_model("mixtral")
    plan = drawn_plan(model, 4, None)
    wide = [{name: torch.nn.functional.pad(tensor, (5, 0)) for name, tensor in batch.items()} for batch in batches]
    one, other = ((fit_dense(model, plan, each).dense or {}).values() for each in (batches, wide))
    for without, padded in zip(one, other, strict=True):
        assert padded.coefficients == pytest.approx(without.coefficients, rel=1e-3)


def test_no_tokens_are_an_error() -> None:
    model = tiny_model("mixtral")
    nothing = [{name: torch.zeros_like(tensor) if "mask" in name else tensor for name, tensor in batches[0].items()}]
    with raises("calibration.no-tokens", "layers.0.mlp"):
        fit_dense(model, drawn_plan(model, 4, None), nothing)


def test_numbers_that_are_not_finite_are_an_error() -> None:
    model = tiny_model("mixtral")
    find_blocks(model)[1].experts.down_proj.data[:] = torch.inf
    with raises("calibration.not-finite", "layers.1.mlp"):
        fit_dense(model, drawn_plan(model, 4, None), batches)


SCRIPT = """
import json, sys
import torch
sys.path.insert(0, "tests/calibration"), sys.path.insert(0, "tests")
import test_dense_coefficients as here
from toolkit.runtime import distributed
distributed.start()
model = here.tiny_model("mixtral")
plan = here.fit_dense(model, here.drawn_plan(model, 4, None), distributed.shard(here.batches))
if distributed.is_main():
    print("FOUND", json.dumps([block.model_dump() for block in plan.dense.values()]))
distributed.stop()
"""


@pytest.mark.launcher
def test_two_ranks_find_what_one_does(tmp_path: Path) -> None:
    (tmp_path / "fit.py").write_text(SCRIPT)
    done = subprocess.run(ranks(RANKS, str(tmp_path / "fit.py")), cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    two = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("FOUND")).removeprefix("FOUND"))
    model = tiny_model("mixtral")
    one = (fit_dense(model, drawn_plan(model, 4, None), batches).dense or {}).values()
    for mine, theirs in zip(one, two, strict=True):
        assert theirs["coefficients"] == pytest.approx(mine.coefficients, rel=1e-6)
        assert theirs["error"] == pytest.approx(mine.error, rel=1e-6)
