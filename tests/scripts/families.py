"""The tiny models: one per decoder family and RoPE scaling, as transformers configs.

Knows no weights. `classic` in an entry holds what the classic config.json says beyond, or other than, what
follows from the transformers 5 form; None removes a key, as hubs' older files often lack it.
"""

from tiny_tokenizer import BOS, EOS, VOCAB_SIZE

COMMON = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "initializer_range": 0.02,
}

# Attention over a latent: 48 values of a token in the cache, whatever the number of heads.
LATENT = {
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 24,
    "v_head_dim": 16,
    "max_position_embeddings": 256,
}
# The latent that GPU kernels are made for.
WIDE_LATENT = {**LATENT, "kv_lora_rank": 512, "qk_rope_head_dim": 64}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0,
        "original_max_position_embeddings": 64}
# What follows from the other fields is not in older files; what transformers does not read is.
LATENT_CLASSIC = {"rope_type_key": "type", "head_dim": None, "qk_head_dim": None, "moe_layer_freq": 1, "ep_size": 1}

FAMILIES = {
    # Llama 2: as many key heads as query heads; the oldest files say neither head_dim nor rope_theta.
    "llama2": {
        "type": "llama",
        "config": {"intermediate_size": 96, "num_attention_heads": 4, "max_position_embeddings": 256,
                   "rms_norm_eps": 1e-5, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
        "classic": {"head_dim": None, "rope_theta": None, "num_key_value_heads": None, "attention_bias": None,
                    "mlp_bias": None},
    },
    # Llama 3.1 and 3.2: grouped heads, tied embeddings, several ends.
    "llama3": {
        "type": "llama",
        "config": {"intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4,
                   "num_key_value_heads": 2, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
                   "tie_word_embeddings": True, "eos_token_id": [EOS, EOS + 3],
                   "rope_parameters": {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0,
                                       "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                       "original_max_position_embeddings": 64}},
        "classic": {},
    },
    "llama_linear": {
        "type": "llama",
        "config": {"intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 1,
                   "max_position_embeddings": 256, "attention_bias": True,
                   "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
        "classic": {"rope_type_key": "type"},
    },
    # The frequencies depend on the length once it is past max_position_embeddings: `long` is past it.
    "llama_dynamic": {
        "type": "llama",
        "config": {"intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2,
                   "max_position_embeddings": 128,
                   "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}},
        "classic": {"rope_type_key": "type"},
        "length_dependent": True,
    },
    "llama_yarn": {
        "type": "llama",
        "config": {"intermediate_size": 96, "num_attention_heads": 2, "num_key_value_heads": 1,
                   "max_position_embeddings": 256,
                   "rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0,
                                       "beta_fast": 16.0, "beta_slow": 2.0,
                                       "original_max_position_embeddings": 64}},
        "classic": {},
    },
    # Short factors up to 64 tokens, long factors past them: `medium` and `long` are past.
    "llama_longrope": {
        "type": "llama",
        "config": {"intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2,
                   "max_position_embeddings": 256,
                   "rope_parameters": {"rope_type": "longrope", "rope_theta": 10000.0, "factor": 4.0,
                                       "short_factor": [1.0, 1.0, 1.1, 1.1, 1.2, 1.3, 1.5, 1.6],
                                       "long_factor": [1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0],
                                       "original_max_position_embeddings": 64}},
        "classic": {},
        "length_dependent": True,
    },
    "qwen2": {
        "type": "qwen2",
        "config": {"intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
                   "num_key_value_heads": 2, "max_position_embeddings": 256, "tie_word_embeddings": True,
                   "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}},
        # A window that use_sliding_window turns off: it must not be applied.
        "classic": {"sliding_window": 16, "max_window_layers": 1, "layer_types": None},
    },
    # As Qwen2.5's own instructions for long texts: max_position_embeddings stays the original one.
    "qwen2_5_yarn": {
        "type": "qwen2",
        "config": {"intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 1,
                   "max_position_embeddings": 64,
                   "rope_parameters": {"rope_type": "yarn", "rope_theta": 1000000.0, "factor": 4.0,
                                       "original_max_position_embeddings": 64}},
        "classic": {"rope_type_key": "type", "sliding_window": 16, "max_window_layers": 2, "layer_types": None},
    },
    # Norms over each head of q and k; heads wider than hidden_size / heads. Saved in three shards.
    "qwen3": {
        "type": "qwen3",
        "config": {"intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
                   "max_position_embeddings": 256, "tie_word_embeddings": False,
                   "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}},
        "classic": {"sliding_window": 16, "max_window_layers": 2, "layer_types": None},
        "shard_size": "120KB",
    },
    # Heads of the sizes that GPU kernels are made for.
    "llama3_heads64": {
        "type": "llama",
        "config": {"intermediate_size": 160, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 64,
                   "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
                   "rope_parameters": {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0,
                                       "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                       "original_max_position_embeddings": 64}},
        "classic": {},
    },
    "llama_heads96": {
        "type": "llama",
        "config": {"intermediate_size": 96, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 96,
                   "max_position_embeddings": 256, "attention_bias": True, "mlp_bias": True,
                   "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
        "classic": {},
    },
    "qwen2_heads64": {
        "type": "qwen2",
        "config": {"hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 2, "num_key_value_heads": 1,
                   "max_position_embeddings": 256, "tie_word_embeddings": True,
                   "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}},
        "classic": {"sliding_window": 16, "max_window_layers": 1, "layer_types": None},
    },
    "qwen3_heads128": {
        "type": "qwen3",
        "config": {"intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 128,
                   "max_position_embeddings": 256, "tie_word_embeddings": False,
                   "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}},
        "classic": {"sliding_window": 16, "max_window_layers": 2, "layer_types": None},
    },
    "llama_heads256": {
        "type": "llama",
        "config": {"intermediate_size": 96, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 256,
                   "max_position_embeddings": 256,
                   "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
        "classic": {},
    },
    # Windows of 16 tokens: in all layers; in those from max_window_layers on, which older files leave to be concluded.
    "mistral_window_heads64": {
        "type": "mistral",
        "config": {"intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
                   "max_position_embeddings": 256, "sliding_window": 16,
                   "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
        "classic": {},
    },
    "qwen2_window_heads64": {
        "type": "qwen2",
        "config": {"hidden_size": 128, "intermediate_size": 96, "num_attention_heads": 2,
                   "num_key_value_heads": 1, "max_position_embeddings": 256, "tie_word_embeddings": True,
                   "use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1,
                   "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}},
        "classic": {"layer_types": None},
    },
    # Layer 1 is dense; the others have a block that all tokens go through, behind a gate. Three experts of a token,
    # whose weights do not add up to 1.
    "qwen2_moe": {
        "type": "qwen2_moe",
        "config": {"num_hidden_layers": 3, "intermediate_size": 96, "moe_intermediate_size": 32,
                   "shared_expert_intermediate_size": 48, "num_experts": 8, "num_experts_per_tok": 3,
                   "norm_topk_prob": False, "mlp_only_layers": [1], "num_attention_heads": 4,
                   "num_key_value_heads": 2, "max_position_embeddings": 256,
                   "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}},
        "classic": {"sliding_window": 16, "max_window_layers": 2, "layer_types": None, "qkv_bias": None},
    },
    # Layers 1 and 3 have experts, whose weights add up to 1.
    "qwen3_moe": {
        "type": "qwen3_moe",
        "config": {"num_hidden_layers": 4, "intermediate_size": 96, "moe_intermediate_size": 32, "num_experts": 8,
                   "num_experts_per_tok": 2, "norm_topk_prob": True, "decoder_sparse_step": 2,
                   "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
                   "max_position_embeddings": 256,
                   "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}},
        "classic": {"sliding_window": 16, "max_window_layers": 2, "layer_types": None, "num_local_experts": None,
                    "num_experts": 8},
    },
    # Experts behind heads of the sizes that GPU kernels are made for. Qwen2-MoE's windows are in even layers below
    # max_window_layers: here in the first alone.
    "qwen2_moe_heads64": {
        "type": "qwen2_moe",
        "config": {"hidden_size": 128, "num_hidden_layers": 3, "intermediate_size": 96, "moe_intermediate_size": 24,
                   "shared_expert_intermediate_size": 40, "num_experts": 8, "num_experts_per_tok": 3,
                   "norm_topk_prob": False, "mlp_only_layers": [1], "num_attention_heads": 2,
                   "num_key_value_heads": 1, "max_position_embeddings": 256,
                   "use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2,
                   "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}},
        "classic": {"layer_types": None, "qkv_bias": None},
    },
    "qwen3_moe_heads64": {
        "type": "qwen3_moe",
        "config": {"num_hidden_layers": 2, "intermediate_size": 96, "moe_intermediate_size": 32, "num_experts": 8,
                   "num_experts_per_tok": 2, "norm_topk_prob": True, "decoder_sparse_step": 1,
                   "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
                   "max_position_embeddings": 256,
                   "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}},
        "classic": {"sliding_window": 16, "max_window_layers": 2, "layer_types": None, "num_local_experts": None,
                    "num_experts": 8},
    },
    # As V2-Lite: q without a latent, the best of all experts, scores scaled as YaRN says for all dimensions.
    # The norms of latents have an epsilon of their own, whatever rms_norm_eps says.
    "deepseek_v2_lite": {
        "type": "deepseek_v2",
        "config": {**LATENT, "num_hidden_layers": 3, "q_lora_rank": None, "n_routed_experts": 8, "n_shared_experts": 2,
                   "num_experts_per_tok": 3, "topk_method": "greedy", "n_group": 1, "topk_group": 1,
                   "routed_scaling_factor": 1.0, "first_k_dense_replace": 1, "rms_norm_eps": 1e-3,
                   "rope_parameters": {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707}},
        "classic": {**LATENT_CLASSIC, "scoring_func": "softmax"},
    },
    "deepseek_v2_lite_wide": {
        "type": "deepseek_v2",
        "config": {**WIDE_LATENT, "num_hidden_layers": 2, "q_lora_rank": None, "n_routed_experts": 8,
                   "n_shared_experts": 2, "num_experts_per_tok": 3, "topk_method": "greedy", "n_group": 1,
                   "topk_group": 1, "routed_scaling_factor": 1.0, "first_k_dense_replace": 1, "rms_norm_eps": 1e-6,
                   "rope_parameters": {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707}},
        "classic": {**LATENT_CLASSIC, "scoring_func": "softmax"},
    },
    # As V2: q from a latent, experts of the best two of four groups. The two mscales differ, so that cosines are
    # multiplied too.
    "deepseek_v2": {
        "type": "deepseek_v2",
        "config": {**LATENT, "num_hidden_layers": 2, "q_lora_rank": 48, "n_routed_experts": 8, "n_shared_experts": 1,
                   "num_experts_per_tok": 3, "topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2,
                   "routed_scaling_factor": 2.5, "first_k_dense_replace": 0,
                   "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.5}},
        "classic": {**LATENT_CLASSIC, "scoring_func": "softmax"},
    },
    # As V3 and R1: sigmoid scores, corrected for the choice alone, experts of the best two of three groups; a
    # layer that predicts further tokens lies behind the others and is not run.
    "deepseek_v3": {
        "type": "deepseek_v3",
        "config": {**LATENT, "num_hidden_layers": 3, "q_lora_rank": 48, "n_routed_experts": 12, "n_shared_experts": 1,
                   "moe_intermediate_size": 24, "num_experts_per_tok": 3, "n_group": 3, "topk_group": 2,
                   "norm_topk_prob": True, "routed_scaling_factor": 2.5, "first_k_dense_replace": 1,
                   "num_nextn_predict_layers": 1,
                   "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0}},
        "classic": {**LATENT_CLASSIC, "scoring_func": "sigmoid", "topk_method": "noaux_tc"},
    },
    "deepseek_v3_wide": {
        "type": "deepseek_v3",
        "config": {**WIDE_LATENT, "num_hidden_layers": 2, "q_lora_rank": 48, "n_routed_experts": 12,
                   "n_shared_experts": 1, "moe_intermediate_size": 24, "num_experts_per_tok": 4, "n_group": 3,
                   "topk_group": 2, "norm_topk_prob": True, "routed_scaling_factor": 2.5, "first_k_dense_replace": 1,
                   "num_nextn_predict_layers": 0,
                   "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0}},
        "classic": {**LATENT_CLASSIC, "scoring_func": "sigmoid", "topk_method": "noaux_tc"},
    },
    # As the smaller models of V3's kind: no latent of q, one group, plain positions; pairs half a head apart.
    "deepseek_v3_plain": {
        "type": "deepseek_v3",
        "config": {**LATENT, "num_hidden_layers": 2, "q_lora_rank": None, "n_routed_experts": 8, "n_shared_experts": 2,
                   "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "norm_topk_prob": False,
                   "routed_scaling_factor": 1.5, "first_k_dense_replace": 1, "num_nextn_predict_layers": 0,
                   "rope_interleave": False,
                   "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
        "classic": {**LATENT_CLASSIC, "scoring_func": "sigmoid", "topk_method": "noaux_tc"},
    },
}


def classic_config(modern, changes):
    """The classic form of `modern`, a config.json as transformers 5 writes it (both are dicts)."""
    changes = dict(changes)
    type_key = changes.pop("rope_type_key", "rope_type")
    classic = {key: value for key, value in modern.items() if key not in ("rope_parameters", "dtype")}
    rope = dict(modern["rope_parameters"])
    classic["rope_theta"] = rope.pop("rope_theta")
    rope_type = rope.pop("rope_type")
    classic["rope_scaling"] = None if rope_type == "default" else {**rope, type_key: rope_type}
    classic["torch_dtype"] = modern["dtype"]
    classic["transformers_version"] = "4.43.0"
    for key, value in changes.items():
        classic.pop(key, None)
        if value is not None:
            classic[key] = value
    return dict(sorted(classic.items()))
