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

import tiny_tokenizer
import tiny_values
from families import COMMON, FAMILIES, classic_config


def random_weights(model, seed):
    """Fills `model` with seeded weights that bf16 holds exactly, of a size that makes logits spread by about 2."""
    generator = torch.Generator().manual_seed(seed)
    tied = model.config.tie_word_embeddings
    corrections = [entry for entry in model.named_buffers() if entry[0].endswith("e_score_correction_bias")]
    for name, parameter in sorted([*model.named_parameters(), *corrections]):
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("norm.weight"):
            value = 1.0 + 0.2 * noise
        elif name.endswith("bias"):
            value = 0.25 * noise
        elif name.endswith("embed_tokens.weight"):
            value = (0.25 if tied else 1.0) * noise
        else:
            # Routers and queries that are not nearly indifferent.
            decisive = ("q_proj", "q_b_proj", "lm_head", "mlp.gate.weight")
            gain = 2.0 if any(part in name for part in decisive) else 1.0
            value = gain * noise / parameter.shape[-1] ** 0.5
        parameter.data.copy_(value.to(torch.bfloat16).float())


def write_model(folder, family, seed):
    """The model folder without the expected values."""
    model_type = FAMILIES[family]["type"]
    config = AutoConfig.for_model(model_type, **{**COMMON, **FAMILIES[family]["config"]})
    model = AutoModelForCausalLM.from_config(config)
    random_weights(model, seed)
    shutil.rmtree(folder, ignore_errors=True)
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size=FAMILIES[family].get("shard_size", "5GB"))
    if model_type == "deepseek_v3":
        finish_as_deepseek(folder / "model.safetensors", model)
    (folder / "generation_config.json").unlink(missing_ok=True)
    tiny_tokenizer.save(folder)
    modern = json.loads((folder / "config.json").read_text())
    classic = classic_config(modern, FAMILIES[family]["classic"])
    (folder / "config.classic.json").write_text(json.dumps(classic, indent=2) + "\n")
    check_same_meaning(folder)


def finish_as_deepseek(path, model):
    """Corrections in f32, and behind the last layer those that predict further tokens: as DeepSeek's own files."""
    tensors = safetensors.torch.load_file(path)
    tensors = {name: t.float() if name.endswith("e_score_correction_bias") else t for name, t in tensors.items()}
    generator = torch.Generator().manual_seed(len(tensors))
    config = model.config
    last = f"model.layers.{config.num_hidden_layers - 1}.self_attn."
    for extra in range(config.num_nextn_predict_layers):
        layer = f"model.layers.{config.num_hidden_layers + extra}."
        hidden = config.hidden_size
        shapes = {"enorm.weight": (hidden,), "hnorm.weight": (hidden,), "eh_proj.weight": (hidden, 2 * hidden)}
        shapes |= {"self_attn." + name[len(last) :]: t.shape for name, t in tensors.items() if name.startswith(last)}
        for name, shape in shapes.items():
            tensors[layer + name] = torch.randn(shape, generator=generator).to(torch.bfloat16)
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})


def check_same_meaning(folder):
    """Fails unless transformers reads both forms of the config as the same model."""
    forms = []
    for name in ("config.json", "config.classic.json"):
        form = AutoConfig.from_pretrained(folder / name).to_dict()
        # A window that is off may say anything; `type` is the old spelling of rope_type. transformers derives how V3
        # scores experts, and which layers have some, from the model's type.
        derived = ["scoring_func", "moe_layer_freq", "ep_size"]
        if form["model_type"] == "deepseek_v3":
            derived.append("topk_method")
        for key in ("transformers_version", "_name_or_path", "max_window_layers", *derived):
            form.pop(key, None)
        form["rope_parameters"].pop("type", None)
        forms.append(form)
    different = {key for key in forms[0].keys() | forms[1].keys() if forms[0].get(key) != forms[1].get(key)}
    assert not different, {key: [form.get(key) for form in forms] for key in different}


def load(folder):
    """The model as the reference sees it: read afresh, in float32."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def make(root, family):
    """One family's folder."""
    folder = root / family
    tiny_values.search(
        folder,
        write=lambda seed: write_model(folder, family, seed),
        load=lambda: load(folder),
        length_dependent=FAMILIES[family].get("length_dependent", False),
    )


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    destination = Path(sys.argv[1])
    for chosen in sys.argv[2:] or FAMILIES:
        make(destination, chosen)
