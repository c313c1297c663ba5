"""How a transformers MoE model is built: the only room that knows.

transformers 5 gives every family the same fused experts module behind a registered interface; nothing here is written
for one family.
"""

from toolkit.moe.activation_offload import ActivationOffload
from toolkit.moe.batches import Batch, ObservedBatch, TokenRows, split_mask
from toolkit.moe.blocks import MoEBlock, blocks_in, find_blocks
from toolkit.moe.channel_observing import ChannelGradient, LinearCall, observing_gradients, observing_linears, tokens_by_expert
from toolkit.moe.channels import ChannelGroup, block_width, channel_groups, expert_channels, expert_output, expert_width
from toolkit.moe.expert_skipping import SkipCount, apply_skipping, counting_skips, skipping
from toolkit.moe.layers import (
    ForwardPass,
    base_model_returns,
    blocks_by_layer,
    decoder_layers,
    hidden_states_of,
    layers_of,
    one_layer_at_a_time,
)
from toolkit.moe.linears import decoder_linears
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
from toolkit.moe.loading_checks import check_loaded
from toolkit.moe.masking import Rerouter, check_prunable, fewest_experts, override_top_k, restricted, same_routing
from toolkit.moe.model_files import CheckpointFiles, checkpoint_files
from toolkit.moe.model_size import Sizes, active_expert_parameters, checkpoint_bytes, sizes, weight_bytes
from toolkit.moe.observe import BlockActivations, EveryExpert, every_expert_outputs, observing
from toolkit.moe.packing import check_kept_apart, check_packable, real_positions
from toolkit.moe.partition import gathered, is_partitioned, local_part, partitioned_model, write_partitioned
from toolkit.moe.router_gradient import check_router_gradient, check_some_inactive, train_routers_on_all_experts
from toolkit.moe.routing_monitor import RoutingMonitor
from toolkit.moe.shared_copy import shared_copy, without_experts
from toolkit.moe.stream import CannotStream, StreamedModel, open_layerwise
from toolkit.moe.tokenizer import load_tokenizer
from toolkit.moe.unfuse import UNFUSED, expert_weights, linear_name, unfuse
from toolkit.moe.weight_facts import channel_norms, mean_over_rms

__all__ = [
    "UNFUSED",
    "ActivationOffload",
    "Batch",
    "BlockActivations",
    "CannotStream",
    "ChannelGradient",
    "ChannelGroup",
    "CheckpointFiles",
    "EveryExpert",
    "ForwardPass",
    "LinearCall",
    "MoEBlock",
    "ObservedBatch",
    "Rerouter",
    "RoutingMonitor",
    "Sizes",
    "SkipCount",
    "StreamedModel",
    "TokenRows",
    "active_expert_parameters",
    "apply_skipping",
    "base_model_returns",
    "block_width",
    "blocks_by_layer",
    "blocks_in",
    "channel_groups",
    "channel_norms",
    "check_kept_apart",
    "check_loaded",
    "check_packable",
    "check_prunable",
    "check_router_gradient",
    "check_some_inactive",
    "checkpoint_bytes",
    "checkpoint_files",
    "checkpoint_folder",
    "counting_skips",
    "decoder_layers",
    "decoder_linears",
    "every_expert_outputs",
    "expert_channels",
    "expert_output",
    "expert_weights",
    "expert_width",
    "fewest_experts",
    "find_blocks",
    "gathered",
    "hidden_states_of",
    "is_partitioned",
    "layers_of",
    "linear_name",
    "load_config",
    "load_model",
    "load_thresholds",
    "load_tokenizer",
    "local_part",
    "logits_at",
    "mean_over_rms",
    "meta_model",
    "observing",
    "observing_gradients",
    "observing_linears",
    "one_layer_at_a_time",
    "open_layerwise",
    "override_top_k",
    "partitioned_model",
    "quantization_of",
    "random_model",
    "real_positions",
    "restricted",
    "same_routing",
    "shared_copy",
    "sizes",
    "skipping",
    "split_mask",
    "tokens_by_expert",
    "train_routers_on_all_experts",
    "unfuse",
    "weight_bytes",
    "without_experts",
    "write_partitioned",
]  # fmt: skip
