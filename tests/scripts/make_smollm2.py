"""What transformers answers, in float32, with SmolLM2's weights.

    python tests/scripts/make_smollm2.py MODEL.gguf tests/fixtures/smollm2/chats.json
    python tests/scripts/make_smollm2.py FOLDER     tests/fixtures/smollm2/chats_bf16.json

The first takes the GGUF's weights dequantised exactly; the second the folder of make_smollm2_folder.py.
"""

import json
import sys
from pathlib import Path

import tokenizers
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import reference
from chats import CHATS, TEXTS
from smollm2 import Gguf

GREEDY_STEPS = 64
TOP = 20


def load_gguf(path):
    """(model in float32, tokenizer) of a GGUF file."""
    source = Gguf(path)
    config = source.config()
    config.pop("torch_dtype")
    model = LlamaForCausalLM(LlamaConfig(**config))
    weights = {name: torch.from_numpy(values) for name, values in source.weights()}
    if config["tie_word_embeddings"]:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights, strict=True)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(json.dumps(source.tokenizer_json())),
        chat_template=source.chat_template(),
    )
    return model.eval(), tokenizer


def load_folder(path):
    """(model in float32, tokenizer) of a safetensors folder."""
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(path)


def answer(model, tokenizer, name, messages):
    """One chat: its prompt, and the greedy answer up to its end or GREEDY_STEPS tokens."""
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = tokenizer.encode(prompt, add_special_tokens=False)
    logits = reference.prompt_logits(model, ids)
    end = model.config.eos_token_id
    tokens, margins = reference.greedy(model, ids, GREEDY_STEPS, stop_ids=(end,))
    assert tokens[0] == int(logits[-1].argmax())
    ended = tokens[-1] == end
    text = tokenizer.decode(tokens[:-1] if ended else tokens, clean_up_tokenization_spaces=False)
    print(f"{name}: {len(ids)} + {len(tokens)} tokens, least margin {min(margins):.4f}: {text[:90]!r}", flush=True)
    return {
        "name": name,
        "messages": messages,
        "prompt": prompt,
        "prompt_ids": ids,
        "tokens": tokens,
        "margins": [round(margin, 6) for margin in margins],
        "finish": "stop" if ended else "length",
        "text": text,
        "top_logits": [[token, round(logit, 5)] for token, logit in reference.top(logits[-1], TOP)],
    }


def make(source, destination):
    """Writes the fixture."""
    model, tokenizer = load_folder(source) if Path(source).is_dir() else load_gguf(source)
    fixture = {
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "eos_token_id": model.config.eos_token_id,
        "chats": [answer(model, tokenizer, name, messages) for name, messages in CHATS.items()],
        "texts": [{"text": text, "ids": tokenizer.encode(text, add_special_tokens=False)} for text in TEXTS],
    }
    destination.parent.mkdir(parents=True, exist_ok=True)
    destination.write_text(json.dumps(fixture, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    make(sys.argv[1], Path(sys.argv[2]))
