"""NAEE's own numbers, ranks, and what is refused."""

import json
import os
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from conftest import ROOT, raises, tiny_model
from families import tiny_family
from honest import batches_of
from pydantic import TypeAdapter
from safetensors.torch import load_file

import toolkit
from toolkit.calibration import calibrate, reconstruction
from toolkit.calibration.reconstruction import check_progressive_keep
from toolkit.cuts.apply import masked
from toolkit.cuts.statistics import BlockSearchResult
from toolkit.moe import find_blocks, load_model
from toolkit.runtime.distributed import shard
from toolkit.runtime.errors import PollardError

NAEE = ROOT / "tests" / "reference" / "naee"


@pytest.mark.parametrize("mode", ["layerwise", "progressive"])
@pytest.mark.parametrize("case", ["case_a", "case_b"])
def test_the_published_codes_losses_and_choices(case: str, mode: str) -> None:
    expected = json.loads((NAEE / case / "expected.json").read_text())
    ids = load_file(NAEE / case / "calibration.safetensors")["input_ids"]
    logits = load_file(NAEE / case / "logits.safetensors")
    batches = [{"input_ids": b, "attention_mask": torch.ones_like(b)} for b in ids.split(expected["batch_size"])]
    model = load_model(str(NAEE / case / "model"))
    statistics = calibrate(model, batches, reconstruction="layerwise") if mode == "layerwise" else None
    for r in (6, 4, 2):
        if mode == "progressive":
            statistics = calibrate(model, batches, reconstruction="progressive", keep=r)
        plan = toolkit.select(statistics, "reconstruction", keep=r, mode=mode)
        for layer, (block, found) in zip(
            expected[mode][str(r)]["layers"].values(), statistics.about.reconstruction[mode].items(), strict=True
        ):
            assert plan.blocks[block].kept == found.keep[r].kept == layer["kept"]
            table = found.keep[r].table
            kept_by = {
                ",".join(k for k in "01234567" if k not in dropped.split(",")): v for dropped, v in layer["losses"].items()
            }
            assert table == pytest.approx(kept_by, rel=1e-5)
        with masked(model, plan), torch.no_grad():
            torch.testing.assert_close(model(ids[:2]).logits, logits[f"{mode}_r{r}"], atol=2e-5, rtol=0)


def test_progressive_inherits_what_earlier_blocks_have_spoilt() -> None:
    batches = batches_of(3)
    model = tiny_model("qwen3_moe")
    alone = calibrate(model, batches, reconstruction=True).about.reconstruction["layerwise"]
    found = calibrate(model, batches, reconstruction="progressive", keep=4).about.reconstruction["progressive"]
    first, second = (found[name].keep[4] for name in found)
    first_alone, second_alone = (alone[name].keep[4] for name in alone)
    assert first.table == pytest.approx(first_alone.table, rel=1e-6)
    assert second.loss > second_alone.loss


# Nothing is spoilt when nothing is pruned: every family's layers can be walked one by one.
def test_progressive_with_all_experts_loses_nothing(family: str) -> None:
    found = calibrate(tiny_model(family), batches_of(2), reconstruction="progressive", keep=8).about.reconstruction
    assert all(block.keep[8].loss < 1e-4 for block in found["progressive"].values())


def _tables(model, mode: str, batches) -> dict:
    return calibrate(model, batches, reconstruction=mode, keep=4).about.reconstruction[mode]


RESULTS = TypeAdapter(dict[str, BlockSearchResult])
SIZES = {"exhaustive": 8, "greedy and swaps": 20}


def _search_on(rank: int, folder: str) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE="2")
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    for experts in SIZES.values():
        model = tiny_model("mixtral", num_local_experts=experts)
        for mode in ("layerwise", "progressive"):
            for count in (1, 5):  # with one batch the second rank has none
                found = _tables(model, mode, shard(batches_of(count)))
                Path(f"{folder}/{experts}{mode}{count}rank{rank}.json").write_bytes(RESULTS.dump_json(found))
    torch.distributed.destroy_process_group()


@pytest.mark.launcher
def test_two_ranks_find_what_one_finds(tmp_path: Path) -> None:
    mp.spawn(_search_on, (str(tmp_path),), nprocs=2)
    for search, experts in SIZES.items():
        model = tiny_model("mixtral", num_local_experts=experts)
        for mode in ("layerwise", "progressive"):
            for count in (1, 5):
                alone = _tables(model, mode, batches_of(count))
                for rank in (0, 1):
                    found = RESULTS.validate_json((tmp_path / f"{experts}{mode}{count}rank{rank}.json").read_bytes())
                    assert found.keys() == alone.keys()
                    for block, expected in alone.items():
                        assert found[block].search == expected.search == search
                        assert found[block].tokens == expected.tokens
                        for keep, entry in expected.keep.items():
                            assert found[block].keep[keep].kept == entry.kept
                            for name in ("loss", "table", "lower_bound"):
                                number = getattr(entry, name)
                                if number is not None:
                                    result = getattr(found[block].keep[keep], name)
                                    assert result == pytest.approx(number, rel=1e-6, abs=1e-6)


def test_what_cannot_be_searched_is_refused_with_what_to_do() -> None:
    model = tiny_model("mixtral")
    with raises("calibration.progressive-keep", "2…8", None):
        calibrate(model, batches_of(1), reconstruction="progressive")
    with raises("calibration.mode", "'both'"):
        calibrate(model, batches_of(1), reconstruction="both")  # type: ignore[arg-type]
    with raises("calibration.no-tokens"):
        calibrate(model, [], reconstruction=True)


def test_a_router_within_groups_is_refused() -> None:
    with pytest.raises(PollardError, match=r"within 2 groups: .* Choose another criterion\."):
        calibrate(tiny_family("deepseek_v3"), batches_of(1), reconstruction=True)


def test_the_search_is_chosen_by_what_is_feasible() -> None:
    # OLMoE's gate weights are normalised over all experts that are left: no shortcut, so 16 are searched, not enumerated
    searches = {}
    for family, key in (("mixtral", "num_local_experts"), ("olmoe", "num_experts")):
        for experts in (reconstruction.ENUMERABLE_ONE_BY_ONE, reconstruction.ENUMERABLE):
            found = _tables(tiny_model(family, **{key: experts}), "layerwise", batches_of(1, length=8))
            searches[family, experts] = next(iter(found.values())).search
    assert searches == {
        ("mixtral", 10): "exhaustive", ("mixtral", 16): "exhaustive", ("olmoe", 10): "exhaustive",
        ("olmoe", 16): "greedy and swaps",
    }  # fmt: skip


# The second block's loss is the distance between what it adds in the original and in the model pruned up to it.
@torch.no_grad()
def test_losses_are_measured_on_what_the_pruned_model_really_computes(family: str) -> None:
    model, batches = tiny_model(family), batches_of(3)
    statistics = calibrate(model, batches, reconstruction="progressive", keep=4)
    plan = toolkit.select(statistics, "reconstruction", keep=4, mode="progressive")
    outputs: list[torch.Tensor] = []
    last = find_blocks(model)[-1]
    handle = last.experts.register_forward_hook(lambda module, args, out: outputs.append(out))
    for context in (None, plan):
        for batch in batches:
            if context is None:
                model.base_model(batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
            else:
                with masked(model, plan):
                    model.base_model(batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
    handle.remove()
    real = [batch["attention_mask"].bool().flatten() for batch in batches]
    loss = sum(float((y - z)[rows].double().norm()) for y, z, rows in zip(outputs[:3], outputs[3:], real, strict=True))
    found = statistics.about.reconstruction["progressive"][last.name].keep
    assert list(found) == [4] and found[4].loss == pytest.approx(loss, rel=2e-5)


def test_the_model_is_itself_again() -> None:
    model, batches = tiny_model("mixtral"), batches_of(1)
    before = calibrate(model, batches).vectors
    calibrate(model, batches, reconstruction="progressive", keep=3)
    assert all(torch.equal(vector, before[name]) for name, vector in calibrate(model, batches).vectors.items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("keep", [None, 1, 9])
def test_progressive_needs_a_keep_that_makes_sense(keep: int | None) -> None:
    assert check_progressive_keep(2, 8, 2) == 2
    with raises("calibration.progressive-keep", "2…8", keep):
        check_progressive_keep(keep, 8, 2)
