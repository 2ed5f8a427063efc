"""Writes what transformers pools prompts to: `embeddings.json` in the folders of some families.

    python tests/scripts/make_embeddings.py tests/fixtures/golden

For each prompt of expected.json the mean over all tokens and the last token's hidden state, after the last norm.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModel

FAMILIES = ["llama3", "qwen3_moe", "deepseek_v2_lite"]


def pooled(folder):
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    prompts = json.loads((folder / "expected.json").read_text())["prompts"]
    for prompt in prompts:
        states = model(torch.tensor([prompt["ids"]]), use_cache=False).last_hidden_state[0].double()
        digits = lambda vector: [float(f"{value:.7g}") for value in vector.tolist()]
        yield {"ids": prompt["ids"], "mean": digits(states.mean(0)), "last": digits(states[-1])}


def main():
    torch.set_grad_enabled(False)
    for family in FAMILIES:
        folder = Path(sys.argv[1]) / family
        lines = ",\n".join(json.dumps(one, separators=(",", ":")) for one in pooled(folder))
        (folder / "embeddings.json").write_text(f"[\n{lines}\n]\n")


main()
