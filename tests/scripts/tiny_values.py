"""The expected values of a tiny model, and the search for a seed whose values are worth comparing.

Knows no family and no file format of weights: `write` and `load` are handed in.
"""

import json

import safetensors.torch
import torch
import transformers

import reference
from tiny_tokenizer import VOCAB_SIZE

LENGTHS = {"one": 1, "short": 17, "medium": 70, "long": 200}
GREEDY_STEPS = 24
LEAST_MARGIN = 0.02  # A seed whose greedy path has a closer call than this is passed over,
LEAST_DISTINCT = 3  # ... and one with fewer different tokens in a continuation, or fewer than
LEAST_DISTINCT_IN_ALL = 12  # ... this many in all continuations: models that only repeat themselves.


def search(folder, write, load, length_dependent=False):
    """Tries seeds in order until `write(seed)` makes a telling model in `folder`; leaves its values beside it."""
    for seed in range(1000, 1400, 2):
        write(seed)
        entries, arrays = expected_values(load, seed, length_dependent)
        if is_telling(entries):
            break
    else:
        raise SystemExit(f"{folder.name}: no seed gives a telling model")
    about = {
        "family": folder.name,
        "seed": seed,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "prompts": entries,
    }
    (folder / "expected.json").write_text(json.dumps(about) + "\n")
    safetensors.torch.save_file(arrays, folder / "expected.safetensors")
    least = min(min(entry["margins"]) for entry in entries)
    spread = float(arrays["long.logits"].std())
    print(f"{folder.name}: seed {seed}, least margin {least:.3f}, logits spread {spread:.2f}", flush=True)


def expected_values(load, seed, length_dependent):
    """(the entries of expected.json's `prompts`, the arrays of expected.safetensors)."""
    arrays, entries = {}, []
    for name, ids in prompts(seed + 1).items():
        model = load()  # Afresh: dynamic scaling keeps state from one prompt to the next.
        positions = logit_positions(len(ids))
        logits = reference.prompt_logits(model, ids)
        arrays[f"{name}.logits"] = logits[positions].contiguous()
        if len(ids) > 1:
            arrays[f"{name}.prompt_logprobs"] = reference.prompt_logprobs(logits, ids)
        tokens, margins = reference.greedy(load(), ids, GREEDY_STEPS)
        entry = {"name": name, "ids": ids, "logit_positions": positions, "greedy": tokens, "margins": margins}
        if length_dependent:
            entry["greedy_uncached"] = reference.greedy_uncached(load(), ids, GREEDY_STEPS)
        entries.append(entry)
    return entries, arrays


def prompts(seed):
    """{name: ids}: uniformly random ids, special ones included."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randint(VOCAB_SIZE, (length,), generator=generator).tolist() for name, length in LENGTHS.items()
    }


def logit_positions(length):
    """The positions whose logits are kept: a few inner ones around block and chunk edges, and the last."""
    return sorted({p for p in (0, 15, 16, 31, 63, 64, 127, 128) if p < length - 1} | {length - 1})


def is_telling(entries):
    """Whether the greedy paths are clear of ties and go somewhere."""
    clear = all(min(entry["margins"]) >= LEAST_MARGIN for entry in entries)
    kinds = [set(entry["greedy"]) for entry in entries]
    return clear and min(map(len, kinds)) >= LEAST_DISTINCT and len(set.union(*kinds)) >= LEAST_DISTINCT_IN_ALL
