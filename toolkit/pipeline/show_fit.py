"""What a fit has found so far, on the screen and in the report."""

from toolkit.cuts.fit_result import FitResult
from toolkit.pipeline.run_directory import RunDirectory
from toolkit.pipeline.write_report import write_report_on_main
from toolkit.report.fit_table import show_fit
from toolkit.runtime.distributed import on_main, say


def show_fit_of(run: RunDirectory) -> None:
    """Of a run whose shapes are measured; on every rank."""
    show_fit(on_main(lambda: FitResult.load(run.fit_result)))
    write_report_on_main(run.path)
    say(f"Report: {run.path / 'report.html'}")
