"""Makes the fixtures of the GGUF reader and of the quantised kernels.

    python tests/scripts/make_quants.py tests/fixtures/quants
"""

import sys
from pathlib import Path

import numpy as np
import safetensors.numpy
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter

from blocks import TYPES, random_rows

ROWS, COLUMNS, INPUTS = 4, 512, 3


def make(folder):
    """Both files."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(2026)
    x = rng.normal(0, 1, (INPUTS, COLUMNS)).astype(np.float32)
    arrays = {"x": x}
    for name in TYPES:
        raw, values = random_rows(rng, name, ROWS, COLUMNS, spread=0.05)
        assert np.isfinite(values).all()
        arrays[f"{name}.raw"] = raw
        arrays[f"{name}.values"] = values
        arrays[f"{name}.product"] = (x.astype(np.float64) @ values.T.astype(np.float64)).astype(np.float32)
    safetensors.numpy.save_file(arrays, folder / "quants.safetensors")
    write_every_type(folder / "every_type.gguf", arrays)


def write_every_type(path, arrays):
    """A GGUF with every metadata type, one tensor of each tensor type, and an alignment that is not the usual one."""
    writer = GGUFWriter(path, "llama")
    writer.add_custom_alignment(64)
    writer.add_uint8("test.u8", 200)
    writer.add_int8("test.i8", -100)
    writer.add_uint16("test.u16", 60000)
    writer.add_int16("test.i16", -30000)
    writer.add_uint32("test.u32", 4000000000)
    writer.add_int32("test.i32", -2000000000)
    writer.add_uint64("test.u64", 2**63 + 1)
    writer.add_int64("test.i64", -(2**62))
    writer.add_float32("test.f32", 0.5)
    writer.add_float64("test.f64", 0.1)
    writer.add_bool("test.bool", True)
    writer.add_string("test.string", "a lantern 🏮")
    writer.add_array("test.strings", ["", "Ġa", "中文"])
    writer.add_array("test.integers", [-1, 0, 1])
    writer.add_array("test.floats", [0.25, -0.5])
    writer.add_array("test.bools", [True, False])
    writer.add_key_value("test.bytes", [0, 127, 255], GGUFValueType.ARRAY, GGUFValueType.UINT8)
    for name in TYPES:
        writer.add_tensor(name.lower(), arrays[f"{name}.raw"], raw_dtype=GGMLQuantizationType[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    make(Path(sys.argv[1]))
