"""Decide which experts and layers stay: what was observed and a criterion in, a plan out."""

from toolkit.selection.criteria import CRITERIA, Criterion, ScoreCriterion, SearchRequest
from toolkit.selection.layer_criteria import LAYER_CRITERIA, LayerChoice, LayerCriterion, LayerEvidence, RemovedLayer
from toolkit.selection.layers import choose_layers, evidence_needed, layers_to_keep
from toolkit.selection.select import experts_to_activate, experts_to_keep, kept_unobserved, select

__all__ = [
    "CRITERIA", "LAYER_CRITERIA", "Criterion", "LayerChoice", "LayerCriterion", "LayerEvidence", "RemovedLayer",
    "ScoreCriterion", "SearchRequest", "choose_layers", "evidence_needed", "experts_to_activate", "experts_to_keep",
    "kept_unobserved", "layers_to_keep", "select",
]  # fmt: skip
