"""Writes a tiny random model with a real vocabulary and a long context: for clients that send more than the default
model holds, beside `lantern serve --scripted`.

    python tests/clients/tiny_model.py FOLDER_WITH_A_TOKENIZER TARGET

Knows no answers: what it would say is noise. Needs nothing but Python.
"""

import contextlib
import json
import random
import shutil
import struct
import sys
import tempfile
from pathlib import Path

from server import Server

# Heads of 64, which a GPU can take too.
HIDDEN, HEADS, KV_HEADS, LAYERS, INNER, VOCABULARY, CONTEXT = 128, 2, 1, 2, 128, 49_152, 32_768

# Qwen's way of telling tools, over ChatML's messages.
TEMPLATE = """\
{%- if tools %}<|im_start|>system
{%- if messages[0].role == 'system' %}
{{ messages[0].content }}
{%- endif %}
# Tools
<tools>
{%- for tool in tools %}
{{ tool | tojson }}
{%- endfor %}
</tools>
For each call return <tool_call>{"name": NAME, "arguments": OBJECT}</tool_call>.<|im_end|>
{% elif messages[0].role == 'system' %}<|im_start|>system
{{ messages[0].content }}<|im_end|>
{% endif %}
{%- for message in messages %}
{%- if message.role == 'tool' %}<|im_start|>user
<tool_response>
{{ message.content }}
</tool_response><|im_end|>
{% elif message.role != 'system' or not loop.first %}<|im_start|>{{ message.role }}
{{ message.content or '' }}
{%- for call in message.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor %}<|im_end|>
{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def shapes():
    yield "model.embed_tokens.weight", (VOCABULARY, HIDDEN)
    yield "model.norm.weight", (HIDDEN,)
    for layer in range(LAYERS):
        before = f"model.layers.{layer}."
        yield before + "input_layernorm.weight", (HIDDEN,)
        yield before + "post_attention_layernorm.weight", (HIDDEN,)
        key = HIDDEN // HEADS * KV_HEADS
        for name, rows in [("q", HIDDEN), ("k", key), ("v", key), ("o", HIDDEN)]:
            yield f"{before}self_attn.{name}_proj.weight", (rows, HIDDEN)
        for name, shape in [("gate", (INNER, HIDDEN)), ("up", (INNER, HIDDEN)), ("down", (HIDDEN, INNER))]:
            yield f"{before}mlp.{name}_proj.weight", shape


def values(generator, count):
    """bf16 of either sign between 1/16 and 1/8."""
    signs = bytes(0x3D | (byte & 0x80) for byte in range(256))
    both = bytearray(2 * count)
    both[0::2] = bytes(byte | 0x80 for byte in generator.randbytes(count))
    both[1::2] = generator.randbytes(count).translate(signs)
    return bytes(both)


def write_weights(path):
    generator, header, at, parts = random.Random(7), {}, 0, []
    for name, shape in shapes():
        count = 1
        for size in shape:
            count *= size
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + 2 * count]}
        at += 2 * count
        parts.append(values(generator, count))
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(parts))


def write(source, target, template=TEMPLATE):
    """The model in the folder `target`, with the tokenizer of the folder `source`."""
    target.mkdir(parents=True, exist_ok=True)
    for name in ["tokenizer.json", "tokenizer_config.json"]:
        shutil.copy(source / name, target / name)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": HIDDEN,
        "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5, "rope_theta": 1e5, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
        "bos_token_id": 1, "eos_token_id": 2,
    }
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (target / "chat_template.jinja").write_text(template)
    write_weights(target / "model.safetensors")


def script(folder, answers):
    """The arguments that make the model say, after each text that `answers` has, what stands there for it."""
    path = folder / "script.json"
    path.write_text(json.dumps([{"after": after, "say": say} for after, say in answers.items()]))
    return ["--scripted", str(path)]


@contextlib.contextmanager
def serving(binary, source, answers, name="tiny", template=TEMPLATE):
    """The binary with the model of `write` under this name, and with answers as `script` takes them."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write(source, folder / name, template)
        server = Server(binary, str(folder / name), *script(folder, answers))
        try:
            yield server
        finally:
            server.stop()


if __name__ == "__main__":
    write(*map(Path, sys.argv[1:]))
