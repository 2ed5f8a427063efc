"""Makes tiny models quantised as other programs do it, and what transformers computes with the same weights, dequantised.

    python tests/scripts/make_quantized.py tests/fixtures/quantized [NAME ...]

Each folder holds a model in one of the layouts of GPTQ, AWQ, compressed-tensors or fp8, written here with torch alone, and
expected.json and expected.safetensors as in tests/fixtures/golden. The quants, scales, zeros and orders are chosen so that
no bit's place can be mistaken, not so that a model would lose little.

Sources: AutoGPTQ `QuantLinear.pack`; AutoAWQ `WQLinear_GEMM.from_linear`; compressed-tensors `pack_to_int32`;
DeepSeek-V3 `fp8_cast_bf16.py`.
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
from families import COMMON, FAMILIES
from make_golden import random_weights

LLAMA = {
    "type": "llama",
    "config": {
        "hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64,
        "max_position_embeddings": 256, "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
}
# Heads of the up-projection, 40 rows each, lie across the squares of 128; rows are multiples of 32, as all real ones are.
DEEPSEEK_V3 = {
    "type": "deepseek_v3",
    "config": {**FAMILIES["deepseek_v3_wide"]["config"], "q_lora_rank": 64, "moe_intermediate_size": 32},
}
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def pack(values, bits, order=None):
    """i32 [rows, columns / n] of unsigned `values [rows, columns]`: n neighbours of a row in a word, lowest first."""
    count = 32 // bits
    values = values.long().reshape(values.shape[0], -1, count)
    values = values[:, :, order or list(range(count))]
    words = sum(values[:, :, k] << (bits * k) for k in range(count))
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def integers(weight, bits, group, symmetric, generator, scale_type, order=None):
    """(q, zero, scale, dequantised): q [out, in], zero and scale [out, groups]; `order` sorts inputs into groups."""
    rows, columns = weight.shape
    group = columns if group == -1 else group
    groups = torch.arange(columns) // group
    if order is not None:
        groups = groups[order.argsort()]
    scales = []
    for index in range(columns // group):
        part = weight[:, groups == index]
        scales.append((part.max(1).values - part.min(1).values) / (2**bits - 1) * 1.05)
    scale = torch.stack(scales, 1).to(scale_type).float()
    middle = 2 ** (bits - 1)
    if symmetric:
        zero = torch.full_like(scale, middle)
        scale = (scale * 1.3).to(scale_type).float()
    else:
        zero = middle + torch.randint(-2, 3, scale.shape, generator=generator).float()
    q = (weight / scale[:, groups] + zero[:, groups]).round().clamp(0, 2**bits - 1)
    return q, zero, scale, (q - zero[:, groups]) * scale[:, groups], groups


def gptq(bits, group, symmetric, act_order=False, version="gptq"):
    """AutoGPTQ's layout; v1 stores zeros less one."""
    settings = {"quant_method": "gptq", "bits": bits, "group_size": group, "sym": symmetric, "desc_act": act_order,
                "checkpoint_format": version}
    orders = {}

    def quantize(name, weight, generator):
        columns = weight.shape[1]
        order = None
        if act_order:
            # Matrices that read the same inputs are sorted alike.
            key = (name.split(".")[2], "down" if "down" in name else "o" if "o_proj" in name else "in")
            order = orders.setdefault(key, torch.randperm(columns, generator=generator))
        q, zero, scale, values, groups = integers(weight, bits, group, symmetric, generator, torch.float16, order)
        less = 1 if version == "gptq" else 0
        return {"qweight": pack(q, bits).T, "qzeros": pack((zero - less).T, bits),
                "scales": scale.T.to(torch.float16), "g_idx": groups.to(torch.int32)}, values

    return settings, quantize


def awq(group):
    """AutoAWQ's layout for its GEMM kernel."""
    settings = {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": "gemm",
                "modules_to_not_convert": None}

    def quantize(_, weight, generator):
        q, zero, scale, values, _ = integers(weight, 4, group, False, generator, torch.float16)
        return {"qweight": pack(q.T, 4, AWQ_ORDER), "qzeros": pack(zero.T, 4, AWQ_ORDER),
                "scales": scale.T.to(torch.float16)}, values

    return settings, quantize


def compressed_settings(form, weights):
    """The configuration of a compressed-tensors checkpoint."""
    return {"quant_method": "compressed-tensors", "format": form, "ignore": ["lm_head"],
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None}}}


def compressed_integers(bits, group, symmetric):
    """pack-quantized."""
    weights = {"num_bits": bits, "type": "int", "symmetric": symmetric,
               "strategy": "channel" if group == -1 else "group", "group_size": None if group == -1 else group}

    def quantize(_, weight, generator):
        q, zero, scale, values, _ = integers(weight, bits, group, symmetric, generator, torch.bfloat16)
        tensors = {"weight_packed": pack(q, bits), "weight_scale": scale.to(torch.bfloat16),
                   "weight_shape": torch.tensor(weight.shape)}
        if not symmetric:
            tensors["weight_zero_point"] = pack(zero.T, bits).T.contiguous()
        return tensors, values

    return compressed_settings("pack-quantized", weights), quantize


def floats(settings, block, scale_name, scale_type):
    """fp8: `block` rows and columns share a scale; -1 stands for all."""

    def quantize(_, weight, __):
        high, wide = (size if step == -1 else step for size, step in zip(weight.shape, block))
        rows, columns = torch.arange(weight.shape[0]) // high, torch.arange(weight.shape[1]) // wide
        scale = torch.zeros(int(rows[-1]) + 1, int(columns[-1]) + 1)
        for row in range(scale.shape[0]):
            for column in range(scale.shape[1]):
                scale[row, column] = weight[rows == row][:, columns == column].abs().max() / 448
        scale = scale.to(scale_type).float()
        spread = scale[rows][:, columns]
        q = (weight / spread).clamp(-448, 448).to(torch.float8_e4m3fn)
        stored = scale.reshape(1) if block == (-1, -1) else scale
        return {"weight": q, scale_name: stored.to(scale_type)}, q.float() * spread

    return settings, quantize


def fp8_settings(form, strategy):
    """compressed-tensors' fp8 with activations quantised as well."""
    settings = compressed_settings(form, {"num_bits": 8, "type": "float", "symmetric": True, "strategy": strategy})
    settings["config_groups"]["group_0"]["input_activations"] = {"num_bits": 8, "type": "float", "dynamic": True}
    return settings


FP8_BLOCKS = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
# A layout, and the model that is laid out so.
LAYOUTS = {
    "gptq_sym": (lambda: gptq(4, 32, True), LLAMA),
    "gptq_asym_v2": (lambda: gptq(4, 64, False, version="gptq_v2"), LLAMA),
    "gptq_act_order": (lambda: gptq(4, 32, False, act_order=True), LLAMA),
    "gptq_8bit": (lambda: gptq(8, -1, False), LLAMA),
    "gptq_8bit_act_order": (lambda: gptq(8, 32, True, act_order=True), LLAMA),
    "gptq_qwen3_moe": (lambda: gptq(4, 32, False), FAMILIES["qwen3_moe_heads64"]),
    "awq": (lambda: awq(64), LLAMA),
    "compressed_int4": (lambda: compressed_integers(4, 32, False), LLAMA),
    "compressed_int8": (lambda: compressed_integers(8, -1, True), LLAMA),
    "compressed_fp8": (lambda: floats(fp8_settings("float-quantized", "channel"), (1, -1), "weight_scale",
                                      torch.bfloat16), LLAMA),
    "fp8_tensor": (lambda: floats({"quant_method": "fp8", "activation_scheme": "dynamic"}, (-1, -1), "weight_scale",
                                  torch.float32), LLAMA),
    "fp8_blocks": (lambda: floats(FP8_BLOCKS, (128, 128), "weight_scale_inv", torch.float32), LLAMA),
    "fp8_blocks_deepseek_v3": (lambda: floats(FP8_BLOCKS, (128, 128), "weight_scale_inv", torch.float32), DEEPSEEK_V3),
}


def matrices(model):
    """(name in a checkpoint, matrix) of everything that is quantised: views into the weights of `model`."""
    for key, parameter in model.named_parameters():
        module, _, last = key.rpartition(".")
        if last == "weight" and (module.endswith("_proj") or module.endswith("_proj_with_mqa")):
            yield key, parameter.data
        elif module.endswith(".experts"):
            # transformers keeps the experts of a layer in one tensor, gate above up.
            for expert, matrix in enumerate(parameter.data):
                parts = {last: matrix}
                if last == "gate_up_proj":
                    parts = dict(zip(("gate_proj", "up_proj"), matrix.chunk(2)))
                for part, view in parts.items():
                    yield f"{module}.{expert}.{part}.weight", view


def quantized_tensors(model, quantize, generator):
    """The tensors of a checkpoint; the weights of `model` become what they mean."""
    tensors, quantised = {}, list(matrices(model))
    for name, matrix in quantised:
        parts, values = quantize(name, matrix, generator)
        module = name.removesuffix(".weight")
        tensors.update({f"{module}.{part}": tensor.contiguous() for part, tensor in parts.items()})
        matrix.copy_(values)
    names = {name for name, _ in quantised}
    for key, parameter in model.named_parameters():
        if key not in names and ".experts." not in key:
            tensors[key] = parameter.data.to(torch.bfloat16)
    corrections = [entry for entry in model.named_buffers() if entry[0].endswith("e_score_correction_bias")]
    return tensors | {name: buffer.float() for name, buffer in corrections}


def make(root, name):
    """One layout's folder."""
    folder, reference = root / name, {}
    layout, entry = LAYOUTS[name]

    def write(seed):
        settings, quantize = layout()
        config = AutoConfig.for_model(entry["type"], **{**COMMON, **entry["config"]})
        model = AutoModelForCausalLM.from_config(config)
        random_weights(model, seed)
        tensors = quantized_tensors(model, quantize, torch.Generator().manual_seed(seed + 1))
        shutil.rmtree(folder, ignore_errors=True)
        config.architectures = [type(model).__name__]
        config.save_pretrained(folder)
        written = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**written, "quantization_config": settings}, indent=2) + "\n")
        safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        tiny_tokenizer.save(folder)
        reference["config"], reference["weights"] = config, model.state_dict()

    def load():
        model = AutoModelForCausalLM.from_config(reference["config"], attn_implementation="eager").float()
        model.load_state_dict(reference["weights"])
        return model.eval()

    tiny_values.search(folder, write=write, load=load)


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    destination = Path(sys.argv[1])
    for chosen in sys.argv[2:] or LAYOUTS:
        make(destination, chosen)
