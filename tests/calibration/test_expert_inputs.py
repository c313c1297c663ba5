"""What compressions know of the experts' inputs is what these got, token by token, whatever the batches, ranks and padding."""

import subprocess
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from conftest import plan_for, raises, tiny_model
from rank_launcher import RANKS, ranks
from test_calibrate import batches_of
from torch.testing import assert_close
from transformers import PreTrainedModel

from toolkit.calibration import CalibrationSource, observe
from toolkit.calibration import expert_inputs as module
from toolkit.calibration.expert_inputs import expert_inputs, moment_bytes
from toolkit.calibration.observer import Observer
from toolkit.cuts.compression import ExpertInputs, LowRank, compressed
from toolkit.moe import BlockActivations, ObservedBatch, expert_channels, find_blocks
from toolkit.moe.expert_matrices import expert_matrices

LENGTHS = [24, 9, 17, 12, 30, 8]


class Recorder(Observer):
    """Every input of every expert, one token at a time."""

    def __init__(self) -> None:
        self.hidden = defaultdict(list)

    def on_batch(self, activations: BlockActivations, batch: ObservedBatch) -> None:
        for token in batch.real.nonzero().flatten().tolist():
            for expert in activations.index_TK[token].tolist():
                self.hidden[activations.block, expert].append(activations.hidden_TH[token])


def recorded(model: PreTrainedModel) -> dict[tuple[str, str, int], torch.Tensor]:
    """X [T, in] by block, matrix and expert; [0, in] for one that no token reached."""
    recorder = Recorder()
    observe(model, batches_of(LENGTHS, 1), [recorder])
    found = {}
    for block in find_blocks(model):
        up, down = expert_matrices(block.experts)
        for expert in range(block.expert_count):
            rows = recorder.hidden[block.name, expert]
            hidden = torch.stack(rows) if rows else torch.zeros(0, up.shape[1], dtype=up.parameter.dtype)
            found[block.name, up.name, expert] = hidden
            found[block.name, down.name, expert] = expert_channels(block.experts, hidden, expert)
    return found


def observed(model: PreTrainedModel, size: int = 3, low_rank: LowRank | None = None) -> ExpertInputs:
    return expert_inputs(model, [CalibrationSource("", batches_of(LENGTHS, size))], low_rank)


@pytest.mark.parametrize("low_rank", [None, LowRank(0.5)], ids=["squares", "moments"])
def test_norms_are_those_of_the_inputs_prompts_included(family: str, low_rank: LowRank | None) -> None:
    model = tiny_model(family, torch.float64)
    found, every = observed(model, low_rank=low_rank), recorded(model)
    for (block, name, expert), inputs in every.items():
        norm = inputs.square().sum(0).sqrt() / sum(LENGTHS) ** 0.5  # a source counts by its weight, not by its length
        assert_close(found[block][name].norm[expert], norm, rtol=1e-9, atol=1e-12)
        assert (found[block][name].basis is None) == (low_rank is None)


# What makes a basis worth having: on the tokens that an expert got, its matrix of that rank is the best there is.
def test_the_error_on_the_experts_own_tokens_is_the_smallest_at_that_rank(family: str) -> None:
    model = tiny_model(family, torch.float64)
    every, low_rank = recorded(model), LowRank(0.5)
    inputs = observed(model, low_rank=low_rank)
    plan = plan_for(model, list(range(8)))
    whole = {key: matrix.of(key[2]).clone() for key, matrix in matrices(model).items()}
    with compressed(model, plan, low_rank, inputs):
        for key, matrix in matrices(model).items():
            original, tokens, rank = whole[key], every[key], low_rank.rank(matrix.shape)
            error = ((original - matrix.of(key[2])) @ tokens.T).square().sum()
            outputs = original @ tokens.T
            discarded = torch.linalg.svdvals(outputs)[rank:].square().sum()
            left, values, right = torch.linalg.svd(original, full_matrices=False)
            plain = left[:, :rank] * values[:rank] @ right[:rank]
            assert_close(error, discarded, rtol=1e-3, atol=1e-4 * float(outputs.square().sum() + 1))
            assert error <= ((original - plain) @ tokens.T).square().sum() + 1e-9


def matrices(model: PreTrainedModel) -> dict:
    return {
        (block.name, matrix.name, expert): matrix
        for block in find_blocks(model)
        for matrix in expert_matrices(block.experts)
        for expert in range(block.expert_count)
    }


def assert_same(one: ExpertInputs, other: ExpertInputs) -> None:
    assert one.keys() == other.keys()
    for block, of_block in one.items():
        for name, inputs in of_block.items():
            assert_close(inputs.norm, other[block][name].norm, rtol=1e-9, atol=0)
            spans = [each.basis @ each.basis.mT for each in (inputs, other[block][name])]
            assert_close(spans[0], spans[1], rtol=0, atol=1e-6)


def test_padding_never_counts(family: str) -> None:
    model = tiny_model(family, torch.float64)
    assert_same(observed(model, 3, LowRank(0.5)), observed(model, 1, LowRank(0.5)))


def test_a_source_counts_by_its_weight_however_long_it_is() -> None:
    model = tiny_model("mixtral", torch.float64)
    one, other = batches_of([24, 9], 1), batches_of([30], 1)
    twice = [CalibrationSource("one", [*one, *one]), CalibrationSource("other", other, 1.0)]
    once = [CalibrationSource("one", one), CalibrationSource("other", other, 1.0)]
    assert_same(expert_inputs(model, twice, LowRank(0.5)), expert_inputs(model, once, LowRank(0.5)))
    alone = expert_inputs(model, [CalibrationSource("one", one, 5.0), CalibrationSource("none", [], 1.0)])
    whole = expert_inputs(model, [CalibrationSource("one", one, 5.0)])
    block = find_blocks(model)[0].name
    assert torch.equal(alone[block]["down_proj"].norm, whole[block]["down_proj"].norm)


@pytest.mark.launcher
def test_two_ranks_observe_what_one_does(tmp_path: Path) -> None:
    model = tiny_model("mixtral", torch.float64)
    model.save_pretrained(tmp_path / "model")
    torch.save(batches_of(LENGTHS, 2), tmp_path / "batches.pt")
    script = str(Path(__file__).with_name("inputs_in_parts.py"))
    command = ranks(RANKS, script, str(tmp_path / "model"), str(tmp_path))
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"inputs{number}.pt") for number in (0, 1))
    alone = observed(model, 2, LowRank(0.5))
    for key, (norm, basis) in first.items():
        assert torch.equal(norm, second[key][0]) and torch.equal(basis, second[key][1])  # all ranks mask the same
        block, _, name = key.rpartition("/")
        assert_close(norm, alone[block][name].norm, rtol=1e-12, atol=0)
        assert_close(basis @ basis.mT, alone[block][name].basis @ alone[block][name].basis.mT, rtol=0, atol=1e-8)


def test_moments_that_do_not_fit_are_refused_with_their_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("mixtral")
    needed = moment_bytes(find_blocks(model))
    assert needed >= 8 * 8 * (32**2 + 16**2)  # float64, 8 experts; of one block
    monkeypatch.setattr(module, "MEMORY_SHARE", 0.0)
    with raises("compression.moments-do-not-fit", f"{needed:,} bytes", "low_rank:0.5"):
        observed(model, low_rank=LowRank(0.5))
    observed(model)  # 2:4 needs one number per input


def test_no_tokens_and_inputs_that_are_not_finite_are_refused() -> None:
    model = tiny_model("mixtral")
    with raises("calibration.no-tokens"):
        expert_inputs(model, [CalibrationSource("", [])])
    find_blocks(model)[0].experts.gate_up_proj.data[3, 0, 0] = torch.nan
    with raises("calibration.not-finite", "expert 3"):
        observed(model)
