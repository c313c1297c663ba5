"""How a transformers MoE model is built: the only room that knows.

transformers 5 gives every family the same fused experts module behind a registered interface; nothing here is written
for one family.
"""

from toolkit.moe.activation_offload import ActivationOffload
from toolkit.moe.blocks import MoEBlock, decoder_linears, find_blocks
from toolkit.moe.checkpoint_files import CheckpointFiles, checkpoint_files
from toolkit.moe.checksum import check_loaded
from toolkit.moe.layers import ForwardPass, blocks_by_layer, layers_of, one_layer_at_a_time
from toolkit.moe.load import (
    checkpoint_folder,
    load_config,
    load_model,
    load_thresholds,
    logits_at,
    meta_model,
    quantization_of,
    random_model,
)
from toolkit.moe.masking import activating, check_prunable, restricted
from toolkit.moe.observe import BlockActivations, all_expert_outputs, observing
from toolkit.moe.partition import is_partitioned, partitioned_model, write_partitioned
from toolkit.moe.reroute import Rerouter, same_choice
from toolkit.moe.routing_monitor import RoutingMonitor
from toolkit.moe.sizes import Sizes, active_expert_parameters, checkpoint_bytes, sizes, weight_bytes
from toolkit.moe.skip_count import SkipCount, counting_skips
from toolkit.moe.skipping import apply_skipping, skipping
from toolkit.moe.stream import CannotStream, StreamedModel
from toolkit.moe.tokenizer import load_tokenizer
from toolkit.moe.unfuse import UNFUSED, expert_weights, linear_name, unfuse

__all__ = [
    "UNFUSED",
    "ActivationOffload",
    "Anatomy",
    "BlockActivations",
    "CannotStream",
    "CheckpointFiles",
    "ForwardPass",
    "MoEBlock",
    "Rerouter",
    "RoutingMonitor",
    "Sizes",
    "SkipCount",
    "StreamedModel",
    "activating",
    "active_expert_parameters",
    "all_expert_outputs",
    "anatomy",
    "anatomy_of",
    "apply_skipping",
    "blocks_by_layer",
    "check_loaded",
    "check_plan",
    "check_prunable",
    "check_whole",
    "checkpoint_bytes",
    "checkpoint_files",
    "checkpoint_folder",
    "complete_checkpoint",
    "counting_skips",
    "decoder_linears",
    "expert_weights",
    "find_blocks",
    "is_partitioned",
    "layers_of",
    "linear_name",
    "load_config",
    "load_model",
    "load_thresholds",
    "load_tokenizer",
    "logits_at",
    "masked",
    "meta_model",
    "observing",
    "one_layer_at_a_time",
    "partitioned_model",
    "prune_checkpoint",
    "pruned_meta_model",
    "quantization_of",
    "random_model",
    "restricted",
    "same_choice",
    "sizes",
    "skipping",
    "slice_model",
    "tensor_shapes",
    "unfuse",
    "weight_bytes",
    "write_checkpoint",
    "write_partitioned",
]  # fmt: skip
