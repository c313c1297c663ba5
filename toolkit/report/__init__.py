"""The facts of a run as an HTML page, as a model card and as tables in the terminal: renders typed facts, reads no files."""

from toolkit.report.card import card
from toolkit.report.facts import RunFacts
from toolkit.report.fit_table import show_fit
from toolkit.report.page import render
from toolkit.report.sweep_table import show_sweep, tabulate
from toolkit.report.terminal import show

__all__ = ["RunFacts", "card", "render", "show", "show_fit", "show_sweep", "tabulate"]
