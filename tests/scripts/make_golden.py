"""Makes the tiny models of every family and what transformers computes with them.

    python tests/scripts/make_golden.py tests/fixtures/golden [FAMILY ...]

Each folder is a whole model folder (config.json in transformers 5's form and config.classic.json, weights in
bf16, tokenizer) with expected.json and expected.safetensors beside it; README.md here says what is in them.
"""

import json
import shutil
import sys
from pathlib import Path

import safetensors.torch
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

import reference
import tiny_tokenizer
from families import COMMON, FAMILIES, LENGTHS, classic_config

GREEDY_STEPS = 24
LEAST_MARGIN = 0.02  # A seed whose greedy path has a closer call than this is passed over.
LEAST_DISTINCT = 3  # ... and one with fewer different tokens in a continuation, or fewer than
LEAST_DISTINCT_IN_ALL = 12  # ... this many in all continuations: models that only repeat themselves.


def random_weights(model, seed):
    """Fills `model` with seeded weights that bf16 holds exactly, of a size that makes logits spread by about 2."""
    generator = torch.Generator().manual_seed(seed)
    tied = model.config.tie_word_embeddings
    for name, parameter in sorted(model.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("norm.weight"):
            value = 1.0 + 0.2 * noise
        elif name.endswith("bias"):
            value = 0.25 * noise
        elif name.endswith("embed_tokens.weight"):
            value = (0.25 if tied else 1.0) * noise
        else:
            gain = 2.0 if "q_proj" in name or "lm_head" in name else 1.0
            value = gain * noise / parameter.shape[1] ** 0.5
        parameter.data.copy_(value.to(torch.bfloat16).float())


def prompts(seed):
    """{name: ids}: uniformly random ids, special ones included."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randint(tiny_tokenizer.VOCAB_SIZE, (length,), generator=generator).tolist()
        for name, length in LENGTHS.items()
    }


def logit_positions(length):
    """The positions whose logits are kept: a few inner ones around block and chunk edges, and the last."""
    return sorted({p for p in (0, 15, 16, 31, 63, 64, 127, 128) if p < length - 1} | {length - 1})


def write_model(folder, family, seed):
    """The model folder without the expected values."""
    model_type = FAMILIES[family]["type"]
    config = AutoConfig.for_model(model_type, **{**COMMON, **FAMILIES[family]["config"]})
    model = AutoModelForCausalLM.from_config(config)
    random_weights(model, seed)
    shutil.rmtree(folder, ignore_errors=True)
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size=FAMILIES[family].get("shard_size", "5GB"))
    (folder / "generation_config.json").unlink(missing_ok=True)
    tiny_tokenizer.save(folder)
    modern = json.loads((folder / "config.json").read_text())
    classic = classic_config(modern, FAMILIES[family]["classic"])
    (folder / "config.classic.json").write_text(json.dumps(classic, indent=2) + "\n")
    check_same_meaning(folder)


def check_same_meaning(folder):
    """Fails unless transformers reads both forms of the config as the same model."""
    forms = []
    for name in ("config.json", "config.classic.json"):
        form = AutoConfig.from_pretrained(folder / name).to_dict()
        # A window that is off may say anything; `type` is the old spelling of rope_type.
        for key in ("transformers_version", "_name_or_path", "max_window_layers"):
            form.pop(key, None)
        form["rope_parameters"].pop("type", None)
        forms.append(form)
    different = {key for key in forms[0].keys() | forms[1].keys() if forms[0].get(key) != forms[1].get(key)}
    assert not different, {key: [form.get(key) for form in forms] for key in different}


def load(folder):
    """The model as the reference sees it: read afresh, in float32."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def expected_values(folder, family, seed):
    """(what goes to expected.json, arrays for expected.safetensors, whether the seed is a good one)."""
    arrays, entries = {}, []
    for name, ids in prompts(seed + 1).items():
        model = load(folder)  # Afresh: dynamic scaling keeps state from one prompt to the next.
        positions = logit_positions(len(ids))
        logits = reference.prompt_logits(model, ids)
        arrays[f"{name}.logits"] = logits[positions].contiguous()
        if len(ids) > 1:
            arrays[f"{name}.prompt_logprobs"] = reference.prompt_logprobs(logits, ids)
        tokens, margins = reference.greedy(load(folder), ids, GREEDY_STEPS)
        entry = {"name": name, "ids": ids, "logit_positions": positions, "greedy": tokens, "margins": margins}
        if FAMILIES[family].get("length_dependent"):
            entry["greedy_uncached"] = reference.greedy_uncached(load(folder), ids, GREEDY_STEPS)
        entries.append(entry)
    about = {
        "family": family,
        "seed": seed,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "prompts": entries,
    }
    return about, arrays, is_telling(entries)


def is_telling(entries):
    """Whether the greedy paths are clear of ties and go somewhere."""
    clear = all(min(entry["margins"]) >= LEAST_MARGIN for entry in entries)
    kinds = [set(entry["greedy"]) for entry in entries]
    return clear and min(map(len, kinds)) >= LEAST_DISTINCT and len(set.union(*kinds)) >= LEAST_DISTINCT_IN_ALL


def make(root, family):
    """Tries seeds in order until the greedy paths have clear margins, and leaves that one's folder."""
    folder = root / family
    for seed in range(1000, 1200, 2):
        write_model(folder, family, seed)
        about, arrays, good = expected_values(folder, family, seed)
        if good:
            break
    else:
        raise SystemExit(f"{family}: no seed gives clear margins")
    (folder / "expected.json").write_text(json.dumps(about) + "\n")
    safetensors.torch.save_file(arrays, folder / "expected.safetensors")
    least = min(min(entry["margins"]) for entry in about["prompts"])
    spread = float(arrays["long.logits"].std())
    print(f"{family}: seed {seed}, least margin {least:.3f}, logits spread {spread:.2f}", flush=True)


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    destination = Path(sys.argv[1])
    for chosen in sys.argv[2:] or FAMILIES:
        make(destination, chosen)
