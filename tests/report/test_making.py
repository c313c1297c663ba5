"""Law: the newest stage says when and by which version, and every kind of machine is named once."""

from toolkit.report.making import MakingFacts

CPU = {"cpu": "AMD EPYC 7B13", "cores": 2, "gpus": []}
GPUS = {"cpu": "AMD EPYC 9654", "cores": 96, "gpus": ["NVIDIA H100", "NVIDIA H100"]}


def stage(day: int, hardware: object, ranks: int = 1) -> dict[str, object]:
    finished = f"2026-12-{day:02}T09:00:00Z"
    return {"finished": finished, "versions": {"pollard-moe": f"0.{day}"}, "hardware": hardware, "ranks": ranks}


def test_the_newest_stage_counts_and_machines_are_named_once() -> None:
    found = MakingFacts.of({"a": stage(3, GPUS, 2), "b": stage(1, CPU), "c": stage(2, CPU)})
    assert found is not None
    assert (found.day, found.version) == ("2026-12-03", "0.3")
    assert found.hardware == ["2 ranks on NVIDIA H100", "1 rank on AMD EPYC 7B13 (2 cores)"]


def test_stages_of_earlier_versions_say_nothing_of_their_machine() -> None:
    found = MakingFacts.of({"a": {"finished": "2026-01-01T00:00:00Z"}})
    assert found is not None and (found.day, found.version, found.hardware) == ("2026-01-01", None, [])
    assert MakingFacts.of({}) is None
