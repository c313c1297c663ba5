"""How a transformers MoE model is built: the only room that knows.

transformers 5 gives every family the same fused experts module behind a registered interface; nothing here is written
for one family.
"""

from toolkit.moe.anatomy import Anatomy, anatomy, anatomy_of
from toolkit.moe.blocks import MoEBlock, find_blocks
from toolkit.moe.check import check_plan, check_prunable
from toolkit.moe.checkpoint import copy_companions, prune_checkpoint, tensor_shapes, write_checkpoint
from toolkit.moe.layers import LayerCalls, recording_layers
from toolkit.moe.linears import decoder_linears
from toolkit.moe.load import load_config, load_model, load_tokenizer, meta_model
from toolkit.moe.mask import activating, masked, restricted
from toolkit.moe.outputs import every_output
from toolkit.moe.reroute import Rerouter, same_choice
from toolkit.moe.sizes import Sizes, checkpoint_bytes, sizes, weight_bytes
from toolkit.moe.slice import slice_model
from toolkit.moe.unfuse import UNFUSED, expert_weights, linear_name, unfuse
from toolkit.moe.watch import Seen, watching

__all__ = [
    "UNFUSED", "Anatomy", "LayerCalls", "MoEBlock", "Rerouter", "Seen", "Sizes", "activating", "anatomy", "anatomy_of",
    "check_plan", "check_prunable", "checkpoint_bytes", "copy_companions", "decoder_linears", "every_output", "expert_weights",
    "find_blocks", "linear_name", "load_config", "load_model", "load_tokenizer", "masked", "meta_model", "prune_checkpoint",
    "recording_layers", "restricted", "same_choice", "sizes", "slice_model", "tensor_shapes", "unfuse", "watching",
    "weight_bytes", "write_checkpoint",
]  # fmt: skip
