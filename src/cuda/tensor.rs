//! GPU memory as two-dimensional tensors.

use std::ffi::c_void;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::result;

use super::CudaError;
use super::error::driver;
use super::gpu::Context;
use super::pages::Pages;

/// Element types that kernels know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// 32-bit float.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
    /// Unsigned 32-bit integer.
    U32,
    /// A byte.
    U8,
    /// 8-bit float, e4m3: the KV cache's alone.
    Fp8,
}

impl DType {
    /// Bytes of an element.
    pub const fn size(self) -> usize {
        match self {
            Self::F32 | Self::U32 => 4,
            Self::Bf16 | Self::F16 => 2,
            Self::U8 | Self::Fp8 => 1,
        }
    }

    /// As kernels' names end: `f32`, `bf16`, `f16`, `u32`, `u8`, `fp8`.
    pub const fn suffix(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::U32 => "u32",
            Self::U8 => "u8",
            Self::Fp8 => "fp8",
        }
    }
}

/// Memory of the GPU, freed when it is dropped.
pub(super) struct Memory {
    context: Arc<Context>,
    pointer: u64,
    bytes: usize,
    what: String,
    /// Where it is not one allocation: it gives itself back.
    pages: Option<Mutex<Pages>>,
}

impl Memory {
    /// `bytes` of uninitialised memory, aligned to 256 bytes at least.
    pub(super) fn allocate(context: &Arc<Context>, bytes: usize, what: &str) -> Result<Self, CudaError> {
        context.bind()?;
        let what = what.to_owned();
        if let Err(free_bytes) = context.allocations().take(&what, bytes) {
            return Err(CudaError::OutOfMemory { bytes, what, free_bytes });
        }
        // SAFETY: the context is bound to this thread; the pointer is freed once, in `drop`.
        match unsafe { result::malloc_sync(bytes.max(1)) } {
            Ok(pointer) => Ok(Self { context: context.clone(), pointer, bytes, what, pages: None }),
            Err(_) => {
                context.allocations().give_back(&what, bytes);
                let free_bytes = result::mem_get_info().map_or(0, |(free, _)| free);
                Err(CudaError::OutOfMemory { bytes, what, free_bytes })
            }
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.pages.is_some() {
            return;
        }
        if self.context.bind().is_ok() {
            // SAFETY: `malloc_sync` gave the pointer. cuMemFree waits for work that uses it.
            let _ = unsafe { result::free_sync(self.pointer) };
        }
        self.context.allocations().give_back(&self.what, self.bytes);
    }
}

/// A row-major, contiguous tensor `[rows, columns]` in GPU memory. Cloning shares the memory.
#[derive(Clone)]
pub struct DeviceTensor {
    memory: Arc<Memory>,
    offset: usize,
    rows: usize,
    columns: usize,
    dtype: DType,
}

impl DeviceTensor {
    /// An uninitialised tensor; `what` names it where there is no room.
    pub(super) fn allocate(
        context: &Arc<Context>,
        rows: usize,
        columns: usize,
        dtype: DType,
        what: &str,
    ) -> Result<Self, CudaError> {
        let memory = Memory::allocate(context, rows * columns * dtype.size(), what)?;
        Ok(Self { memory: Arc::new(memory), offset: 0, rows, columns, dtype })
    }

    /// A tensor over `pages`, some of which may have no memory: who reads or writes knows which.
    pub(super) fn over(context: &Arc<Context>, pages: Pages, rows: usize, columns: usize, dtype: DType) -> Self {
        let (pointer, bytes) = (pages.address(), rows * columns * dtype.size());
        let pages = Some(Mutex::new(pages));
        let memory = Memory { context: context.clone(), pointer, bytes, what: String::new(), pages };
        Self { memory: Arc::new(memory), offset: 0, rows, columns, dtype }
    }

    /// The pages that it lies in, where they come and go.
    pub(super) fn pages(&self) -> Option<MutexGuard<'_, Pages>> {
        self.memory.pages.as_ref().map(|pages| pages.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether parts of its memory can be given back.
    pub fn can_shrink(&self) -> bool {
        self.memory.pages.is_some()
    }

    /// Bytes of its memory that were given back.
    pub fn given_back_bytes(&self) -> usize {
        self.pages().map_or(0, |pages| pages.given_back_bytes())
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Bytes of all elements.
    pub fn bytes(&self) -> usize {
        self.rows * self.columns * self.dtype.size()
    }

    /// The address of the first element, on the GPU.
    pub fn pointer(&self) -> u64 {
        self.memory.pointer + self.offset as u64
    }

    /// Rows `from .. from + count`, over the same memory.
    ///
    /// # Panics
    /// If there are not as many.
    pub fn slice(&self, from: usize, count: usize) -> Self {
        assert!(from + count <= self.rows, "rows {from}..{} of {}", from + count, self.rows);
        let offset = self.offset + from * self.columns * self.dtype.size();
        Self { memory: self.memory.clone(), offset, rows: count, columns: self.columns, dtype: self.dtype }
    }

    /// `[rows, columns]` of `dtype` from `byte_offset` on, over the same memory.
    ///
    /// # Panics
    /// If that is more bytes than there are.
    pub fn view(&self, byte_offset: usize, rows: usize, columns: usize, dtype: DType) -> Self {
        let offset = self.offset + byte_offset;
        let tensor = Self { memory: self.memory.clone(), offset, rows, columns, dtype };
        assert!(offset + tensor.bytes() <= self.memory.bytes, "a view of more than there is");
        tensor
    }

    /// The same memory as `[rows, columns]` of `dtype`.
    ///
    /// # Panics
    /// If that is more bytes than there are.
    pub fn reshape(&self, rows: usize, columns: usize, dtype: DType) -> Self {
        let tensor = Self { memory: self.memory.clone(), offset: self.offset, rows, columns, dtype };
        assert!(self.offset + tensor.bytes() <= self.memory.bytes, "a view of more than there is");
        tensor
    }
}

impl std::fmt::Debug for DeviceTensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DeviceTensor({} [{}, {}])", self.dtype.suffix(), self.rows, self.columns)
    }
}

/// Page-locked host memory, which the GPU can copy from and to without the CPU.
pub struct PinnedMemory {
    context: Arc<Context>,
    pointer: *mut c_void,
    bytes: usize,
}

// SAFETY: the memory belongs to this value alone and is plain bytes.
unsafe impl Send for PinnedMemory {}

impl PinnedMemory {
    pub(super) fn allocate(context: &Arc<Context>, bytes: usize) -> Result<Self, CudaError> {
        context.bind()?;
        // SAFETY: the context is bound; freed once, in `drop`.
        let pointer = unsafe { result::malloc_host(bytes.max(1), 0) }.map_err(driver("page-locked memory"))?;
        // SAFETY: `bytes` were just allocated.
        unsafe { std::ptr::write_bytes(pointer.cast::<u8>(), 0, bytes) };
        Ok(Self { context: context.clone(), pointer, bytes })
    }

    /// The bytes. Who reads what the GPU writes waits for its event first.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: allocated, initialised and owned by this value.
        unsafe { std::slice::from_raw_parts(self.pointer.cast(), self.bytes) }
    }

    /// The bytes, to write. Who writes what the GPU reads waits for its event first.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.cast(), self.bytes) }
    }
}

impl Drop for PinnedMemory {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: `malloc_host` gave the pointer.
            let _ = unsafe { result::free_host(self.pointer) };
        }
    }
}
