"""Reads SmolLM2's GGUF exactly: config, float32 weights under Hugging Face names, tokenizer, chat template.

Needs only numpy and gguf. Knows no torch and no transformers; knows the `llama` architecture alone.
"""

import numpy as np
from gguf import GGUFReader, dequantize

from gguf_names import halves_from_pairs, hugging_face_name

CONTROL = 3  # tokenizer.ggml.token_type of a special token


class Gguf:
    """One GGUF file of architecture `llama`."""

    def __init__(self, path):
        self.reader = GGUFReader(path)
        assert self.get("general.architecture") == "llama"

    def get(self, key):
        """The metadata value of `key`."""
        return self.reader.fields[key].contents()

    def config(self):
        """config.json in its classic form, as a dict."""
        heads = self.get("llama.attention.head_count")
        return {
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": False,
            "bos_token_id": self.get("tokenizer.ggml.bos_token_id"),
            "eos_token_id": self.get("tokenizer.ggml.eos_token_id"),
            "hidden_act": "silu",
            "hidden_size": self.get("llama.embedding_length"),
            "initializer_range": 0.02,
            "intermediate_size": self.get("llama.feed_forward_length"),
            "max_position_embeddings": self.get("llama.context_length"),
            "model_type": "llama",
            "num_attention_heads": heads,
            "num_hidden_layers": self.get("llama.block_count"),
            "num_key_value_heads": self.get("llama.attention.head_count_kv"),
            "pad_token_id": self.get("tokenizer.ggml.padding_token_id"),
            # The f32 of the file as its shortest decimal: 1e-05.
            "rms_norm_eps": float(str(np.float32(self.get("llama.attention.layer_norm_rms_epsilon")))),
            "rope_scaling": None,
            "rope_theta": self.get("llama.rope.freq_base"),
            "tie_word_embeddings": not any(t.name == "output.weight" for t in self.reader.tensors),
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "vocab_size": self.get("llama.vocab_size"),
        }

    def weights(self):
        """Yields (Hugging Face name, f32 array), each [out, in] or [out]."""
        config = self.config()
        for tensor in self.reader.tensors:
            values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
            values = values.reshape(tensor.shape.tolist()[::-1])
            if ".attn_q." in tensor.name:
                values = halves_from_pairs(values, config["num_attention_heads"])
            elif ".attn_k." in tensor.name:
                values = halves_from_pairs(values, config["num_key_value_heads"])
            yield hugging_face_name(tensor.name), values

    def chat_template(self):
        """The Jinja source of the chat template."""
        return self.get("tokenizer.chat_template")

    def tokenizer_json(self):
        """tokenizer.json as a dict: byte-level BPE whose digits stand alone (`tokenizer.ggml.pre` is smollm)."""
        assert self.get("tokenizer.ggml.model") == "gpt2" and self.get("tokenizer.ggml.pre") == "smollm"
        tokens, types = self.get("tokenizer.ggml.tokens"), self.get("tokenizer.ggml.token_type")
        added = [
            {"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": True}
            for i, (token, kind) in enumerate(zip(tokens, types))
            if kind == CONTROL
        ]
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            "normalizer": None,
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
            },
            "post_processor": None,
            "decoder": {**byte_level, "add_prefix_space": True},
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": False,
                "vocab": {token: i for i, token in enumerate(tokens)},
                "merges": self.get("tokenizer.ggml.merges"),
            },
        }

    def token(self, role):
        """The text of the token that `tokenizer.ggml.{role}_token_id` names."""
        return self.get("tokenizer.ggml.tokens")[self.get(f"tokenizer.ggml.{role}_token_id")]
