"""Makes tiny whole GGUF models and what transformers computes with their weights, dequantised.

    python tests/scripts/make_gguf.py tests/fixtures/gguf [NAME ...]

Each folder holds model.gguf, expected.json and expected.safetensors, the latter two as in tests/fixtures/golden.
"""

import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from gguf import ExpertGatingFuncType, GGMLQuantizationType, GGUFWriter, RopeScalingType, TokenType, quantize
from transformers import AutoConfig, AutoModelForCausalLM

import tiny_tokenizer
import tiny_values
from blocks import random_rows, values_of
from chats import TEXTS
from families import COMMON, FAMILIES
from gguf_names import gguf_tensors, halves_from_pairs, pairs_from_halves
from make_golden import random_weights

# `types` gives a tensor the type of the first entry whose words its GGUF name contains; "" is for all others. Blocks
# of K types are random: the gguf library reads them and does not make them.
MODELS = {
    # As Llama 3.2: the scaled frequencies lie in a tensor, rope_freqs.weight; no output.weight.
    "llama3_q8_0": {"family": "llama3", "types": {"": "Q8_0"}},
    "qwen2_q4_1": {"family": "qwen2_5_yarn", "config": {"max_position_embeddings": 256},
                   "types": {"token_embd": "Q8_0", "output": "Q8_0", "": "Q4_1"}},
    # A different type for each matrix, also within q, k, v and within gate, up.
    "qwen3_mixed": {"family": "qwen3",
                    "types": {"token_embd": "F16", "attn_q": "Q4_0", "attn_k": "Q5_1", "attn_v": "Q8_0",
                              "attn_output": "Q4_1", "ffn_gate": "F16", "ffn_up": "BF16", "ffn_down": "Q5_0",
                              "output": "F32"}},
    # Super-blocks of 256: layer 0 as Q4_K_M files have it, layer 1 with the other types.
    "llama_k": {"family": "llama2",
                "config": {"hidden_size": 256, "intermediate_size": 256, "num_key_value_heads": 2},
                "types": {"blk.0.attn_v": "Q6_K", "blk.0.ffn_down": "Q6_K", "blk.0": "Q4_K",
                          "blk.1.attn_q": "Q2_K", "blk.1.attn_k": "Q3_K", "blk.1.attn_v": "Q5_K",
                          "blk.1.ffn_down": "Q3_K", "blk.1": "Q5_K", "token_embd": "Q4_K", "output": "Q6_K"}},
    # Experts in every layer: llama.cpp knows no others of these two.
    "qwen2moe_q8_0": {"family": "qwen2_moe", "config": {"num_hidden_layers": 2, "mlp_only_layers": [],
                                                        "shared_expert_intermediate_size": 64},
                      "types": {"": "Q8_0"}},
    "qwen3moe_mixed": {"family": "qwen3_moe", "config": {"num_hidden_layers": 2, "decoder_sparse_step": 1},
                       "types": {"ffn_gate_exps": "Q4_0", "ffn_up_exps": "Q5_1", "ffn_down_exps": "Q8_0",
                                 "attn_v": "F16", "token_embd": "F16", "": "Q8_0"}},
    # As files of 2024: the up-projection whole, heads as they are, neither groups nor a scoring function named.
    "deepseek2_whole": {"family": "deepseek_v2_lite",
                        "config": {"num_hidden_layers": 2, "qk_nope_head_dim": 32, "rms_norm_eps": 1e-6},
                        "types": {"ffn_down_exps": "Q5_0", "": "Q8_0"}},
    # As files since 2025: the up-projection split, one key head as wide as the latent.
    "deepseek2_split": {"family": "deepseek_v3", "split_latent": True,
                        "config": {"num_hidden_layers": 2, "qk_nope_head_dim": 32, "q_lora_rank": 64,
                                   "moe_intermediate_size": 32, "num_nextn_predict_layers": 0},
                        "types": {"attn_k_b": "Q8_0", "attn_v_b": "F16", "ffn_gate_exps": "Q4_1",
                                  "ffn_down_exps": "Q4_0", "": "Q8_0"}},
    # The sizes that GPU kernels are made for. Four experts: GPUs make their blocks dense from 64 tokens for
    # each on, and a long prompt has more. Rows of 256 in down, of 64 elsewhere.
    "qwen2moe_heads64": {"family": "qwen2_moe",
                         "config": {"num_hidden_layers": 2, "mlp_only_layers": [], "num_attention_heads": 1,
                                    "num_key_value_heads": 1, "num_experts": 4, "num_experts_per_tok": 2,
                                    "moe_intermediate_size": 256, "shared_expert_intermediate_size": 256},
                         "types": {"blk.0.ffn_down_exps": "Q6_K", "blk.1.ffn_down_exps": "Q4_K",
                                   "ffn_down_shexp": "Q6_K", "ffn_gate_exps": "Q4_0", "ffn_up_exps": "Q4_0",
                                   "": "Q8_0"}},
    # Rows of 32 in down, of 256 elsewhere: layer 0 as Q4_K_M files have it; in layer 1 gate and up differ.
    "qwen3moe_heads64": {"family": "qwen3_moe_heads64",
                         "config": {"hidden_size": 256, "num_key_value_heads": 1, "num_experts": 4},
                         "types": {"blk.0.ffn_down_exps": "Q8_0", "blk.1.ffn_down_exps": "Q5_0",
                                   "blk.1.ffn_gate_exps": "Q6_K", "attn_v": "Q6_K", "output": "Q6_K",
                                   "": "Q4_K"}},
    # Rows of 512 in the up-projections, and in those of keys, once they are split and transposed, of 32.
    "deepseek2_wide_whole": {"family": "deepseek_v2_lite_wide",
                             "config": {"num_attention_heads": 2, "num_key_value_heads": 2, "qk_nope_head_dim": 32},
                             "types": {"blk.0.attn_kv_b": "Q4_K", "blk.1.attn_kv_b": "Q6_K",
                                       "ffn_down_exps": "Q5_0", "": "Q8_0"}},
    "deepseek2_wide_split": {"family": "deepseek_v3_wide", "split_latent": True,
                             "config": {"num_attention_heads": 2, "num_key_value_heads": 2, "qk_nope_head_dim": 32,
                                        "q_lora_rank": 64, "moe_intermediate_size": 32},
                             "types": {"blk.0.attn_k_b": "Q8_0", "blk.1.attn_k_b": "Q5_0",
                                       "blk.0.attn_v_b": "Q4_K", "blk.1.attn_v_b": "Q6_K",
                                       "ffn_gate_exps": "Q4_1", "ffn_up_exps": "Q4_1", "ffn_down_exps": "Q4_0",
                                       "": "Q8_0"}},
}
ARCHITECTURES = {"qwen2_moe": "qwen2moe", "qwen3_moe": "qwen3moe",
                 "deepseek_v2": "deepseek2", "deepseek_v3": "deepseek2"}


def type_of(name, types):
    """The tensor type's name for the tensor with GGUF name `name`."""
    if name.endswith("norm.weight") or name.endswith(".bias") or "_inp" in name:
        return "F32"
    return next(kind for words, kind in types.items() if words == "" or f".{words}." in f".{name}")


def config_of(model):
    """The transformers config of an entry of MODELS."""
    family = FAMILIES[model["family"]]
    return AutoConfig.for_model(family["type"], **{**COMMON, **family["config"], **model.get("config", {})})


def encode(name, weight, model, config, rng):
    """(stored array, type name, f32 values in transformers' layout) of one weight, a float32 array."""
    kind = type_of(name, model["types"])
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(name.split(".")[-2])
    permuted = heads is not None and config.model_type == "llama"
    rows = pairs_from_halves(weight, heads) if permuted else weight
    if kind == "F32":
        stored = values = np.ascontiguousarray(rows)
    elif kind.endswith("_K"):
        *above, columns = rows.shape
        stored, values = random_rows(rng, kind, math.prod(above), columns, spread=float(rows.std()))
        stored = stored.reshape(*above, -1)
    else:
        stored = quantize(rows, GGMLQuantizationType[kind])
        values = values_of(stored, kind)
    return stored, kind, halves_from_pairs(values, heads) if permuted else values


def write_model(path, model, seed):
    """Writes model.gguf; returns the state dict that it means."""
    config = config_of(model)
    random = AutoModelForCausalLM.from_config(config)
    random_weights(random, seed)
    writer = GGUFWriter(path, ARCHITECTURES.get(config.model_type, config.model_type))
    split_latent = model.get("split_latent", False)
    write_metadata(writer, config, split_latent)
    rng = np.random.default_rng(seed)
    meant = {}
    corrections = [entry for entry in random.named_buffers() if entry[0].endswith("e_score_correction_bias")]
    for name, parameter in [*random.named_parameters(), *corrections]:
        weight = parameter.detach().numpy()
        meaning = np.zeros_like(weight)
        for stored_name, (take, give) in gguf_tensors(name, config, split_latent).items():
            part = np.ascontiguousarray(take(weight))
            stored, kind, values = encode(stored_name, part, model, config, rng)
            writer.add_tensor(stored_name, stored, raw_dtype=GGMLQuantizationType[kind])
            give(meaning, values.reshape(part.shape))
        meant[name] = torch.from_numpy(meaning)
    if config.rope_parameters["rope_type"] == "llama3":
        divisors = llama3_divisors(config)
        plain = config.rope_parameters["rope_theta"] ** (-np.arange(0, config.head_dim, 2) / config.head_dim)
        np.testing.assert_allclose(plain / divisors, random.model.rotary_emb.inv_freq.numpy(), rtol=1e-6)
        writer.add_tensor("rope_freqs.weight", divisors)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if config.tie_word_embeddings:
        meant["lm_head.weight"] = meant["model.embed_tokens.weight"]
    return meant


def write_metadata(writer, config, split_latent):
    """Shapes, rope and tokenizer, under the keys that converters write."""
    rope = config.rope_parameters
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_name(f"tiny {config.model_type}")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(1 if split_latent else config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(rope["rope_theta"])
    if config.model_type in ("qwen3", "qwen3_moe"):
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    if config.model_type == "llama":
        writer.add_rope_dimension_count(head_dim)
        writer.add_vocab_size(config.vocab_size)
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        if "mscale_all_dim" in rope:
            assert rope["mscale"] == rope["mscale_all_dim"], "the format has no place for two"
            writer.add_rope_scaling_yarn_log_mul(0.1 * rope["mscale_all_dim"])
    if writer.arch.endswith("moe"):
        write_experts(writer, config, config.num_experts)
    if writer.arch == "deepseek2":
        write_experts(writer, config, config.n_routed_experts)
        write_latent(writer, config, split_latent)
    tokens, merges = tiny_tokenizer.vocabulary()
    regular = tiny_tokenizer.FIRST_SPECIAL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.NORMAL] * regular + [TokenType.CONTROL] * (len(tokens) - regular))
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(tiny_tokenizer.BOS)
    writer.add_eos_token_id(tiny_tokenizer.EOS)
    writer.add_add_bos_token(False)
    writer.add_chat_template(tiny_tokenizer.CHAT_TEMPLATE)


def write_experts(writer, config, count):
    """Sizes of a mixture of experts."""
    writer.add_expert_count(count)
    writer.add_expert_used_count(config.num_experts_per_tok)
    writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    if config.model_type == "qwen2_moe":
        writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)


def write_latent(writer, config, split_latent):
    """What DeepSeek's files say beyond."""
    writer.add_vocab_size(config.vocab_size)
    writer.add_leading_dense_block_count(config.first_k_dense_replace)
    writer.add_expert_shared_count(config.n_shared_experts)
    writer.add_expert_weights_scale(config.routed_scaling_factor)
    writer.add_kv_lora_rank(config.kv_lora_rank)
    writer.add_rope_dimension_count(config.qk_rope_head_dim)
    if config.q_lora_rank is not None:
        writer.add_q_lora_rank(config.q_lora_rank)
    key_length, value_length = config.qk_nope_head_dim + config.qk_rope_head_dim, config.v_head_dim
    if not split_latent:
        writer.add_key_length(key_length)
        writer.add_value_length(value_length)
        return
    writer.add_key_length(config.kv_lora_rank + config.qk_rope_head_dim)
    writer.add_value_length(config.kv_lora_rank)
    writer.add_key_length_mla(key_length)
    writer.add_value_length_mla(value_length)
    writer.add_expert_weights_norm(config.norm_topk_prob)
    writer.add_expert_gating_func(ExpertGatingFuncType.SIGMOID)
    writer.add_expert_group_count(config.n_group)
    writer.add_expert_group_used_count(config.topk_group)


def llama3_divisors(config):
    """f32 [head_dim / 2]: what each rotary frequency is divided by, as converters store llama3 scaling.

    Source: the same formula as transformers' `llama3` rope type, solved for the quotient.
    """
    rope = config.rope_parameters
    original, low, high = (rope[k] for k in ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor"))
    divisors = []
    for i in range(0, config.head_dim, 2):
        wavelength = 2 * math.pi * rope["rope_theta"] ** (i / config.head_dim)
        if wavelength < original / high:
            divisors.append(1.0)
        elif wavelength > original / low:
            divisors.append(rope["factor"])
        else:
            smooth = (original / wavelength - low) / (high - low)
            divisors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(divisors, dtype=np.float32)


def make(root, name):
    """One model's folder."""
    folder, model, meant = root / name, MODELS[name], {}

    def write(seed):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        meant.update(write_model(folder / "model.gguf", model, seed))

    def load():
        reference = AutoModelForCausalLM.from_config(config_of(model), attn_implementation="eager")
        reference.load_state_dict(meant, strict=True)
        return reference.eval()

    tiny_values.search(folder, write, load)


def write_texts(path):
    """What the tiny tokenizer makes of fixed texts; the same for every GGUF and tokenizer.json of these fixtures."""
    tokenizer = tiny_tokenizer.build()
    texts = [{"text": text, "ids": tokenizer.encode(text, add_special_tokens=False).ids} for text in TEXTS]
    path.write_text(json.dumps(texts, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    destination = Path(sys.argv[1])
    for chosen in sys.argv[2:] or MODELS:
        make(destination, chosen)
    write_texts(destination / "texts.json")
