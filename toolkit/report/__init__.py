"""Show it: what a run directory holds, as report.json, as one HTML page, as a model card and as a table in the terminal."""

import json
from pathlib import Path
from typing import Any

from toolkit.pipeline.run_directory import RunDirectory
from toolkit.report.card import card, result_of
from toolkit.report.collect import collect
from toolkit.report.page import render
from toolkit.report.sweep_table import show_sweep, tabulate
from toolkit.report.terminal import show
from toolkit.runtime.files import write_text
from toolkit.runtime.signed_folders import write_own_file

__all__ = ["card", "collect", "render", "show", "show_sweep", "tabulate", "write_report"]


def write_report(run_path: str | Path) -> dict[str, Any]:
    """Writes report.json, report.html and the model card (README.md, into the result's folder as well); returns what report.json
    holds.

    What the run has not done yet is reported as not done, and what is stale is named. Raises PollardError for a file that is
    there but damaged.
    """
    run_path = Path(run_path)
    report = collect(run_path)
    result = run_path / result_of(report)
    page, readme = render(report), card(report, str(result))  # before anything is written: all files, or none
    write_text(run_path / "report.json", json.dumps(report, indent=1, allow_nan=False) + "\n")
    write_text(run_path / "report.html", page)
    RunDirectory(run_path.name, run_path.parent).write_editable(run_path / "README.md", readme)
    if result.name == "recovered" and result.is_dir():  # pruned/ is the original's folder, smaller: with the original's card
        write_own_file(result, "README.md", readme)
    return report
