"""Laws of the thresholds: the published code's medians, shares that are skipped as asked, any number of ranks, layer by layer."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from conftest import ROOT, raises, tiny_model
from honest import batches_of
from safetensors.torch import load_file

from toolkit.calibration import skipping_thresholds
from toolkit.calibration.skipping_thresholds import quantile
from toolkit.moe import BlockActivations, StreamedModel, counting_skips, load_model, observing, skipping
from toolkit.moe.expert_skipping import Skipping
from toolkit.runtime.distributed import shard

NAEE = ROOT / "tests" / "reference" / "naee"


@pytest.mark.parametrize("case", ["case_a", "case_b"])
def test_the_published_codes_medians(case: str) -> None:
    expected = json.loads((NAEE / case / "expected.json").read_text())
    ids = load_file(NAEE / case / "calibration.safetensors")["input_ids"]
    batches = [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in ids.split(expected["batch_size"])]
    found = skipping_thresholds(load_model(str(NAEE / case / "model")), batches)
    assert list(found.blocks.values()) == pytest.approx(list(expected["dynamic_skipping"]["median"].values()), abs=1e-6)
    assert found.tokens == ids.numel() and found.experts_per_token == 2


@pytest.mark.parametrize("k", [2, 4])
@pytest.mark.parametrize("rule", ["median", 0.3, 0.9])
def test_what_is_asked_for_is_skipped(rule: "float | str", k: int) -> None:
    model, batches = tiny_model("mixtral", num_experts_per_tok=k), batches_of(3)
    found = skipping_thresholds(model, batches, rule)
    first = next(iter(found.blocks))  # later blocks see other inputs once earlier ones skip
    others_never = found.model_copy(
        update={"blocks": {name: found.blocks[name] if name == first else 0.0 for name in found.blocks}}
    )
    with skipping(model, others_never), counting_skips(model) as counter, torch.no_grad():
        for batch in batches:
            model(batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
    count = counter.take()
    real = sum(int(batch["attention_mask"].sum()) for batch in batches)
    assert count.tokens == [real] * len(found.blocks) and not any(count.skipped[1:])
    asked = 0.5 if rule == "median" else rule
    assert count.skipped[0] == pytest.approx(asked * (k - 1) * real, abs=1)  # the quantile lies between two tokens


def test_the_ratio_of_two_experts_is_that_of_their_gate_weights_and_padding_has_none() -> None:
    model, batches, seen = tiny_model("olmoe"), batches_of(2), []
    with observing(model, lambda one: seen.append(one)), torch.no_grad():
        for batch in batches:
            model(batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
    found = skipping_thresholds(model, batches)
    for number, beta in enumerate(found.blocks.values()):
        mine: list[BlockActivations] = seen[number :: len(found.blocks)]
        gates = torch.cat([one.gate_TK[b["attention_mask"].bool().flatten()] for one, b in zip(mine, batches, strict=True)])
        low, high = gates.double().sort(1).values.T
        assert beta == pytest.approx(float(np.median(low / high)), abs=1e-7)


@pytest.mark.parametrize("share_of_all", [0.0, 0.3, 0.5, 0.77, 1.0])
def test_the_quantile_is_numpys(share_of_all: float) -> None:
    for count in (1, 2, 7, 10):
        values = torch.rand(count, 1, generator=torch.Generator().manual_seed(count), dtype=torch.float64)
        assert quantile(values, share_of_all) == pytest.approx(float(np.quantile(values.numpy(), share_of_all)), abs=1e-15)


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v2", "gpt_oss"])
def test_layer_by_layer_from_the_files_finds_the_same(family: str, tmp_path: Path) -> None:
    tiny_model(family, num_experts_per_tok=3).save_pretrained(tmp_path)
    loaded = skipping_thresholds(load_model(str(tmp_path)), batches_of(3))
    assert (
        skipping_thresholds(StreamedModel(str(tmp_path)), batches_of(3)) == loaded == skipping_thresholds(tmp_path, batches_of(3))
    )


def test_a_model_that_skips_is_watched_as_if_it_did_not() -> None:
    model = tiny_model("mixtral")
    found = skipping_thresholds(model, batches_of(2))
    with skipping(model, found):
        assert skipping_thresholds(model, batches_of(2)) == found


def test_one_expert_per_token_and_no_tokens_are_refused() -> None:
    with raises("calibration.nothing-to-skip", "pruning.skipping"):
        skipping_thresholds(tiny_model("mixtral", num_experts_per_tok=1), batches_of(1))
    with raises("calibration.no-tokens"):
        skipping_thresholds(tiny_model("mixtral"), [])


def _on_two_ranks(rank: int, folder: str) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE="2")
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    found = skipping_thresholds(load_model(f"{folder}/model"), shard(batches_of(3)), 0.4)
    (Path(folder) / str(rank)).mkdir()
    found.save(Path(folder) / str(rank))
    torch.distributed.destroy_process_group()


@pytest.mark.launcher
def test_two_ranks_find_the_same(tmp_path: Path) -> None:
    tiny_model("mixtral", num_experts_per_tok=3).save_pretrained(tmp_path / "model")
    mp.spawn(_on_two_ranks, (str(tmp_path),), nprocs=2)
    alone = skipping_thresholds(load_model(str(tmp_path / "model")), batches_of(3), 0.4)
    assert Skipping.load(tmp_path / "0") == Skipping.load(tmp_path / "1") == alone
