import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from conftest import ROOT, raises, tiny_model
from families import tiny_family
from rank_launcher import RANKS, ranks
from safetensors.torch import load_file

from toolkit.calibration import calibrate
from toolkit.cuts.statistics import ExpertStatistics
from toolkit.moe import find_blocks, mean_over_rms
from toolkit.runtime.distributed import shard
from toolkit.selection import CRITERIA, select
from toolkit.selection.criteria import Choice

NAEE = ROOT / "tests" / "reference" / "naee"
EXACT = ("count",)
SUMS = ("gate_sum", "norm_sum", "gated_norm_sum", "max_norm", "residual_shift_sum", "probability_sum", "norm_square_sum")


def batches_of(lengths: list[int], batch_size: int, prompt: int = 5) -> list[dict[str, torch.Tensor]]:
    """Random sequences, the same whatever the batch size, padded on the right; the first `prompt` tokens are the prompt."""
    generator = torch.Generator().manual_seed(3)
    sequences = [torch.randint(3, 64, (length,), generator=generator) for length in lengths]
    batches = []
    for start in range(0, len(sequences), batch_size):
        chunk = sequences[start : start + batch_size]
        ids = torch.nn.utils.rnn.pad_sequence(chunk, batch_first=True)
        real = torch.arange(ids.shape[1]) < torch.tensor([[len(s)] for s in chunk])
        completion = real & (torch.arange(ids.shape[1]) >= prompt)
        batches.append({"input_ids": ids, "attention_mask": real.long(), "completion_mask": completion.long()})
    return batches


def assert_same(one: ExpertStatistics, other: ExpertStatistics, tolerance: float) -> None:
    assert one.vectors.keys() == other.vectors.keys()
    for name, vector in one.vectors.items():
        if name.split("/")[-2] in EXACT:
            assert torch.equal(vector, other.vectors[name])
        else:
            torch.testing.assert_close(vector, other.vectors[name], rtol=tolerance, atol=0)
    for criterion in (name for name, rule in CRITERIA.items() if not rule.searched):
        kept = [[block.kept for block in select(s, criterion, 4).blocks.values()] for s in (one, other)]
        assert kept[0] == kept[1]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_padding_never_counts(family: str, dtype: torch.dtype, tolerance: float) -> None:
    lengths = [24, 9, 17, 12, 30, 8]
    model = tiny_model(family, dtype)
    padded, unpadded = (calibrate(model, batches_of(lengths, size)) for size in (3, 1))
    assert_same(padded, unpadded, tolerance)
    tokens = {"prompt": 5 * len(lengths), "completion": sum(lengths) - 5 * len(lengths)}
    assert all(about.tokens == tokens for about in padded.about.blocks.values())


# Zaya has one class more than experts; a token that chooses it skips them, and arrives as expert 0 with weight 0.
def test_a_token_that_skips_the_experts_counts_for_none() -> None:
    model = tiny_family("zaya")
    for block in find_blocks(model):
        block.router.balancing_biases[-1] = 9.0
    statistics = calibrate(model, batches_of([24], 1))
    names = (*EXACT, "gate_sum", "norm_sum", "gated_norm_sum", "max_norm", "norm_square_sum")
    assert all(not statistics.get(block, name).any() for block in statistics.blocks for name in names)


def test_a_block_that_no_token_enters_has_unobserved_experts_only() -> None:
    statistics = calibrate(tiny_family("ernie4_5_vl_moe"), batches_of([24], 1))
    for block in statistics.blocks:
        assert bool(statistics.get(block, "count").any()) == ("text_moe" in block)
        assert bool(statistics.of_weights(block, "aimer").any()) == ("text_moe" in block)


PRECISIONS = {torch.float32: 1e-5, torch.float64: 1e-9}


def _calibrate_on(rank: int, folder: str) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE="2")
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    for dtype in PRECISIONS:
        statistics = calibrate(tiny_model("mixtral", dtype), shard(batches_of([24, 9, 17, 12, 30, 8, 11], 2)))
        statistics.save(f"{folder}/{dtype}/rank{rank}")
    torch.distributed.destroy_process_group()


@pytest.mark.launcher
def test_two_ranks_find_what_one_finds(tmp_path: Path) -> None:
    mp.spawn(_calibrate_on, (str(tmp_path),), nprocs=2)
    for dtype, tolerance in PRECISIONS.items():
        alone = calibrate(tiny_model("mixtral", dtype), batches_of([24, 9, 17, 12, 30, 8, 11], 2))
        for rank in (0, 1):  # every rank holds the whole
            found = ExpertStatistics.load(tmp_path / str(dtype) / f"rank{rank}")
            assert_same(found, alone, tolerance)
            for block, about in alone.about.blocks.items():
                assert found.about.blocks[block].tokens == about.tokens


def test_facts_of_the_weights_are_taken_down_and_are_the_same_whatever_is_observed(family: str) -> None:
    model = tiny_model(family)
    one, other = (calibrate(model, batches_of(lengths, 3)) for lengths in ([24, 9, 17], [11]))
    for block in find_blocks(model):
        assert torch.equal(one.of_weights(block.name, "aimer"), other.of_weights(block.name, "aimer"))
        assert torch.equal(one.of_weights(block.name, "aimer"), mean_over_rms(block.experts))


# Their weights are whole only while they run, which is when they are looked at.
@pytest.mark.launcher
def test_a_model_in_parts_has_the_statistics_of_the_whole_one(tmp_path: Path) -> None:
    model, batches = tiny_model("mixtral"), batches_of([24, 9, 17, 12, 30], 2)
    model.save_pretrained(tmp_path / "model")
    torch.save(batches, tmp_path / "batches.pt")
    script = str(Path(__file__).with_name("calibrated_in_parts.py"))
    command = ranks(RANKS, script, str(tmp_path / "model"), str(tmp_path))
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found, whole = ExpertStatistics.load(tmp_path), calibrate(model, batches)
    assert_same(found, whole, 1e-5)
    for block in whole.blocks:
        assert torch.equal(found.of_weights(block, "aimer"), whole.of_weights(block, "aimer"))


def test_prompt_and_completion_add_up_to_a_pass_without_the_distinction() -> None:
    model = tiny_model("mixtral", torch.float64)
    apart = calibrate(model, batches_of([24, 9, 17], 3))
    together = calibrate(
        model, [{k: v for k, v in batch.items() if k != "completion_mask"} for batch in batches_of([24, 9, 17], 3)]
    )
    for statistic in (*EXACT, *SUMS):
        both = apart.get("model.layers.1.mlp", statistic)
        torch.testing.assert_close(both, together.get("model.layers.1.mlp", statistic, "completion"), rtol=1e-12, atol=0)
    assert together.get("model.layers.1.mlp", "count", "prompt").sum() == 0


def test_every_token_counts_top_k_times(family: str) -> None:
    statistics = calibrate(tiny_model(family), batches_of([24, 9, 17], 3))
    for block in statistics.blocks:
        assert statistics.get(block, "count").sum() == 2 * (24 + 9 + 17)


@pytest.mark.parametrize("case", ["case_a", "case_b"])
def test_statistics_agree_with_the_reference_worked_out_from_first_principles(case: str) -> None:
    ids = load_file(NAEE / case / "calibration.safetensors")["input_ids"]
    batches = [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in ids.split(4)]
    statistics = calibrate(str(NAEE / case / "model"), batches)
    expected = json.loads((NAEE / case / "statistics.json").read_text())
    names = {
        "count": "tokens_routed", "gate_sum": "gate_weight_sum", "norm_sum": "output_norm_sum",
        "gated_norm_sum": "weighted_output_norm_sum", "max_norm": "output_norm_max", "probability_sum": "softmax_prob_sum",
        "residual_shift_sum": "easy_ep",
    }  # fmt: skip
    for block, layer in zip(statistics.blocks, expected["layers"].values(), strict=True):
        for ours, theirs in names.items():
            torch.testing.assert_close(statistics.get(block, ours), torch.tensor(layer[theirs]).double(), rtol=5e-6, atol=0)
        reap = torch.tensor(CRITERIA["reap"].choose(statistics, block, Choice(4)).scores).double()
        torch.testing.assert_close(reap, torch.tensor(layer["reap"]).double(), rtol=5e-6, atol=0)


def test_no_tokens_and_outputs_that_overflow_are_errors() -> None:
    with raises("calibration.no-tokens"):
        calibrate(tiny_model("mixtral"), [])
    model = tiny_model("mixtral")
    model.model.layers[1].mlp.experts.down_proj.data.fill_(torch.inf)
    with raises("calibration.not-finite", "model.dtype=float32"):
        calibrate(model, batches_of([24], 1))
