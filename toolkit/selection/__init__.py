"""Decide which experts stay: statistics and a criterion in, a plan out."""

from toolkit.selection.criteria import CRITERIA, Criterion, ScoreCriterion, SearchRequest
from toolkit.selection.select import experts_to_activate, experts_to_keep, kept_unobserved, select

__all__ = [
    "CRITERIA", "Criterion", "ScoreCriterion", "SearchRequest", "experts_to_activate", "experts_to_keep", "kept_unobserved",
    "select",
]  # fmt: skip
