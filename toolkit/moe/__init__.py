"""How a transformers MoE model is built: the only room that knows.

transformers 5 gives every family the same fused experts module behind a registered interface; nothing here is written
for one family.
"""

from toolkit.moe.anatomy import Anatomy, anatomy, anatomy_of, pruned_meta_model
from toolkit.moe.blocks import MoEBlock, find_blocks
from toolkit.moe.check import check_prunable
from toolkit.moe.checkpoint import check_whole, complete_checkpoint, prune_checkpoint, tensor_shapes, write_checkpoint
from toolkit.moe.checkpoint_files import CheckpointFiles, checkpoint_files
from toolkit.moe.checksum import check_loaded
from toolkit.moe.experts_cut import check_plan, masked, slice_model
from toolkit.moe.layers import ForwardPass, blocks_by_layer, layers_of, one_layer_at_a_time
from toolkit.moe.linears import decoder_linears
from toolkit.moe.load import (
    checkpoint_folder,
    load_config,
    load_model,
    load_thresholds,
    meta_model,
    quantization_of,
    random_model,
)
from toolkit.moe.logits import logits_at
from toolkit.moe.mask import activating, restricted
from toolkit.moe.outputs import every_output
from toolkit.moe.parking import Parking
from toolkit.moe.partition import is_partitioned, partitioned_model
from toolkit.moe.partition_writer import write_partitioned
from toolkit.moe.reroute import Rerouter, same_choice
from toolkit.moe.sizes import Sizes, active_expert_parameters, checkpoint_bytes, sizes, weight_bytes
from toolkit.moe.skip import apply_skipping, skipping
from toolkit.moe.skip_count import SkipCount, counting_skips
from toolkit.moe.stream import CannotStream, StreamedModel
from toolkit.moe.tokenizer import load_tokenizer
from toolkit.moe.unfuse import UNFUSED, expert_weights, linear_name, unfuse
from toolkit.moe.use import ExpertUse
from toolkit.moe.watch import Seen, watching

__all__ = [
    "UNFUSED", "Anatomy", "CannotStream", "CheckpointFiles", "ExpertUse", "ForwardPass", "MoEBlock", "Parking", "Rerouter",
    "Seen", "Sizes", "SkipCount", "StreamedModel", "activating", "active_expert_parameters", "anatomy", "anatomy_of",
    "apply_skipping", "blocks_by_layer", "check_loaded", "check_plan", "check_prunable", "check_whole", "checkpoint_bytes",
    "checkpoint_files", "checkpoint_folder", "complete_checkpoint", "counting_skips", "decoder_linears", "every_output",
    "expert_weights", "find_blocks", "is_partitioned", "layers_of", "linear_name", "load_config", "load_model",
    "load_thresholds", "load_tokenizer", "logits_at", "masked", "meta_model", "one_layer_at_a_time", "partitioned_model",
    "prune_checkpoint", "pruned_meta_model", "quantization_of", "random_model", "restricted", "same_choice", "sizes",
    "skipping", "slice_model", "tensor_shapes", "unfuse", "watching", "weight_bytes", "write_checkpoint", "write_partitioned",
]  # fmt: skip
