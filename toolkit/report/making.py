"""When a run was finished, on what machines, and with which version of the toolkit: what stands at the top of its page."""

from collections.abc import Mapping
from typing import Any

from toolkit.report.measurements import Facts
from toolkit.runtime.versions import DISTRIBUTION


class MakingFacts(Facts):
    """`finished`: an ISO 8601 time in UTC, of the newest stage; `hardware`: a line per kind of machine that stages ran on."""

    finished: str | None
    version: str | None
    hardware: list[str]

    @classmethod
    def of(cls, stages: Mapping[str, Mapping[str, Any]]) -> "MakingFacts | None":
        """From the manifest's entries; None where none is finished."""
        if not stages:
            return None
        latest = max(stages.values(), key=lambda entry: entry.get("finished") or "")
        machines = [_machine(entry["hardware"], entry.get("ranks")) for entry in stages.values() if entry.get("hardware")]
        version = (latest.get("versions") or {}).get(DISTRIBUTION)
        return cls(finished=latest.get("finished"), version=version, hardware=list(dict.fromkeys(machines)))

    @property
    def day(self) -> str | None:
        """ "2026-12-01"."""
        return self.finished.partition("T")[0] if self.finished else None


def _machine(hardware: Mapping[str, Any], ranks: int | None) -> str:
    """ "2 ranks on NVIDIA H100 80GB HBM3"; "1 rank on AMD EPYC 7B13 (2 cores)"."""
    gpus = dict.fromkeys(hardware.get("gpus") or ())
    where = ", ".join(gpus) if gpus else f"{hardware['cpu']} ({hardware['cores']} core{'s' * (hardware['cores'] != 1)})"
    return f"{ranks} rank{'s' * (ranks != 1)} on {where}" if ranks else where
