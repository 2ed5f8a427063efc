//! How a weight matrix lies in memory: dense floats, the block formats that GGUF files hold, or groups with a scale each,
//! which the quantised checkpoints of other programs are brought into without loss.
//!
//! Knows sizes and names only; `decode` knows what the bytes mean.

use std::fmt;

/// Element format of a weight matrix. Block formats cut each row into blocks of [`Format::block_len`] weights.
///
/// All little-endian. Source of the `Q` formats: ggml's block structures (`ggml-common.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Format {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a single.
    Bf16,
    /// 32 weights: scale f16, 16 bytes of nibbles; weight = scale * (nibble - 8).
    Q4_0,
    /// 32 weights: scale f16, offset f16, 16 bytes of nibbles; weight = scale * nibble + offset.
    Q4_1,
    /// 32 weights: scale f16, 32 fifth bits, 16 bytes of nibbles; weight = scale * (quant - 16).
    Q5_0,
    /// 32 weights: scale f16, offset f16, 32 fifth bits, 16 bytes of nibbles; weight = scale * quant + offset.
    Q5_1,
    /// 32 weights: scale f16, 32 signed bytes; weight = scale * quant.
    Q8_0,
    /// 256 weights of 2 bits: 16 pairs of 4-bit scale and offset, 64 bytes of quants, two f16 that scale them.
    Q2K,
    /// 256 weights of 3 bits: 32 bytes of third bits, 64 bytes of quants, 16 scales of 6 bits, one f16.
    Q3K,
    /// 256 weights of 4 bits: two f16, 8 pairs of 6-bit scale and offset, 128 bytes of nibbles.
    Q4K,
    /// 256 weights of 5 bits: two f16, 8 pairs of 6-bit scale and offset, 32 bytes of fifth bits, 128 of nibbles.
    Q5K,
    /// 256 weights of 6 bits: 128 bytes of low nibbles, 64 bytes of upper bits, 16 scales of 8 bits, one f16.
    Q6K,
    /// 32 weights: scale f16, zero f16 (a whole number), 16 bytes of nibbles, 32 weights in 16 bytes as in
    /// [`Format::Q4_1`]; weight = scale * (nibble - zero).
    Int4x32,
    /// 64 weights: scale f16, zero f16 (a whole number), 32 bytes of nibbles, 32 weights in 16 bytes as in
    /// [`Format::Q4_1`]; weight = scale * (nibble - zero).
    Int4x64,
    /// 128 weights: scale f16, zero f16 (a whole number), 64 bytes of nibbles, 32 weights in 16 bytes as in
    /// [`Format::Q4_1`]; weight = scale * (nibble - zero).
    Int4x128,
    /// 32 weights: scale f16, zero f16 (a whole number), 32 bytes; weight = scale * (byte - zero).
    Int8x32,
    /// 64 weights: scale f16, zero f16 (a whole number), 64 bytes; weight = scale * (byte - zero).
    Int8x64,
    /// 128 weights: scale f16, zero f16 (a whole number), 128 bytes; weight = scale * (byte - zero).
    Int8x128,
    /// 32 weights: scale f32, 32 bytes of e4m3fn floats (never NaN); weight = scale * float.
    Fp8x32,
    /// 64 weights: scale f32, 64 bytes of e4m3fn floats (never NaN); weight = scale * float.
    Fp8x64,
    /// 128 weights: scale f32, 128 bytes of e4m3fn floats (never NaN); weight = scale * float.
    Fp8x128,
}

impl Format {
    /// Every format.
    pub const ALL: [Self; 22] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2K,
        Self::Q3K,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
        Self::Int4x32,
        Self::Int4x64,
        Self::Int4x128,
        Self::Int8x32,
        Self::Int8x64,
        Self::Int8x128,
        Self::Fp8x32,
        Self::Fp8x64,
        Self::Fp8x128,
    ];

    /// Name, weights in a block, bytes of a block: the one table of sizes.
    const fn row(self) -> (&'static str, usize, usize) {
        match self {
            Self::F32 => ("F32", 1, 4),
            Self::F16 => ("F16", 1, 2),
            Self::Bf16 => ("BF16", 1, 2),
            Self::Q4_0 => ("Q4_0", 32, 18),
            Self::Q4_1 => ("Q4_1", 32, 20),
            Self::Q5_0 => ("Q5_0", 32, 22),
            Self::Q5_1 => ("Q5_1", 32, 24),
            Self::Q8_0 => ("Q8_0", 32, 34),
            Self::Q2K => ("Q2_K", 256, 84),
            Self::Q3K => ("Q3_K", 256, 110),
            Self::Q4K => ("Q4_K", 256, 144),
            Self::Q5K => ("Q5_K", 256, 176),
            Self::Q6K => ("Q6_K", 256, 210),
            Self::Int4x32 => ("INT4x32", 32, 20),
            Self::Int4x64 => ("INT4x64", 64, 36),
            Self::Int4x128 => ("INT4x128", 128, 68),
            Self::Int8x32 => ("INT8x32", 32, 36),
            Self::Int8x64 => ("INT8x64", 64, 68),
            Self::Int8x128 => ("INT8x128", 128, 132),
            Self::Fp8x32 => ("FP8x32", 32, 36),
            Self::Fp8x64 => ("FP8x64", 64, 68),
            Self::Fp8x128 => ("FP8x128", 128, 132),
        }
    }

    /// Whether its weights are floats of 8 bits.
    pub const fn is_fp8(self) -> bool {
        matches!(self, Self::Fp8x32 | Self::Fp8x64 | Self::Fp8x128)
    }

    /// Its name, where ggml has it ggml's, such as `Q4_1`.
    pub const fn name(self) -> &'static str {
        self.row().0
    }

    /// Weights in one block; 1 for dense formats.
    pub const fn block_len(self) -> usize {
        self.row().1
    }

    /// Bytes of one block.
    pub const fn block_bytes(self) -> usize {
        self.row().2
    }

    /// Bytes of one row; `None` if `columns` is no multiple of [`Format::block_len`] or the size overflows.
    pub fn row_bytes(self, columns: usize) -> Option<usize> {
        let (_, len, bytes) = self.row();
        if columns.is_multiple_of(len) { (columns / len).checked_mul(bytes) } else { None }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
