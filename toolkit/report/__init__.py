"""Show it: what a run directory holds, as report.json, as one HTML page and as a table in the terminal."""

import json
from pathlib import Path
from typing import Any

from toolkit.files import write_text
from toolkit.report.collect import collect
from toolkit.report.page import render
from toolkit.report.sweep_table import show_sweep, tabulate
from toolkit.report.terminal import show

__all__ = ["collect", "render", "show", "show_sweep", "tabulate", "write_report"]


def write_report(run_path: str | Path) -> dict[str, Any]:
    """Writes report.json, then report.html, into the run directory; returns what report.json holds.

    What the run has not done yet is reported as not done. Raises PollardError for a file that is there but damaged.
    """
    run_path = Path(run_path)
    report = collect(run_path)
    page = render(report)  # before anything is written: both files, or neither
    write_text(run_path / "report.json", json.dumps(report, indent=1, allow_nan=False) + "\n")
    write_text(run_path / "report.html", page)
    return report
