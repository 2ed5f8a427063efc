"""How GGUF files name and lay out what transformers names otherwise. Needs only numpy; knows no file."""

import re

LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "attn_q_a": "self_attn.q_a_proj",
    "attn_q_a_norm": "self_attn.q_a_layernorm",
    "attn_q_b": "self_attn.q_b_proj",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm",
    "attn_kv_b": "self_attn.kv_b_proj",
}
OUTER_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def hugging_face_name(name):
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`."""
    stem, kind = name.rsplit(".", 1)
    if not stem.startswith("blk."):
        return f"{OUTER_NAMES[stem]}.{kind}"
    _, layer, part = stem.split(".")
    return f"model.layers.{layer}.{LAYER_NAMES[part]}.{kind}"


def gguf_name(name):
    """The other way round."""
    stem, kind = name.rsplit(".", 1)
    if not stem.startswith("model.layers."):
        return f"{ {v: k for k, v in OUTER_NAMES.items()}[stem] }.{kind}"
    layer, part = stem.removeprefix("model.layers.").split(".", 1)
    return f"blk.{layer}.{ {v: k for k, v in LAYER_NAMES.items()}[part] }.{kind}"


def gguf_tensors(name, config, split_latent):
    """{GGUF name: (take, give)} of what transformers calls `name`.

    `take(weight)` is the tensor that the file holds, and `give(weight, tensor)` writes it back into a weight.
    `split_latent` is whether the up-projection of a latent comes as one tensor for keys, transposed head by head, and
    one for values, as newer files have it, or whole.
    """
    stem, layer = name.removesuffix(".weight"), ".".join(name.split(".")[2:3])
    if stem.endswith("mlp.experts.gate_up_proj"):
        half = config.moe_intermediate_size
        return {f"blk.{layer}.ffn_gate_exps.weight": at(slice(None), slice(0, half)),
                f"blk.{layer}.ffn_up_exps.weight": at(slice(None), slice(half, None))}
    if stem.endswith("mlp.experts.down_proj"):
        return {f"blk.{layer}.ffn_down_exps.weight": at()}
    if stem.endswith("mlp.gate.e_score_correction_bias"):
        return {f"blk.{layer}.exp_probs_b.bias": at()}
    shared = re.fullmatch(r"model\.layers\.\d+\.mlp\.shared_experts?\.(\w+)_proj", stem)
    if shared:
        return {f"blk.{layer}.ffn_{shared[1]}_shexp.weight": at()}
    if stem.endswith("shared_expert_gate"):
        return {gguf_name(name): at(0)}  # A row becomes a vector.
    if stem.endswith("kv_b_proj") and split_latent:
        heads, nope = config.num_attention_heads, config.qk_nope_head_dim

        def by_head(weight):
            return weight.reshape(heads, nope + config.v_head_dim, config.kv_lora_rank)

        def give_keys(weight, keys):
            by_head(weight)[:, :nope] = keys.swapaxes(1, 2)

        def give_values(weight, values):
            by_head(weight)[:, nope:] = values

        return {f"blk.{layer}.attn_k_b.weight": (lambda weight: by_head(weight)[:, :nope].swapaxes(1, 2), give_keys),
                f"blk.{layer}.attn_v_b.weight": (lambda weight: by_head(weight)[:, nope:], give_values)}
    return {gguf_name(name): at()}


def at(*place):
    """`take` and `give` of a part of a weight."""
    place = place or (slice(None),)

    def give(weight, tensor):
        weight[place] = tensor

    return (lambda weight: weight[place]), give


def halves_from_pairs(rows, heads):
    """Undoes the order of q and k rows in files of architecture `llama` (and of no other one here).

    llama.cpp rotates neighbours (0, 1), (2, 3) ... of a head; transformers rotates i with i + head_dim / 2. So in
    the file a head's rows lie interleaved: 0, d/2, 1, d/2 + 1, ...
    """
    head_dim = rows.shape[0] // heads
    return rows.reshape(heads, head_dim // 2, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def pairs_from_halves(rows, heads):
    """Puts q or k rows into the order of files of architecture `llama`."""
    head_dim = rows.shape[0] // heads
    return rows.reshape(heads, 2, head_dim // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)
