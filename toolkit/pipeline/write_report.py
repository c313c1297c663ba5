"""The report's files in a run directory: report.json, report.html and the model card."""

import json
from pathlib import Path

from toolkit.pipeline.run_directory import RunDirectory
from toolkit.pipeline.run_facts import read_run_facts
from toolkit.recipe.roles import Role
from toolkit.report import RunFacts, card, render
from toolkit.runtime.distributed import on_main
from toolkit.runtime.files import write_text
from toolkit.runtime.signed_folders import write_own_file


def write_report(run_path: str | Path) -> RunFacts:
    """Writes report.json, report.html and the model card (README.md, into the folder of the recovered or refitted model as well).

    Returns what report.json holds.

    What the run has not done yet is reported as not done, and what is stale is named. Raises PollardError for a file that is
    there but damaged.
    """
    run_path = Path(run_path)
    facts = read_run_facts(run_path)
    result = run_path / facts.result
    page, readme = render(facts), card(facts, facts.result)  # before anything is written: all files, or none
    write_text(run_path / "report.json", json.dumps(facts.as_json(), indent=1, allow_nan=False) + "\n")
    write_text(run_path / "report.html", page)
    RunDirectory(run_path.name, run_path.parent).write_editable(run_path / "README.md", readme)
    if facts.result != Role.PRUNED and result.is_dir():  # pruned/ is the original's folder, smaller: with the original's card
        write_own_file(result, "README.md", readme)
    return facts


def write_report_on_main(run_path: str | Path) -> None:
    """The same by rank 0; call it on every rank."""

    def write() -> None:
        write_report(run_path)  # what it returns does not travel to other ranks

    on_main(write)
