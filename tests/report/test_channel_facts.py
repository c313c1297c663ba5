"""Law: what is told of the channels is what a plain count finds."""

from pathlib import Path

import pytest
import torch
from made_up_run import make_cuts, make_run

from toolkit.cuts.plan import Plan
from toolkit.cuts.statistics import ExpertStatistics
from toolkit.cuts.width import WidthCut
from toolkit.pipeline.run_directory import RunDirectory
from toolkit.report.channel_facts import channel_agreement, channel_facts, mlp_facts


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = make_run(tmp_path)
    make_cuts(run)
    return run


def test_the_channels_are_counted_by_how_many_experts_keep_them(run: RunDirectory) -> None:
    plan = Plan.load(run.plan)
    for name, facts in channel_facts(plan, None, 8).items():
        sets = [set(row) for row in plan.cut(WidthCut).channels[name].tolist()]
        assert facts.kept_by == [sum(sum(c in row for row in sets) == n for c in range(8)) for n in range(3)]
        assert facts.energy is None  # nothing was observed


def test_the_energy_of_the_kept_channels_is_their_part_of_all(run: RunDirectory) -> None:
    plan, statistics = Plan.load(run.plan), ExpertStatistics.load(run.statistics)
    for name, facts in channel_facts(plan, statistics, 8).items():
        for row, expert in enumerate(plan.blocks[name].kept):
            norm, seen = statistics.of_weights(name, "down_norm")[expert], statistics.get(name, "channel_energy")[expert]
            parts = [float(norm[c] ** 2 * seen[c]) for c in range(8)]
            kept = plan.cut(WidthCut).channels[name][row].tolist()
            expected = pytest.approx(sum(parts[c] for c in kept) / sum(parts), rel=1e-5) if sum(parts) else None
            assert facts.energy[row] == expected
    # Expert 3 of the last block is kept, and no token reached it: nothing can be said of its channels
    assert facts.energy[1] is None and 0.5 < facts.energy[0] < 1


def test_by_energy_more_energy_stays_than_by_any_other_choice(tmp_path: Path) -> None:
    held = {}
    for criterion in ("energy", "magnitude", "random"):
        run = make_run(tmp_path / criterion)
        make_cuts(run, criterion)
        blocks = channel_facts(Plan.load(run.plan), ExpertStatistics.load(run.statistics), 8).values()
        held[criterion] = [energy for block in blocks for energy in block.energy if energy is not None]
    assert all(best >= other for name in held for best, other in zip(held["energy"], held[name], strict=True))
    assert held["energy"] != held["random"]


def test_what_is_narrowed_beside_the_experts_is_told_with_both_numbers(run: RunDirectory) -> None:
    plan, statistics = Plan.load(run.plan), ExpertStatistics.load(run.statistics)
    assert mlp_facts(plan, statistics) == {}
    name = "model.layers.0.mlp.shared_expert"
    plan.cut(WidthCut).channels[name] = torch.arange(3)
    statistics.about.channels[name] = type(next(iter(statistics.about.channels.values())))(6)
    assert mlp_facts(plan, statistics) == {name: (3, 6)} and mlp_facts(plan, None) == {}


def test_agreement_is_averaged_over_blocks() -> None:
    found = channel_agreement({"fisher": {"a": 1.0, "b": 0.5}}, 4, 8)
    assert found.mean == {"fisher": 0.75} and found.by_chance == 0.5
