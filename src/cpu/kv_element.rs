//! What the cache's elements are stored as: how a token's head is written, and how vectors of elements are read.
//!
//! A token's head is converted by itself, from its own numbers alone, so that what is read does not depend on neighbours.

use half::{bf16, f16};

use super::kv::KvLayout;
use super::simd::Lanes;
use crate::config::KvDType;

/// How attention reads elements of one type. Reading is as unsafe as [`Lanes`] is.
pub trait KvElement: 'static {
    /// Bytes of an element.
    const BYTES: usize;
    /// Whether what is read counts as often as the slot's scale says.
    const SCALED: bool = false;

    /// [`Lanes::N`] elements.
    ///
    /// # Safety
    /// The machine has the instructions of `L`, and as many elements are there.
    unsafe fn load<L: Lanes>(p: *const u8) -> L::V;

    /// One element.
    ///
    /// # Safety
    /// It is there, and the machine has the instructions of `L`.
    unsafe fn one<L: Lanes>(p: *const u8) -> f32;
}

/// f32.
pub struct F32;
/// bfloat16.
pub struct Bf16;
/// IEEE half precision.
pub struct F16;
/// Signed bytes with a scale a slot.
pub struct Int8;

impl KvElement for F32 {
    const BYTES: usize = 4;

    #[inline(always)]
    unsafe fn load<L: Lanes>(p: *const u8) -> L::V {
        // SAFETY: the caller's promise; no alignment is needed.
        unsafe { L::load(p.cast()) }
    }

    #[inline(always)]
    unsafe fn one<L: Lanes>(p: *const u8) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { p.cast::<f32>().read_unaligned() }
    }
}

impl KvElement for Bf16 {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn load<L: Lanes>(p: *const u8) -> L::V {
        // SAFETY: the caller's promise.
        unsafe { L::load_bf16(p) }
    }

    #[inline(always)]
    unsafe fn one<L: Lanes>(p: *const u8) -> f32 {
        // SAFETY: the caller's promise.
        bf16::from_le_bytes(unsafe { p.cast::<[u8; 2]>().read() }).to_f32()
    }
}

impl KvElement for F16 {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn load<L: Lanes>(p: *const u8) -> L::V {
        // SAFETY: the caller's promise.
        unsafe { L::load_f16(p) }
    }

    #[inline(always)]
    unsafe fn one<L: Lanes>(p: *const u8) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { L::f16(p) }
    }
}

impl KvElement for Int8 {
    const BYTES: usize = 1;
    const SCALED: bool = true;

    #[inline(always)]
    unsafe fn load<L: Lanes>(p: *const u8) -> L::V {
        // SAFETY: the caller's promise.
        unsafe { L::to_f32(L::load_i8(p)) }
    }

    #[inline(always)]
    unsafe fn one<L: Lanes>(p: *const u8) -> f32 {
        // SAFETY: the caller's promise.
        f32::from(unsafe { p.cast::<i8>().read() })
    }
}

/// What runs over a cache whose elements are of one type.
pub trait KvKernel {
    /// Runs it.
    ///
    /// # Safety
    /// The machine has the instructions of `L`.
    unsafe fn run<L: Lanes, E: KvElement>(self);
}

/// Runs `kernel` over a cache of `dtype`.
///
/// # Safety
/// The machine has the instructions of `L`.
///
/// # Panics
/// If the type is none that the CPU stores.
#[inline(always)]
pub unsafe fn dispatch<L: Lanes, K: KvKernel>(dtype: KvDType, kernel: K) {
    // SAFETY: the caller's promise.
    unsafe {
        match dtype {
            KvDType::F32 => kernel.run::<L, F32>(),
            KvDType::Bf16 => kernel.run::<L, Bf16>(),
            KvDType::F16 => kernel.run::<L, F16>(),
            KvDType::Int8 => kernel.run::<L, Int8>(),
            KvDType::Fp8 => unreachable!("the CPU stores no fp8"),
        }
    }
}

/// Writes one head of one token, `from`, to slot `slot` of `to`, that head of a block: element `i` at place
/// `first + i * stride`, counted in elements, and its scale where the type has one.
///
/// # Panics
/// If `to` is not a head of a block in this layout, or the type is none that the CPU stores.
pub fn write_head(layout: &KvLayout, to: &mut [u8], slot: usize, first: usize, stride: usize, from: &[f32]) {
    assert_eq!((to.len(), from.len()), (layout.head_bytes(), layout.head_dim), "one head of a block");
    match layout.dtype {
        KvDType::F32 => write(to, first, stride, from, f32::to_le_bytes),
        KvDType::Bf16 => write(to, first, stride, from, |value| bf16::from_f32(value).to_le_bytes()),
        KvDType::F16 => write(to, first, stride, from, |value| f16::from_f32(value).to_le_bytes()),
        KvDType::Int8 => {
            // The largest becomes 127, as in GGUF's Q8_0.
            let scale = from.iter().fold(0.0_f32, |most, value| most.max(value.abs())) / 127.0;
            let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
            write(to, first, stride, from, |value| ((value * inverse).round_ties_even() as i8).to_le_bytes());
            let place = layout.element_bytes() + slot * layout.dtype.scale_bytes();
            to[place..place + 4].copy_from_slice(&scale.to_le_bytes());
        }
        KvDType::Fp8 => unreachable!("the CPU stores no fp8"),
    }
}

fn write<const N: usize>(to: &mut [u8], first: usize, stride: usize, from: &[f32], encode: impl Fn(f32) -> [u8; N]) {
    for (to, value) in to[first * N..].chunks_mut(stride * N).zip(from) {
        to[..N].copy_from_slice(&encode(*value));
    }
}
