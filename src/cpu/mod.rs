//! CPU kernels behind run-time detection, and the thread pool they share.
//!
//! Works on plain slices: knows no Candle tensors and no models. Every output element is computed in one order that
//! does not depend on the number of rows, the chunk or the threads, so that alone = batched = chunked holds bitwise;
//! between SIMD levels bits may differ.

// Register arrays are indexed by constants: an iterator over them can cost the registers.
#![allow(clippy::needless_range_loop)]

mod attention;
mod decode;
mod elementwise;
mod error;
mod exp;
mod experts;
mod format;
mod kv;
mod kv_element;
mod latent;
mod matmul;
mod matrix;
mod memory;
mod peak;
mod pool;
mod rope;
mod simd;
#[cfg(test)]
mod tests;

pub use attention::AttentionRef;
pub use error::CpuError;
pub use experts::{ExpertBuffers, ExpertRef, RouteGroups, RouteParams, Scoring};
pub use format::Format;
pub use kv::{HeadShape, KvLayerMut, KvLayerRef, KvLayout, KvPlanes};
pub use latent::LatentShape;
pub use matmul::Strided;
pub use matrix::MatrixRef;
pub use memory::give_back_freed;
pub use rope::{QkNorms, RopeLayout, RopeTable};
pub use simd::SimdLevel;

use pool::Pool;
use std::marker::PhantomData;
use std::num::NonZeroUsize;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The machine's threads and instructions, and the kernels as its methods.
pub struct Cpu {
    pool: Pool,
    simd: SimdLevel,
    /// One for each thread of the pool.
    scratch: Vec<Mutex<Scratch>>,
}

impl Cpu {
    /// Kernels over `threads` threads (the machine's cores, where `None`), with the best instructions it has.
    pub fn new(threads: Option<NonZeroUsize>) -> Self {
        Self::build(threads, SimdLevel::detect())
    }

    /// The same with chosen instructions; `None` where this machine lacks them.
    #[allow(dead_code)] // tests and benches choose; the library takes the best
    pub fn with_simd(threads: Option<NonZeroUsize>, simd: SimdLevel) -> Option<Self> {
        simd.is_available().then(|| Self::build(threads, simd))
    }

    fn build(threads: Option<NonZeroUsize>, simd: SimdLevel) -> Self {
        let threads = threads.or_else(|| std::thread::available_parallelism().ok()).unwrap_or(NonZeroUsize::MIN);
        let pool = Pool::new(threads);
        let scratch = (0..pool.threads()).map(|_| Mutex::default()).collect();
        Self { pool, simd, scratch }
    }

    /// Threads that compute, the caller counted.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// Instructions in use.
    pub fn simd(&self) -> SimdLevel {
        self.simd
    }

    /// Scratch memory of one thread of the pool.
    fn scratch(&self, thread: usize) -> MutexGuard<'_, Scratch> {
        self.scratch[thread].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Memory that a thread keeps between tasks.
#[derive(Default)]
struct Scratch(Vec<f32>);

impl Scratch {
    /// `len` floats of any value, the same memory each time.
    fn floats(&mut self, len: usize) -> &mut [f32] {
        if self.0.len() < len {
            self.0.resize(len, 0.0);
        }
        &mut self.0[..len]
    }
}

/// A slice of which each task writes its own elements.
#[derive(Clone, Copy)]
struct SharedMut<'a, T = f32> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: only the unsafe methods reach the memory, and their callers promise that no element is shared.
unsafe impl<T: Send> Send for SharedMut<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SharedMut<'_, T> {}

impl<'a, T> SharedMut<'a, T> {
    fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    fn as_ptr(&self) -> *mut T {
        self.start
    }

    /// Writes one element.
    ///
    /// # Safety
    /// No other task may touch it meanwhile.
    unsafe fn write(self, index: usize, value: T) {
        assert!(index < self.len);
        // SAFETY: in bounds, and the caller's alone.
        unsafe { *self.start.add(index) = value };
    }

    /// Elements `from..from + len`.
    ///
    /// # Safety
    /// No other task may touch them while the slice lives.
    unsafe fn slice(self, from: usize, len: usize) -> &'a mut [T] {
        assert!(from <= self.len && len <= self.len - from);
        // SAFETY: in bounds, and the caller's alone.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(from), len) }
    }
}
