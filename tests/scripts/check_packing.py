"""Fails if make_quantized.py packs quantised weights otherwise than the programs whose layouts it writes.

    python tests/scripts/check_packing.py

Runs AutoGPTQ's `QuantLinear.pack`, AutoAWQ's `WQLinear_GEMM.from_linear` and compressed-tensors' `pack_to_int32` on the
weights of a matrix and compares every tensor. Needs the packages of requirements-packing.txt. They are old: only the modules
that pack are imported, not what their packages import first.
"""

import importlib
import importlib.util
import sys
import types
from pathlib import Path

import torch

import make_quantized

ROWS, COLUMNS = 64, 192


def module_of(name):
    """The module `name`, without running the `__init__` of the packages around it."""
    parts = name.split(".")[:-1]
    spec = importlib.util.find_spec(parts[0])
    if spec is None:
        raise SystemExit(f"{parts[0]} is not installed: see requirements-packing.txt")
    folder = Path(spec.origin).parent
    for depth in range(1, len(parts) + 1):
        package = types.ModuleType(".".join(parts[:depth]))
        package.__path__ = [str(folder.joinpath(*parts[1:depth]))]
        sys.modules.setdefault(package.__name__, package)
    return importlib.import_module(name)


def quantized(layout):
    """(our tensors of a matrix, what they mean, a linear layer of that)."""
    generator = torch.Generator().manual_seed(7)
    weight = torch.randn(ROWS, COLUMNS, generator=generator)
    parts, values = layout[1]("model.layers.0.mlp.up_proj.weight", weight, generator)
    linear = torch.nn.Linear(COLUMNS, ROWS, bias=False)
    linear.weight.data.copy_(values)
    return parts, linear


def compare(what, found, wanted):
    """`found` are our tensors, `wanted` theirs."""
    for part, tensor in wanted.items():
        same = found[part].shape == tensor.shape and torch.equal(found[part].to(tensor.dtype), tensor)
        if not same:
            raise SystemExit(f"{what}: {part} differs: {found[part].shape} and {tensor.shape}")
    print(f"{what}: {', '.join(wanted)} are the same")


def unpacked(words, bits):
    """The numbers of `words [rows, n]`, lowest first."""
    words = words.long() & 0xFFFFFFFF
    return torch.stack([(words >> (bits * k)) & (2**bits - 1) for k in range(32 // bits)], -1).flatten(1)


def check_gptq():
    """Zeros less one, as the first version of the format has them."""
    module = module_of("auto_gptq.nn_modules.qlinear.qlinear_cuda")
    for bits, group, symmetric, act_order in [(4, 32, True, False), (4, 64, False, True), (8, 32, False, True)]:
        parts, linear = quantized(make_quantized.gptq(bits, group, symmetric, act_order))
        theirs = module.QuantLinear(bits, group, COLUMNS, ROWS, False)
        zeros = unpacked(parts["qzeros"], bits) + 1
        theirs.pack(linear, parts["scales"].T.float(), zeros.T.float(), parts["g_idx"].long())
        wanted = {part: getattr(theirs, part) for part in ("qweight", "qzeros", "scales")}
        compare(f"AutoGPTQ, {bits} bit, groups of {group}", parts, {**wanted, "g_idx": theirs.g_idx})


def check_awq():
    """The order of nibbles of the GEMM kernel."""
    module = module_of("awq.modules.linear.gemm")
    module.get_best_device = lambda: "cpu"
    parts, linear = quantized(make_quantized.awq(64))
    order = torch.tensor(make_quantized.AWQ_ORDER).argsort()
    zeros = unpacked(parts["qzeros"], 4).reshape(-1, 8)[:, order].reshape(COLUMNS // 64, ROWS)
    theirs = module.WQLinear_GEMM.from_linear(linear, 4, 64, False, parts["scales"].float(), zeros.float())
    compare("AutoAWQ", parts, {part: getattr(theirs, part) for part in ("qweight", "qzeros", "scales")})


def check_compressed():
    """Numbers around zero; those of zero points along the rows."""
    module = module_of("compressed_tensors.compressors.pack_quantized.helpers")
    for bits, group, symmetric in [(4, 32, False), (8, -1, True)]:
        parts, _ = quantized(make_quantized.compressed_integers(bits, group, symmetric))
        middle = 2 ** (bits - 1)
        values = (unpacked(parts["weight_packed"], bits) - middle).to(torch.int8)
        wanted = {"weight_packed": module.pack_to_int32(values, bits)}
        if not symmetric:
            zeros = (unpacked(parts["weight_zero_point"].T, bits).T - middle).to(torch.int8)
            wanted["weight_zero_point"] = module.pack_to_int32(zeros, bits, packed_dim=0)
        compare(f"compressed-tensors, {bits} bit", parts, wanted)


if __name__ == "__main__":
    check_gptq()
    check_awq()
    check_compressed()
