"""Random but valid quantised blocks of every GGUF type that Lantern reads.

Every bit of the packed values is random, so that no bit's place can be mistaken; only the scales are chosen.
Knows no model.
"""

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize, quantize

FLOATS = ["F32", "F16", "BF16"]
# Where a block's f16 scale is (byte offset), where its f16 minimum is, and the minimum that centres values on zero,
# as a multiple of the scale.
LAYOUTS = {
    "Q4_0": (0, None, 0.0),
    "Q4_1": (0, 2, -7.5),
    "Q5_0": (0, None, 0.0),
    "Q5_1": (0, 2, -15.5),
    "Q8_0": (0, None, 0.0),
    "Q2_K": (80, 82, 1.5),
    "Q3_K": (108, None, 0.0),
    "Q4_K": (0, 2, 7.5),
    "Q5_K": (0, 2, 15.5),
    "Q6_K": (208, None, 0.0),
}
TYPES = FLOATS + list(LAYOUTS)


def random_rows(rng, type_name, rows, columns, spread):
    """(raw, values): the stored bytes, u8 [rows, row_bytes], and what they mean, f32 [rows, columns].

    `spread` is about the values' standard deviation.
    """
    kind = GGMLQuantizationType[type_name]
    if type_name in FLOATS:
        raw = quantize(rng.normal(0, spread, (rows, columns)).astype(np.float32), kind)
        raw = np.ascontiguousarray(raw).view(np.uint8).reshape(rows, -1)
    else:
        block_len, block_bytes = GGML_QUANT_SIZES[kind]
        blocks = rng.integers(0, 256, (rows * columns // block_len, block_bytes), dtype=np.uint8)
        relative = rng.uniform(0.5, 1.5, len(blocks))
        if LAYOUTS[type_name][1] is None:
            relative *= rng.choice([-1.0, 1.0], len(blocks))  # Quantisers write negative scales too.
        set_scales(blocks, type_name, relative)
        unit = dequantize(blocks, kind).std()
        set_scales(blocks, type_name, relative * spread / unit)
        raw = blocks.reshape(rows, -1)
    return raw, values_of(raw, type_name)


def values_of(raw, type_name):
    """f32 [rows, columns] that `raw`, u8 [rows, row_bytes], means."""
    return np.ascontiguousarray(dequantize(raw, GGMLQuantizationType[type_name]), dtype=np.float32)


def set_scales(blocks, type_name, scales):
    """Writes each block's scale, and the minimum that goes with it, as f16."""
    at, at_minimum, minimum = LAYOUTS[type_name]
    blocks[:, at : at + 2] = f16_bytes(scales)
    if at_minimum is not None:
        blocks[:, at_minimum : at_minimum + 2] = f16_bytes(scales * minimum)


def f16_bytes(values):
    """u8 [len(values), 2], little-endian."""
    return values.astype("<f2").view(np.uint8).reshape(-1, 2)
