"""Configs of small models, one for each kind of cache that mlx-lm's architectures use."""

from __future__ import annotations

from typing import Any

_SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 512,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {**_SMALL, "model_type": "llama", "tie_word_embeddings": False},
    "qwen3": {**_SMALL, "model_type": "qwen3", "head_dim": 16, "tie_word_embeddings": True},
    "sliding window": {
        **_SMALL,
        "model_type": "gemma3_text",
        "head_dim": 16,
        "sliding_window": 16,
        "sliding_window_pattern": 2,
        "query_pre_attn_scalar": 16,
    },
    "recurrent": {
        "model_type": "mamba",
        "hidden_size": 64,
        "intermediate_size": 96,
        "state_size": 8,
        "num_hidden_layers": 2,
        "conv_kernel": 4,
        "use_bias": False,
        "use_conv_bias": True,
        "time_step_rank": 4,
    },
    "hybrid": {
        **_SMALL,
        "model_type": "lfm2",
        "norm_eps": 1e-5,
        "conv_bias": False,
        "conv_L_cache": 3,
        "block_dim": 64,
        "block_ff_dim": 96,
        "block_multiple_of": 8,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": False,
        "full_attn_idxs": [1],
    },
    "chunked attention": {
        "model_type": "llama4",
        "text_config": {
            **_SMALL,
            "model_type": "llama4_text",
            "num_hidden_layers": 4,
            "head_dim": 16,
            "attention_bias": False,
            "attention_chunk_size": 32,
            "interleave_moe_layer_step": 3,
            "intermediate_size_mlp": 96,
            "num_experts_per_tok": 1,
            "num_local_experts": 2,
            "use_qk_norm": True,
            "rope_scaling": None,
            "attn_temperature_tuning": True,
            "floor_scale": 8192,
            "attn_scale": 0.1,
        },
    },
}
