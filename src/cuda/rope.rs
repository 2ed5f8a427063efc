//! Bias, norms of heads, rotary positions, and the way of k and v into the paged cache: one launch a layer.

use super::check::{Typed, expect_at_least, require};
use super::{Arguments, CudaError, DType, DeviceTensor, Gpu, Grid, Kernel};

/// Threads of a block.
const THREADS: usize = 256;

/// Tokens of a block of the cache.
const BLOCK_SIZE: usize = 16;

/// The kernel, looked up once.
#[derive(Clone, Copy, Debug)]
pub struct RopeKernels {
    rope_and_cache: Typed,
    /// The same into a cache of fp8: from bf16, from f16.
    into_fp8: [Kernel; 2],
}

/// Shape of an attention layer's heads and of their rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RopeShape {
    /// Query heads.
    pub q_heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Elements of a head; a multiple of 8, at most 256.
    pub head_dim: usize,
    /// Elements of a head that are rotated, from the first on; even.
    pub rotary_dim: usize,
    /// Whether `2 i` turns with `2 i + 1`, rather than `i` with `i + rotary_dim / 2`.
    pub interleaved: bool,
}

/// What a layer and the model bring: all f32 on the GPU.
#[derive(Clone, Copy)]
pub struct RopeWeights<'a> {
    /// Cosines, `[positions, rotary_dim / 2]`.
    pub cos: &'a DeviceTensor,
    /// Sines, `[positions, rotary_dim / 2]`.
    pub sin: &'a DeviceTensor,
    /// Added to the row first (Qwen2), `[1, (q_heads + 2 kv_heads) * head_dim]`.
    pub bias: Option<&'a DeviceTensor>,
    /// Norm weights of q heads and of k heads, each `[1, head_dim]` (Qwen3).
    pub norms: Option<(&'a DeviceTensor, &'a DeviceTensor)>,
    /// Added to the mean of squares.
    pub eps: f32,
}

impl RopeKernels {
    /// Looks the kernel up.
    ///
    /// # Errors
    /// [`CudaError::NoKernel`].
    pub fn load(gpu: &Gpu) -> Result<Self, CudaError> {
        let into_fp8 = |dtype: DType| gpu.kernel("rope", &format!("rope_and_cache_{}_fp8", dtype.suffix()));
        Ok(Self {
            rope_and_cache: Typed::load(gpu, "rope", "rope_and_cache")?,
            into_fp8: [into_fp8(DType::Bf16)?, into_fp8(DType::F16)?],
        })
    }

    /// For each row of `qkv [t, (q_heads + 2 kv_heads) * head_dim]` of T: adds the bias, norms the heads of q and k,
    /// rotates them, leaves q in place, and writes k and v to `keys` and `values` (both of T or of fp8, and of as many elements,
    /// `[block][kv_heads][16][head_dim]`) at the token's slot (block * 16 + place). `positions` and `slots` u32, `t`
    /// elements. A slot outside the cache, such as `u32::MAX`, writes nothing; k and v in `qkv` stay as they were.
    ///
    /// Source: Su et al., "RoFormer", 2021.
    ///
    /// # Errors
    /// If shapes or dtypes do not fit.
    #[allow(clippy::too_many_arguments)] // one pass over the row; each is a different thing
    pub fn rope_and_cache(
        &self,
        gpu: &Gpu,
        qkv: &DeviceTensor,
        shape: RopeShape,
        weights: RopeWeights<'_>,
        positions: &DeviceTensor,
        slots: &DeviceTensor,
        keys: &DeviceTensor,
        values: &DeviceTensor,
    ) -> Result<(), CudaError> {
        const OP: &str = "rope_and_cache";
        let RopeShape { q_heads, kv_heads, head_dim, rotary_dim, interleaved } = shape;
        let (tokens, heads) = (qkv.rows(), q_heads + 2 * kv_heads);
        let fits = qkv.columns() == heads * head_dim
            && kv_heads > 0
            && head_dim.is_multiple_of(8)
            && (8..=256).contains(&head_dim)
            && rotary_dim.is_multiple_of(2)
            && (2..=head_dim).contains(&rotary_dim);
        require(OP, fits, || format!("{qkv:?} is not {shape:?}"))?;
        let kernel = match (qkv.dtype(), keys.dtype()) {
            (DType::Bf16, DType::Fp8) => self.into_fp8[0],
            (DType::F16, DType::Fp8) => self.into_fp8[1],
            _ => self.rope_and_cache.of(OP, qkv.dtype())?,
        };
        let dtype_ok = keys.dtype() == qkv.dtype() || keys.dtype() == DType::Fp8;
        let cache_ok = dtype_ok && values.dtype() == keys.dtype() && keys.bytes() == values.bytes();
        require(OP, cache_ok, || format!("keys {keys:?} and values {values:?} for {qkv:?}"))?;
        expect_at_least(OP, "positions", positions, DType::U32, tokens)?;
        expect_at_least(OP, "slots", slots, DType::U32, tokens)?;
        let position_count = weights.cos.rows() * weights.cos.columns() / (rotary_dim / 2);
        require(OP, position_count > 0, || "the rotary table is empty".into())?;
        expect_at_least(OP, "cos", weights.cos, DType::F32, position_count * rotary_dim / 2)?;
        expect_at_least(OP, "sin", weights.sin, DType::F32, position_count * rotary_dim / 2)?;
        if let Some(bias) = weights.bias {
            expect_at_least(OP, "bias", bias, DType::F32, heads * head_dim)?;
        }
        for norm in weights.norms.iter().flat_map(|(q, k)| [q, k]) {
            expect_at_least(OP, "a norm's weight", norm, DType::F32, head_dim)?;
        }
        let slot_count = keys.rows() * keys.columns() / (kv_heads * BLOCK_SIZE * head_dim) * BLOCK_SIZE;
        let lanes = (head_dim / 8).next_power_of_two().max(8);
        let arguments = Arguments::new().tensor(qkv).tensor(keys).tensor(values).optional(weights.bias);
        let arguments = arguments
            .optional(weights.norms.map(|(q, _)| q))
            .optional(weights.norms.map(|(_, k)| k))
            .tensor(weights.cos)
            .tensor(weights.sin)
            .tensor(positions)
            .tensor(slots)
            .size(q_heads)
            .size(kv_heads)
            .size(head_dim)
            .size(rotary_dim)
            .size(usize::from(interleaved))
            .size(lanes)
            .size(position_count)
            .size(slot_count)
            .f32(weights.eps);
        let mut grid = Grid::linear(tokens, THREADS as u32);
        grid.blocks[1] = heads.div_ceil(THREADS / lanes) as u32;
        // SAFETY: shapes were checked; the kernel bounds positions and slots.
        unsafe { gpu.launch(kernel, grid, arguments) }
    }
}
