"""Decide which experts, channels and layers stay: what was observed and a criterion in, a choice out."""

from toolkit.cuts.width_counts import channels_to_keep, width_multiple
from toolkit.selection.criteria import CRITERIA, Choice, Criterion, ScoreCriterion, SearchRequest
from toolkit.selection.grow import grown_block, grown_plan
from toolkit.selection.layer_criteria import LAYER_CRITERIA, LayerChoice, LayerCriterion, LayerEvidence, RemovedLayer
from toolkit.selection.layers import choose_layers, evidence_needed, layers_to_keep
from toolkit.selection.select import experts_to_activate, experts_to_keep, kept_unobserved, select
from toolkit.selection.width import WIDTH_CRITERIA, WidthChoice, WidthCriterion, choose_channels

__all__ = [
    "CRITERIA", "LAYER_CRITERIA", "WIDTH_CRITERIA", "Choice", "Criterion", "LayerChoice", "LayerCriterion", "LayerEvidence",
    "RemovedLayer", "ScoreCriterion", "SearchRequest", "WidthChoice", "WidthCriterion", "channels_to_keep", "choose_channels",
    "choose_layers", "evidence_needed", "experts_to_activate", "experts_to_keep", "grown_block", "grown_plan",
    "kept_unobserved", "layers_to_keep", "select", "width_multiple",
]  # fmt: skip
