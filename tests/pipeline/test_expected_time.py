"""How long it takes is said before it begins, or why that cannot be said."""

from dataclasses import replace

import pytest

from toolkit.estimate import CPUSpeed, StageEstimate, resolve_machine
from toolkit.pipeline.expected_time import expected_line, machine_of_run
from toolkit.runtime.errors import PollardError

MACHINE = replace(resolve_machine(gpus=0), cpu=CPUSpeed(2e11, 1e10))


def stage(seconds: float | None, flops: float | None = 6e10, disk: int = 2**20) -> StageEstimate:
    return StageEstimate("a stage", "", disk=disk, flops=flops, seconds=seconds)


def test_the_times_and_the_disk_of_all_stages_are_added() -> None:
    line = expected_line([lambda: stage(60.0), lambda: None, lambda: stage(40.0)], MACHINE)
    assert line.startswith("about 1 min 40 s of computing, 2.0 MiB of disk (1.2e+11 operations at 30% of the 200 GFLOP/s")


@pytest.mark.parametrize("unknown", [stage(None), stage(1.0, flops=None)])
def test_what_is_not_known_is_not_guessed(unknown: StageEstimate) -> None:
    line = expected_line([lambda: stage(60.0), lambda: unknown], MACHINE)
    assert "cannot be computed" in line and "2.0 MiB of disk" in line and "min" not in line


def test_a_stage_that_cannot_be_estimated_stops_no_run() -> None:
    def refuse() -> StageEstimate:
        raise PollardError("no room\nat all")

    assert expected_line([refuse], MACHINE) == "not to be estimated: no room"


def test_a_run_is_on_its_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    there = machine_of_run()
    assert (there.nodes, there.ranks_per_node, there.gpus) == (2, 2, 0) and there.cpu
