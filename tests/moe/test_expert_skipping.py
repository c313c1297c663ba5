"""Laws of skipping: a plain loop's logits, the work that is saved, what is counted, what a checkpoint carries."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from conftest import logits_of, raises, tiny_model
from families import EXCEPTIONS, families, text_logits, tiny_family
from rank_launcher import free_port
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from toolkit.calibration import skipping_thresholds
from toolkit.cuts.apply import masked
from toolkit.cuts.block_plan import BlockPlan
from toolkit.cuts.checkpoint import prune_checkpoint
from toolkit.cuts.plan import Plan
from toolkit.evaluation import generate
from toolkit.moe import counting_skips, find_blocks, load_model, partitioned_model, skipping
from toolkit.moe.expert_skipping import Skipping, is_skipping
from toolkit.moe.skipped_pairs import renormalized_gates, skipped_pairs
from toolkit.runtime.distributed import start, stop
from toolkit.runtime.errors import PollardError

ids = torch.randint(3, 62, (2, 24), generator=torch.Generator().manual_seed(1))


def thresholds_of(model: PreTrainedModel, share: float = 0.5) -> Skipping:
    return skipping_thresholds(model, [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}], share)


def by_hand(model: PreTrainedModel, thresholds: Skipping, logits: Any) -> torch.Tensor:
    """The rule in a plain loop, token by token and expert by expert."""
    betas = {id(block.experts): thresholds.blocks[block.name] for block in find_blocks(model)}

    def loop(experts: Any, hidden: torch.Tensor, index: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        run = ALL_EXPERTS_FUNCTIONS.get_interface(before, type(experts).forward.__wrapped__)
        beta, rows = betas[id(experts)], []
        for t in range(len(hidden)):
            g = gate[t].tolist()
            size = [abs(weight) for weight in g]
            best = sorted(range(len(g)), key=lambda i: -size[i])
            if len(g) == 2:
                keep = best[:1] if size[best[1]] < beta * size[best[0]] else best
            else:
                keep = next(best[:i] for i in range(1, len(g) + 1) if sum(size[m] for m in best[i:]) <= beta * sum(size))
            row = torch.zeros_like(hidden[t])
            for i in keep:
                alone = run(experts, hidden[t : t + 1], index[t : t + 1, i : i + 1], torch.ones_like(gate[:1, :1]))[0]
                row += g[i] * sum(size) / sum(size[m] for m in keep) * alone
            rows.append(row)
        return torch.stack(rows)

    before = model.config._experts_implementation
    ALL_EXPERTS_FUNCTIONS.register("by_hand", loop)
    model.set_experts_implementation("by_hand")
    try:
        return logits(model)
    finally:
        model.set_experts_implementation(before)


def text(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


@pytest.mark.parametrize("k", [2, 4])
def test_skipping_is_the_rule_in_a_plain_loop(family: str, k: int) -> None:
    model = tiny_model(family, num_experts_per_tok=k)
    thresholds, whole = thresholds_of(model), text(model)
    expected = by_hand(model, thresholds, text)
    with skipping(model, thresholds), counting_skips(model) as counter:
        found = text(model)
    assert 0.3 < counter.take().rate < 0.7
    assert (found - expected).abs().max() <= 1e-5
    assert (found - whole).abs().max() > 1e-3  # or it would prove nothing
    assert torch.equal(text(model), whole)  # and afterwards nothing is left of it


@pytest.mark.parametrize("family", [family for family in families() if family not in EXCEPTIONS])
def test_every_family_of_transformers_skips_by_the_rule(family: str) -> None:
    model = tiny_family(family)
    if find_blocks(model)[0].experts_per_token == 1:
        with pytest.raises(PollardError, match="one expert per token"):
            thresholds_of(model)
        return
    thresholds = thresholds_of(model)
    expected = by_hand(model, thresholds, text_logits)
    with skipping(model, thresholds), counting_skips(model) as counter:
        found = text_logits(model)
        assert is_skipping(model)
    assert not is_skipping(model)
    assert sum(counter.take().skipped) > 0
    assert (found - expected).abs().max() <= 1e-5 * max(1.0, expected.abs().max().item())


def kept_pairs(gate: torch.Tensor, beta: float) -> torch.Tensor:
    return ~skipped_pairs(gate, torch.tensor([beta], dtype=torch.float64))


def test_the_second_of_two_is_skipped_only_below_beta_and_the_sum_stays() -> None:
    gate = torch.tensor([[0.6, 0.3], [0.3, 0.61], [0.5, 0.0], [0.0, 0.0]])  # routers need not sort, nor sum up to 1
    stay = kept_pairs(gate, 0.5)
    assert stay.tolist() == [[True, True], [False, True], [True, False], [True, True]]  # 0.3 / 0.6 is not below 0.5
    torch.testing.assert_close(renormalized_gates(gate, stay).sum(1), gate.sum(1))


def test_of_more_than_two_the_fewest_stay_that_hold_all_but_beta() -> None:
    gate = torch.tensor([[1.0, 4.0, 2.0, 1.0], [2.0, 2.0, 2.0, 2.0]]) * 2.5  # a family's own scale is no matter
    assert kept_pairs(gate, 0.25).sum(1).tolist() == [2, 3]
    assert kept_pairs(gate, 0.2499).sum(1).tolist() == [3, 4]
    assert kept_pairs(gate, 0.25)[0].tolist() == [False, True, True, False]
    assert kept_pairs(gate, 0.0).all()


def expert_flops(model: PreTrainedModel) -> int:
    """Operations of the experts' matrix products in one forward pass, as torch counts them."""
    names = {block.experts_name for block in find_blocks(model)}
    with FlopCounterMode(display=False) as counter:
        text(model)
    counts = {name.partition(".")[2]: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    return sum(counts[name] for name in names)


@pytest.mark.parametrize("k", [2, 4])
def test_the_experts_work_falls_by_what_is_skipped(family: str, k: int) -> None:
    model = tiny_model(family, num_experts_per_tok=k)
    model.set_experts_implementation("eager")  # of grouped products torch counts nothing
    whole = expert_flops(model)
    with skipping(model, thresholds_of(model)), counting_skips(model) as counter:
        left = expert_flops(model)
    count = counter.take()
    assert 0 < left == whole - whole * sum(count.skipped) // (k * sum(count.tokens))
    if k == 2:  # the first block's tokens are the calibration's: half of them skip one of two
        assert count.skipped[0] * 2 == count.tokens[0]


def test_padding_and_ended_answers_are_not_counted() -> None:
    model = tiny_model("mixtral")
    prompts, settings = [[5, 9, 11], [7] * 9, [4, 8]], GenerationConfig(max_new_tokens=6, pad_token_id=0, eos_token_id=[2, 40])
    with skipping(model, thresholds_of(model)):
        alone, counts = [], []
        for prompt in prompts:
            with counting_skips(model) as counter:
                alone += generate(model, [prompt], settings)
            counts.append(counter.take())
        with counting_skips(model) as counter:
            assert generate(model, prompts, settings) == alone
    together = counter.take()
    assert together == type(together).merged(counts)
    assert together.tokens == [sum(len(p) + len(a) - 1 for p, a in zip(prompts, alone, strict=True))] * 2


def test_answers_that_end_early_in_a_batch_count_as_alone() -> None:
    model, prompts = tiny_model("mixtral"), [[5, 9, 11], [7] * 9, [4, 8]]
    with skipping(model, thresholds_of(model)):
        written = generate(model, prompts, GenerationConfig(max_new_tokens=6, pad_token_id=0, eos_token_id=0))
    end = written[0][0]
    assert any(answer[0] != end for answer in written)  # so it ends the first answer at once, and not all of them
    with skipping(model, thresholds_of(model)), counting_skips(model) as counter:
        answers = generate(model, prompts, GenerationConfig(max_new_tokens=6, pad_token_id=0, eos_token_id=end))
    assert len({len(answer) for answer in answers}) > 1
    assert counter.take().tokens == [sum(len(p) + len(a) - 1 for p, a in zip(prompts, answers, strict=True))] * 2


def test_our_loader_follows_the_file_beside_a_checkpoint_and_stock_loading_does_not_see_it(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    model.save_pretrained(tmp_path)
    thresholds = thresholds_of(model)
    thresholds.save(tmp_path)
    assert Skipping.load(tmp_path) == thresholds
    with skipping(model, thresholds):
        expected = text(model)
    loaded = load_model(str(tmp_path))
    assert is_skipping(loaded)
    torch.testing.assert_close(text(loaded), expected, atol=1e-5, rtol=0)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(text(stock), text(load_model(str(tmp_path), skipping=False)))
    loaded.save_pretrained(tmp_path / "again")  # and a model that skips leaves a stock checkpoint
    assert torch.equal(text(AutoModelForCausalLM.from_pretrained(tmp_path / "again").eval()), text(stock))


def test_a_file_that_cannot_be_followed_is_refused(tmp_path: Path) -> None:
    model = tiny_model("mixtral")
    model.save_pretrained(tmp_path)
    thresholds = thresholds_of(model)
    thresholds.save(tmp_path)
    path = tmp_path / "skipping.json"
    good = json.loads(path.read_text())
    for damaged, told in (
        (path.read_text()[:40], ("skipping.damaged", "is damaged")),
        (json.dumps(good | {"format": 2}), ("skipping.damaged", "is damaged", "format")),
        (
            json.dumps(good | {"blocks": {name: 1.5 for name in good["blocks"]}}),
            ("skipping.damaged", "not model.layers.0.mlp: 1.5"),
        ),
        (json.dumps(good | {"blocks": {"model.layers.0.mlp": 0.5}}), ("skipping.other-model", "model.layers.1.mlp")),
        (json.dumps(good | {"experts_per_token": 3}), ("skipping.other-model", "3 experts per token, not 2")),
    ):
        path.write_text(damaged)
        with raises(*told):
            load_model(str(tmp_path))
        load_model(str(tmp_path), skipping=False)


def test_pruning_leaves_the_thresholds_of_the_whole_model_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_model("mixtral")
    model.save_pretrained(tmp_path / "original")
    thresholds_of(model).save(tmp_path / "original")
    blocks = {block.name: BlockPlan(experts=8, kept=[0, 2, 5]) for block in find_blocks(model)}
    plan = Plan.of_experts(model="tiny", criterion="by hand", keep=3, experts_per_token=2, blocks=blocks)
    prune_checkpoint(str(tmp_path / "original"), plan, tmp_path / "pruned")
    assert "left out: skipping.json" in capsys.readouterr().out
    pruned = load_model(str(tmp_path / "pruned"))
    assert not is_skipping(pruned)
    with masked(model, plan):
        torch.testing.assert_close(logits_of(pruned), logits_of(model), atol=1e-5, rtol=0)


def _in_parts(rank: int, folder: str, port: str) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    start()
    whole = {"stage": 3, "stage3_param_persistence_threshold": 0}
    with partitioned_model(folder, None, "float32", whole) as model, counting_skips(model) as counter, torch.no_grad():
        mine = ids[rank : rank + 1].repeat(1, 1 + rank)  # ranks route differently, and different numbers of tokens
        logits = model(input_ids=mine, use_cache=False).logits
        torch.save((mine, logits, counter.take().skipped), f"{folder}/found{rank}.pt")
    stop()


@pytest.mark.launcher
def test_a_model_in_parts_on_two_ranks_skips_as_the_whole_one(tmp_path: Path) -> None:
    model = tiny_model("mixtral")
    model.save_pretrained(tmp_path)
    thresholds_of(model).save(tmp_path)
    mp.spawn(_in_parts, (str(tmp_path), free_port()), nprocs=2)
    whole = load_model(str(tmp_path))
    for rank in (0, 1):
        mine, logits, skipped = torch.load(tmp_path / f"found{rank}.pt")
        with counting_skips(whole) as counter, torch.no_grad():
            torch.testing.assert_close(logits, whole(input_ids=mine, use_cache=False).logits, atol=1e-5, rtol=0)
        assert skipped == counter.take().skipped and min(skipped) > 0
