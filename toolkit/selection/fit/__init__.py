"""Fit: the best stock shape under limits. Shapes are enumerated, ranked by the summed deltas of their axes, and the best measured
(docs/fit.md; Puzzle, arXiv 2411.19146; Minitron, 2408.11796)."""

from toolkit.selection.fit.deltas import Deltas
from toolkit.selection.fit.left_out import shapes_left_out
from toolkit.selection.fit.limits import Limit
from toolkit.selection.fit.ranking import TRIED, best_measured, paired_choice, to_measure
from toolkit.selection.fit.shapes import AxisValues, Candidate, axis_values, check_possible, shapes_within

__all__ = [
    "TRIED",
    "AxisValues",
    "Candidate",
    "Deltas",
    "Limit",
    "axis_values",
    "best_measured",
    "check_possible",
    "paired_choice",
    "shapes_left_out",
    "shapes_within",
    "to_measure",
]
