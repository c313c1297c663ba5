"""What is removed: kinds of cuts, the plan that holds them, and the checkpoint without what is cut.

Other rooms use these names and need not know how a plan stores its choice.
"""

from toolkit.cuts.apply import apply_plan, check_plan, masked
from toolkit.cuts.block_plan import BlockPlan
from toolkit.cuts.checkpoint import check_whole, complete_checkpoint, prune_checkpoint, write_checkpoint
from toolkit.cuts.compose import compose
from toolkit.cuts.cut import Cut
from toolkit.cuts.dense import DenseBlock, merged_model, with_fixed_gates
from toolkit.cuts.dense_twins import DenseTwin, dense_twin
from toolkit.cuts.dense_writer import check_dense
from toolkit.cuts.experts import ExpertsCut
from toolkit.cuts.layers import LayersCut
from toolkit.cuts.masks import LayerwiseMasks, masked_in_form
from toolkit.cuts.model_summary import ModelSummary, model_summary
from toolkit.cuts.plan import KINDS, Plan
from toolkit.cuts.shape import ModelShape, ShapeSize, plan_of_shape, shape_of, shaped_meta_model, sizes_after_cuts, without_last
from toolkit.cuts.statistics import ExpertStatistics
from toolkit.cuts.width import WidthCut

__all__ = [
    "KINDS",
    "BlockPlan",
    "Cut",
    "DenseBlock",
    "DenseTwin",
    "ExpertStatistics",
    "ExpertsCut",
    "LayersCut",
    "LayerwiseMasks",
    "ModelShape",
    "ModelSummary",
    "Plan",
    "ShapeSize",
    "WidthCut",
    "apply_plan",
    "check_dense",
    "check_plan",
    "check_whole",
    "complete_checkpoint",
    "compose",
    "dense_twin",
    "masked",
    "masked_in_form",
    "merged_model",
    "model_summary",
    "plan_of_shape",
    "prune_checkpoint",
    "shape_of",
    "shaped_meta_model",
    "sizes_after_cuts",
    "with_fixed_gates",
    "without_last",
    "write_checkpoint",
]
