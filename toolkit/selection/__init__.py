"""Decide which experts stay: statistics and a criterion in, a plan out."""

from toolkit.selection.counts import channels_to_keep, layers_to_keep, width_multiple
from toolkit.selection.criteria import CRITERIA, Criterion, ScoreCriterion, SearchRequest
from toolkit.selection.select import experts_to_activate, experts_to_keep, kept_unobserved, select
from toolkit.selection.width import WIDTH_CRITERIA, WidthChoice, WidthCriterion, choose_channels

__all__ = [
    "CRITERIA", "WIDTH_CRITERIA", "Criterion", "ScoreCriterion", "SearchRequest", "WidthChoice", "WidthCriterion",
    "channels_to_keep", "choose_channels", "experts_to_activate", "experts_to_keep", "kept_unobserved", "layers_to_keep",
    "select", "width_multiple",
]  # fmt: skip
