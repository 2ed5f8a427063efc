"""How GGUF files name and lay out what transformers names otherwise. Needs only numpy; knows no file."""

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
