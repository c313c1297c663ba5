"""Laws of the pass layer by layer: from the checkpoint's files it finds what the whole model in memory does.

tests/cuts/test_families.py shows it for the statistics of every family.
"""

import os
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from conftest import raises, tiny_model
from honest import batches_of

from toolkit.calibration import CalibrationSource, calibrate, calibrate_mix
from toolkit.cuts.statistics import ExpertStatistics, StatisticsFacts
from toolkit.moe import StreamedModel, activation_offload, load_model
from toolkit.runtime.distributed import shard


def saved(folder: Path, family: str = "mixtral", dtype: torch.dtype = torch.float32, **changes: object) -> str:
    tiny_model(family, dtype, **changes).save_pretrained(folder, max_shard_size="20KB")  # a layer lies in several files
    return str(folder)


def assert_same(one: ExpertStatistics, other: ExpertStatistics, tolerance: float = 0) -> None:
    assert one.about.blocks == other.about.blocks
    assert one.vectors.keys() == other.vectors.keys()
    for name, vector in one.vectors.items():
        exact = tolerance == 0 or "/count/" in name
        torch.testing.assert_close(vector, other.vectors[name], rtol=0 if exact else tolerance, atol=0)
    searches = [s.about.reconstruction for s in (one, other)]
    assert searches[0].keys() == searches[1].keys()
    for mode, blocks in searches[0].items():
        for block, found in blocks.items():
            assert found.tokens == searches[1][mode][block].tokens
            for keep, best in found.keep.items():
                theirs = searches[1][mode][block].keep[keep]
                assert best.kept == theirs.kept
                assert best.loss == pytest.approx(theirs.loss, rel=tolerance or 1e-12)


@pytest.mark.parametrize("family", ["mixtral", "olmoe", "deepseek_v2"])
@pytest.mark.parametrize("mode", ["layerwise", "progressive"])
def test_the_same_subsets_and_losses(mode, family: str, tmp_path: Path) -> None:
    path = saved(tmp_path, family)
    walked = calibrate(path, batches_of(3), mode, 4)
    assert_same(walked, calibrate(load_model(path), batches_of(3), mode, 4))
    # A layerwise search computes a token's experts once, in dense products, and float32 products of another shape round otherwise
    tolerance = 1e-6 if mode == "layerwise" else 0
    alone = ExpertStatistics(walked.vectors, StatisticsFacts(walked.about.blocks))
    assert_same(calibrate(path, batches_of(3)), alone, tolerance)


def test_fewer_experts_per_token(tmp_path: Path) -> None:
    path = saved(tmp_path)
    walked = calibrate(path, batches_of(2), experts_per_token=1)
    assert_same(walked, calibrate(load_model(path), batches_of(2), experts_per_token=1))
    assert {about.experts_per_token for about in walked.about.blocks.values()} == {1}


def test_hidden_states_that_wait_on_disk_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    path = saved(tmp_path)
    expected = calibrate(path, batches_of(3), "progressive", 4)
    monkeypatch.setattr(activation_offload, "MEMORY_SHARE", 1e-12)
    assert_same(calibrate(path, batches_of(3), "progressive", 4), expected)
    assert "wait on disk" in capsys.readouterr().out


def test_several_sources_in_one_pass_are_each_by_itself_and_searched_together(tmp_path: Path) -> None:
    path = saved(tmp_path)
    sources = [CalibrationSource("a", batches_of(2)), CalibrationSource("b", batches_of(1, seed=1))]
    walked, whole = (calibrate_mix(model, sources, "layerwise") for model in (path, load_model(path)))
    assert_same(walked, whole)
    together = calibrate(path, [*sources[0].batches, *sources[1].batches], "layerwise")
    assert walked.about.reconstruction == together.about.reconstruction
    for number, source in enumerate(sources):
        alone = calibrate(path, source.batches, "layerwise")
        assert all(torch.equal(walked.vectors[f"{number}/{name}"], vector) for name, vector in alone.vectors.items())


def test_no_tokens_are_an_error_and_leave_no_threads(tmp_path: Path) -> None:
    for mode in (False, "progressive"):
        with raises("calibration.no-tokens"):
            calibrate(saved(tmp_path), [], mode, 4)


def test_outputs_that_overflow_are_an_error(tmp_path: Path) -> None:
    model = tiny_model("mixtral")
    model.model.layers[1].mlp.experts.down_proj.data.fill_(torch.inf)
    for source in (model, saved(tmp_path)):
        if source is not model:
            model.save_pretrained(source, max_shard_size="20KB")
        for mode in (False, "layerwise", "progressive"):
            with raises("calibration.not-finite", "model.dtype=float32"):
                calibrate(source, batches_of(1), mode, 4)


RUNS = [("float64", "layerwise", 1e-9), ("float32", "progressive", 1e-6)]  # dtype, search, tolerance


def walked_in(path: str, dtype: str, batches: list, mode: str) -> ExpertStatistics:
    model = StreamedModel(path, dtype=dtype)
    model.model.set_experts_implementation("eager")  # grouped_mm has no float64
    return calibrate(model, batches, mode, 4)


def _walk_on(rank: int, folder: str) -> None:
    for ranks in (2, 4):
        if rank < ranks:
            os.environ.update(RANK=str(rank), WORLD_SIZE=str(ranks))
            where = f"file://{folder}/rendezvous{ranks}"
            torch.distributed.init_process_group("gloo", init_method=where, rank=rank, world_size=ranks)
            for dtype, mode, _ in RUNS:  # three batches: of four ranks one has none
                statistics = walked_in(f"{folder}/model", dtype, shard(batches_of(3)), mode)
                statistics.save(f"{folder}/{ranks}/{mode}/rank{rank}")
            torch.distributed.destroy_process_group()


@pytest.mark.launcher
def test_one_two_and_four_ranks_find_the_same(tmp_path: Path) -> None:
    path = saved(tmp_path / "model", dtype=torch.float64)
    mp.spawn(_walk_on, (str(tmp_path),), nprocs=4)
    for dtype, mode, tolerance in RUNS:
        alone = walked_in(path, dtype, batches_of(3), mode)
        alone.save(tmp_path / "alone")  # which adds what readers ask first
        for ranks in (2, 4):
            for rank in range(ranks):
                found = ExpertStatistics.load(tmp_path / str(ranks) / mode / f"rank{rank}")
                assert_same(found, alone, tolerance)
