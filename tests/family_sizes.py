"""How small a tiny model of each family is, and what its default configuration leaves open."""

from typing import Any

EXPERTS, TOP_K, VOCABULARY = 8, 2, 64

# Numbers of a default configuration, made small. No other size is EXPERTS, and hidden states are neither as wide as experts nor
# twice as wide: a wrong axis would be sliced without a word.
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16, "max_position_embeddings": 128,
    "model_max_length": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    # experts
    "num_experts": EXPERTS, "num_local_experts": EXPERTS, "n_routed_experts": EXPERTS, "moe_num_experts": EXPERTS,
    "num_experts_per_tok": TOP_K, "num_experts_per_token": TOP_K, "moe_topk": TOP_K, "moe_k": TOP_K, "top_k_experts": TOP_K,
    "n_group": 2, "num_expert_group": 2, "topk_group": 1,
    "moe_intermediate_size": 24, "shared_expert_intermediate_size": 16, "shared_experts_intermediate_size": 16,
    "shared_intermediate_size": 16, "dense_intermediate_size": 40, "moe_shared_expert_intermediate_size": 16,
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
    "deepseek_v4": {
        "mlp_layer_types": ["moe"] * 4,
        "compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 4},
        "o_groups": 2,
    },
    "dots1": {"n_routed_experts": EXPERTS, "num_experts_per_tok": TOP_K, "n_shared_experts": 1},
    "gemma4": {
        "enable_moe_block": True,
        "num_experts": EXPERTS,
        "top_k_experts": TOP_K,
        "moe_intermediate_size": 16,
        "hidden_size_per_layer_input": 16,
        "vocab_size_per_layer_input": VOCABULARY,
    },
    "granitemoehybrid": {"layer_types": HYBRID, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "inkling": SLIDING,
    "inkling2": SLIDING,
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 0, "use_mamba_kernels": False},
    "kimi_linear": {"layer_types": HYBRID},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mimo_v2_flash": {"num_key_value_heads": 2},
    "mistral4": {"head_dim": 32},
    "qwen4_exp": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 64,
        "indexer_compress_ratio": 4,
        "hc_lowrank": 16,
    },
    "deepseek_ocr2": {"text_config": {"num_experts_per_tok": TOP_K, "mlp_layer_types": ["sparse"] * 4, "num_key_value_heads": 4}},
    "dots3_note": {f"swa_{name}": 16 for name in ("q_lora_rank", "kv_lora_rank", "v_head_dim")}
    | SLIDING
    | {"swa_qk_nope_head_dim": 12},
    "ernie4_5_vl_moe": {
        "text_config": {
            "moe_intermediate_size": [16, 12],
            "mlp_layer_types": ["sparse"] * 4,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
        }
    },
    "glm4v_moe": {
        "text_config": {
            "head_dim": 16,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
                "mrope_section": [2, 1, 1],
            },
        }
    },
    "glm5_next": {
        "text_config": {
            "qk_rope_head_dim": 0,
            "layer_types": ["linear_attention", "indexed_attention"] * 2,
            "mlp_layer_types": ["sparse"] * 4,
        },
        "vision_config": {"out_hidden_size": 32},
    },
    "muse_spark": {"audio_config": {"hidden_sizes": [16, 16, 16, 32], "depths": [1, 1, 1, 1]}},
    "qwen3_omni_moe": {"vision_start_token_id": 63},
    "zaya": {"num_experts_per_tok": 1},
}
