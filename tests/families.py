"""Every MoE family of the installed transformers, as a tiny random model.

`python tests/families.py > docs/families.md` writes the table of which work; tests/moe/test_families.py shows each row.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import transformers
from torch import nn
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel

from toolkit.moe import find_blocks
from toolkit.moe.load import model_class

EXPERTS, TOP_K, VOCABULARY = 8, 2, 64

# Numbers of a default configuration, made small. No other size is EXPERTS: a wrong axis would be sliced without a word.
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16, "max_position_embeddings": 128,
    "model_max_length": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    # experts
    "num_experts": EXPERTS, "num_local_experts": EXPERTS, "n_routed_experts": EXPERTS, "moe_num_experts": EXPERTS,
    "num_experts_per_tok": TOP_K, "num_experts_per_token": TOP_K, "moe_topk": TOP_K, "moe_k": TOP_K, "top_k_experts": TOP_K,
    "n_group": 2, "num_expert_group": 2, "topk_group": 1,
    "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "shared_experts_intermediate_size": 16,
    "shared_intermediate_size": 16, "dense_intermediate_size": 24, "moe_shared_expert_intermediate_size": 16,
    "moe_hidden_size": 16, "router_hidden_size": 16,
    # attention
    "sliding_window": 16, "sliding_window_size": 16, "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16, "v_head_dim": 16, "rotary_dim": 16,
    "index_topk": 64, "index_head_dim": 32, "index_n_heads": 2, "index_topk_blocks": 2, "index_block_size": 16,
    "linear_key_head_dim": 16, "linear_value_head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_head_dim": 16, "linear_num_heads": 2, "o_lora_rank": 16, "ssm_state_size": 16, "mamba_num_heads": 4,
    "mamba_head_dim": 16, "n_groups": 2, "rel_extent": 32,
    # towers for images and sound, which text never enters
    "depth": 1, "num_heads": 4, "out_hidden_size": 32, "encoder_layers": 1, "encoder_attention_heads": 4,
    "encoder_ffn_dim": 24, "d_model": 32, "output_dim": 32, "downsample_hidden_size": 16, "mlp_dim": 24,
    "deepstack_visual_indexes": [0], "projection_intermediate_size": 24, "projector_hidden_size": 24,
}  # fmt: skip
SLIDING = {"swa_num_attention_heads": 4, "swa_num_key_value_heads": 4, "swa_head_dim": 16}
HYBRID = ["linear_attention", "full_attention"] * 2  # linear attention alone cannot generate
OVERRIDES: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"layer_types": HYBRID},
    "deepseek_v2": {"num_experts_per_tok": TOP_K, "topk_method": "group_limited_greedy", "n_group": 2, "topk_group": 1},
    "deepseek_v3": {"first_k_dense_replace": 1},
    "deepseek_v32": {"first_k_dense_replace": 1},
    "deepseek_v4": {"mlp_layer_types": ["moe"] * 4, "compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 4}, "o_groups": 2},
    "dots1": {"n_routed_experts": EXPERTS, "num_experts_per_tok": TOP_K, "n_shared_experts": 1},
    "gemma4": {"enable_moe_block": True, "num_experts": EXPERTS, "top_k_experts": TOP_K, "moe_intermediate_size": 16, "hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": VOCABULARY},
    "granitemoehybrid": {"layer_types": HYBRID, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "inkling": SLIDING,
    "inkling2": SLIDING,
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 0, "use_mamba_kernels": False},
    "kimi_linear": {"layer_types": HYBRID},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mimo_v2_flash": {"num_key_value_heads": 2},
    "mistral4": {"head_dim": 32},
    "qwen4_exp": {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 64, "indexer_compress_ratio": 4, "hc_lowrank": 16},
    "deepseek_ocr2": {"text_config": {"num_experts_per_tok": TOP_K, "mlp_layer_types": ["sparse"] * 4, "num_key_value_heads": 4}},
    "dots3_note": {f"swa_{name}": 16 for name in ("q_lora_rank", "kv_lora_rank", "v_head_dim")}
    | SLIDING | {"swa_qk_nope_head_dim": 12},
    "ernie4_5_vl_moe": {"text_config": {"moe_intermediate_size": [16, 12], "mlp_layer_types": ["sparse"] * 4, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}}},
    "glm4v_moe": {"text_config": {"head_dim": 16, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1]}}},
    "glm5_next": {"text_config": {"qk_rope_head_dim": 0, "layer_types": ["linear_attention", "indexed_attention"] * 2, "mlp_layer_types": ["sparse"] * 4}, "vision_config": {"out_hidden_size": 32}},
    "muse_spark": {"audio_config": {"hidden_sizes": [16, 16, 16, 32], "depths": [1, 1, 1, 1]}},
    "qwen3_omni_moe": {"vision_start_token_id": 63},
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip

EXCEPTIONS = {
    "diffusion_gemma": "no: writes blocks by diffusion, so there are no next-token logits to compare or train with",
    "openai_privacy_filter": "no: labels tokens, and has no language model",
}
NOTES = {
    "deepseek_v4": "its layers that look experts up by token id (`hash_moe`) are refused",
    "ernie4_5_vl_moe": "text never enters its experts for images: calibrated on text, these are kept by index",
    "qwen3_omni_moe": "its thinker",
}
HEAD = """# Families

What `pollard` prunes: every family of the installed transformers whose experts stand behind the experts interface, found
in the package, not listed by hand. Each of the {works} (of {all}) that work is shown to in
[tests/moe/test_families.py](../tests/moe/test_families.py), as a tiny random model: calibrate, select, prune, reload by
stock transformers (logits exactly equal), compare with the masked original (1e-5), one training step, generate.
Multimodal families are pruned whole; text is what they are calibrated, trained and judged on.

This page is written by `python tests/families.py > docs/families.md`, and a test keeps it in step.
"""


def families() -> list[str]:
    """The packages of transformers whose experts stand behind the experts interface."""
    models = Path(transformers.__file__).parent / "models"
    return sorted(f.parent.name for f in models.glob("*/modeling_*.py") if "\n@use_experts_implementation" in f.read_text())


def config_class(family: str) -> type[PreTrainedConfig] | None:
    """The family's configuration with a language model: of its text part alone where that is a model of its own."""
    ours = [c for c in CONFIG_MAPPING.values() if c.__module__.split(".")[-2] == family and model_class(c)]
    return min(ours, key=lambda c: (model_class(c).__name__ != "AutoModelForCausalLM", "Text" not in c.__name__), default=None)


def shrunk(config: PreTrainedConfig, overrides: dict[str, Any]) -> dict[str, Any]:
    """Arguments that make the same configuration tiny."""
    default = config.to_dict()
    small = {key: value for key, value in SMALL.items() if default.get(key) is not None or key.endswith("token_id")}
    parts = {name: {} for name in config.sub_configs if getattr(config, name, None) is not None}
    small |= {name: shrunk(getattr(config, name), {}) for name in parts}
    for key, value in overrides.items():
        if isinstance(value, dict) and isinstance(small.get(key), dict):
            small[key] = small[key] | value
        else:
            small[key] = value
    return small


def tiny_family(family: str, dtype: torch.dtype = torch.float32, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random model of the family whose routers really choose (many start with zero weights and biases)."""
    torch.manual_seed(seed)
    kind = config_class(family)
    config = kind(**shrunk(kind(), OVERRIDES.get(family, {}) | changes))
    model = model_class(kind).from_config(config, dtype=dtype).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    for block in find_blocks(model):
        for name, tensor in [*block.module.state_dict().items()]:
            if name.startswith(block.router_name) and tensor.ndim > 1:
                tensor.normal_(std=0.5)  # state_dict shares memory
            if "bias" in name and tensor.numel() in (EXPERTS, EXPERTS + 1):
                tensor.normal_(std=0.05)  # of the choice: less than the scores decide
            if name.endswith("balancing_biases"):
                tensor[-1] = -1.0  # Zaya's class that skips: stock loading always resets it
    return model


@torch.no_grad()
def text_logits(model: PreTrainedModel) -> torch.Tensor:
    """Logits for two fixed random sequences of 24 tokens."""
    ids = torch.randint(3, VOCABULARY - 2, (2, 24), generator=torch.Generator().manual_seed(1))
    return model(input_ids=ids, use_cache=False).logits


@contextmanager
def minus_infinity(model: PreTrainedModel, kept: list[int]) -> Iterator[None]:
    """Every linear layer of a router gives −inf for pruned experts, and so does every bias that enters the choice."""
    pruned = [expert for expert in range(EXPERTS) if expert not in kept]
    blocks = find_blocks(model)
    linear, before = nn.functional.linear, {id(block.router): block.router.forward for block in blocks}
    rows = {EXPERTS} | {getattr(blocks[0].router, name, EXPERTS) for name in ("n_total_experts", "num_router_classes")}

    def router_linear(*args: Any, **kwargs: Any) -> torch.Tensor:
        out = linear(*args, **kwargs).clone()
        if out.shape[-1] in rows:
            out[..., pruned] = -torch.inf
        return out

    def within(router: nn.Module) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            with mock.patch.object(nn.functional, "linear", router_linear):
                return before[id(router)](*args, **kwargs)

        return call

    saved = []
    for block in blocks:
        block.router.forward = within(block.router)
        holders = [block.module, *block.router.modules()]
        own = [pair for m in holders for pair in [*m.named_parameters(recurse=False), *m.named_buffers(recurse=False)]]
        for name, tensor in own:
            if "bias" in name and tensor.shape[-1] in rows:
                saved.append((tensor, tensor.data.clone()))
                tensor.data[..., pruned] = -torch.inf
    yield
    for tensor, data in saved:
        tensor.data = data
    for block in blocks:
        del block.router.forward


def table() -> str:
    """docs/families.md."""
    lines = [
        f"| {family} | {EXCEPTIONS.get(family) or 'yes' + (f'; {NOTES[family]}' if family in NOTES else '')} |"
        for family in families()
    ]
    works = len(lines) - len(EXCEPTIONS)
    return "\n".join([HEAD.format(works=works, all=len(lines)), "| family | works |", "|---|---|", *lines, ""])


if __name__ == "__main__":
    print(table(), end="")
