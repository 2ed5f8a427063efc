"""Makes a sharded bf16 safetensors folder of SmolLM2's GGUF, as a model hub would hold it.

    python tests/scripts/make_smollm2_folder.py MODEL.gguf DEST

Needs numpy and gguf only. What is written: config.json (classic form), generation_config.json,
tokenizer.json, tokenizer_config.json, model-0000N-of-0000M.safetensors and model.safetensors.index.json.
"""

import json
import struct
import sys
from pathlib import Path

import numpy as np

from smollm2 import Gguf

SHARD_BYTES = 80_000_000


def to_bf16(values):
    """The bits of f32 `values` rounded to bf16, to nearest and ties to even: u16. No NaN occurs in weights."""
    bits = values.view(np.uint32)
    assert np.isfinite(values).all()
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def write_safetensors(path, tensors):
    """Writes {name: u16 bits} as bf16 tensors. By hand, since numpy has no bf16."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, bits in tensors.items():
        header[name] = {"dtype": "BF16", "shape": list(bits.shape), "data_offsets": [offset, offset + bits.nbytes]}
        offset += bits.nbytes
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for bits in tensors.values():
            file.write(np.ascontiguousarray(bits).tobytes())


def shards(weights):
    """Groups (name, bits) into dicts of at most SHARD_BYTES, or of one tensor that is larger."""
    shard, size = {}, 0
    for name, bits in weights:
        if shard and size + bits.nbytes > SHARD_BYTES:
            yield shard
            shard, size = {}, 0
        shard[name] = bits
        size += bits.nbytes
    yield shard


def write_json(path, value):
    """Writes `value` as hubs do: indented, one newline at the end."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def make(source, folder):
    """The whole folder."""
    model = Gguf(source)
    folder.mkdir(parents=True, exist_ok=True)
    parts = list(shards((name, to_bf16(values)) for name, values in model.weights()))
    weight_map, total = {}, 0
    for i, part in enumerate(parts, 1):
        file = f"model-{i:05}-of-{len(parts):05}.safetensors"
        write_safetensors(folder / file, part)
        weight_map.update(dict.fromkeys(part, file))
        total += sum(bits.nbytes for bits in part.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    write_json(folder / "model.safetensors.index.json", index)
    config = model.config()
    write_json(folder / "config.json", config)
    ids = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    write_json(folder / "generation_config.json", {"_from_model_config": True, **ids})
    write_json(folder / "tokenizer.json", model.tokenizer_json())
    write_json(folder / "tokenizer_config.json", {
        "add_prefix_space": False,
        "bos_token": model.token("bos"),
        "chat_template": model.chat_template(),
        "clean_up_tokenization_spaces": False,
        "eos_token": model.token("eos"),
        "model_max_length": config["max_position_embeddings"],
        "pad_token": model.token("padding"),
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": model.token("unknown"),
    })
    print(f"{folder}: {len(parts)} shards, {total:,} bytes of weights")


if __name__ == "__main__":
    make(sys.argv[1], Path(sys.argv[2]))
