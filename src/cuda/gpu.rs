//! One GPU, opened: its context, its stream, its kernels.

use std::sync::Arc;

use cudarc::driver::{CudaContext, result, sys};

use super::allocations::Allocations;
use super::error::driver;
use super::kernel::Modules;
use super::{CudaError, DType, DeviceTensor, PinnedMemory};

/// A context and the thread's binding to it.
pub(super) struct Context {
    context: Arc<CudaContext>,
    allocations: Allocations,
}

impl Context {
    /// The primary context of GPU `ordinal`, made this thread's current one; let go of when it is dropped.
    pub(super) fn open(ordinal: usize) -> Result<Self, CudaError> {
        let context = CudaContext::new(ordinal).map_err(driver("opening the GPU"))?;
        let context = Self { context, allocations: Allocations::default() };
        context.bind()?;
        Ok(context)
    }

    /// What kernels want to know of the card.
    pub(super) fn limits(&self) -> Result<GpuLimits, CudaError> {
        use sys::CUdevice_attribute as A;
        let attribute = |attribute| self.context.attribute(attribute).map_err(driver("reading the GPU's limits"));
        Ok(GpuLimits {
            compute_capability: (10 * attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?
                + attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?) as u32,
            multiprocessors: attribute(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as usize,
            shared_bytes_per_block: attribute(A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)? as usize,
        })
    }

    /// The driver's number of the GPU.
    pub(super) fn device(&self) -> sys::CUdevice {
        self.context.cu_device()
    }

    /// Whether memory can be put behind addresses and taken away.
    pub(super) fn has_virtual_memory(&self) -> Result<bool, CudaError> {
        let attribute = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_VIRTUAL_ADDRESS_MANAGEMENT_SUPPORTED;
        Ok(self.context.attribute(attribute).map_err(driver("reading the GPU's limits"))? != 0)
    }

    /// What is allocated in it.
    pub(super) fn allocations(&self) -> &Allocations {
        &self.allocations
    }

    /// Leaves this thread without a current context.
    pub(super) fn unbind(&self) {
        // SAFETY: no context is always a valid one to be current.
        let _ = unsafe { result::ctx::set_current(std::ptr::null_mut()) };
    }

    /// Makes the context this thread's current one.
    pub(super) fn bind(&self) -> Result<(), CudaError> {
        self.context.bind_to_thread().map_err(driver("binding the GPU"))
    }
}

/// The kernels of a GPU, which leave it when nothing can launch them any more: neither a [`Gpu`] nor a recorded step.
pub(super) struct LoadedModules {
    context: Arc<Context>,
    modules: Modules,
}

impl Drop for LoadedModules {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            std::mem::take(&mut self.modules).unload();
        }
    }
}

/// What kernels want to know of a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpuLimits {
    /// Compute capability as 10 x major + minor: 90 is 9.0.
    pub compute_capability: u32,
    /// Streaming multiprocessors.
    pub multiprocessors: usize,
    /// Shared memory that a block may have, in bytes.
    pub shared_bytes_per_block: usize,
}

/// A GPU that is ready to compute. Everything it is asked for runs in order on its one stream.
pub struct Gpu {
    context: Arc<Context>,
    stream: sys::CUstream,
    modules: Arc<LoadedModules>,
    limits: GpuLimits,
}

// SAFETY: stream handles are plain addresses; the driver guards them itself.
unsafe impl Send for Gpu {}
// SAFETY: as above.
unsafe impl Sync for Gpu {}

impl Gpu {
    /// Opens GPU `ordinal` and loads all kernels for it. The ladder has found that it can.
    ///
    /// # Errors
    /// What the driver says.
    pub fn open(ordinal: usize) -> Result<Arc<Self>, CudaError> {
        let context = Arc::new(Context::open(ordinal)?);
        let limits = context.limits()?;
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking).map_err(driver("a stream"))?;
        let modules = Modules::load(limits.compute_capability).map_err(driver("loading the kernels"))?;
        let modules = Arc::new(LoadedModules { context: context.clone(), modules });
        Ok(Arc::new(Self { context, stream, modules, limits }))
    }

    /// Makes this GPU the calling thread's. Every thread that calls kernels does so once.
    ///
    /// # Errors
    /// What the driver says.
    pub fn bind(&self) -> Result<(), CudaError> {
        self.context.bind()
    }

    /// What the card can do.
    pub fn limits(&self) -> GpuLimits {
        self.limits
    }

    /// Free and total memory, in bytes.
    ///
    /// # Errors
    /// What the driver says.
    pub fn memory(&self) -> Result<(usize, usize), CudaError> {
        self.bind()?;
        result::mem_get_info().map_err(driver("reading the free memory"))
    }

    /// Refuses allocations beyond `bytes` in all from now on.
    pub fn limit_memory(&self, bytes: u64) {
        self.context.allocations.limit(bytes);
    }

    /// Bytes that are allocated here, in whole pages: in all, and for what.
    pub fn allocated(&self) -> (u64, Vec<(String, u64)>) {
        self.context.allocations.read()
    }

    pub(super) fn stream(&self) -> sys::CUstream {
        self.stream
    }

    pub(super) fn context(&self) -> &Arc<Context> {
        &self.context
    }

    pub(super) fn modules(&self) -> &Modules {
        &self.modules.modules
    }

    /// What keeps the kernels on the GPU.
    pub(super) fn loaded_modules(&self) -> Arc<LoadedModules> {
        self.modules.clone()
    }

    /// An uninitialised tensor `[rows, columns]`; `what` names it where there is no room.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`].
    pub fn empty(&self, rows: usize, columns: usize, dtype: DType, what: &str) -> Result<DeviceTensor, CudaError> {
        DeviceTensor::allocate(&self.context, rows, columns, dtype, what)
    }

    /// A tensor of zeros.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`].
    pub fn zeros(&self, rows: usize, columns: usize, dtype: DType, what: &str) -> Result<DeviceTensor, CudaError> {
        let tensor = self.empty(rows, columns, dtype, what)?;
        self.fill_zero(&tensor)?;
        Ok(tensor)
    }

    /// Sets every byte of `tensor` to zero, in stream order.
    ///
    /// # Errors
    /// What the driver says.
    pub fn fill_zero(&self, tensor: &DeviceTensor) -> Result<(), CudaError> {
        self.bind()?;
        // SAFETY: the tensor's bytes are its own.
        unsafe { result::memset_d8_async(tensor.pointer(), 0, tensor.bytes(), self.stream) }
            .map_err(driver("clearing memory"))
    }

    /// Page-locked memory of the host, zeroed.
    ///
    /// # Errors
    /// What the driver says.
    pub fn pinned(&self, bytes: usize) -> Result<PinnedMemory, CudaError> {
        PinnedMemory::allocate(&self.context, bytes)
    }

    /// Queues a copy of `bytes` bytes from `source` at `offset` to the start of `target`. `source` must not change until
    /// the stream has passed it.
    ///
    /// # Errors
    /// If either has fewer; what the driver says.
    pub fn queue_upload(
        &self,
        target: &DeviceTensor,
        source: &PinnedMemory,
        offset: usize,
        bytes: usize,
    ) -> Result<(), CudaError> {
        if bytes == 0 {
            return Ok(());
        }
        let from = source.as_slice().get(offset..offset + bytes).filter(|_| bytes <= target.bytes());
        let Some(from) = from else {
            return Err(CudaError::argument("queue_upload", format!("{bytes} bytes into {target:?}")));
        };
        // SAFETY: checked above; page-locked memory lives until its owner, who waits for the stream, drops it.
        unsafe { result::memcpy_htod_async(target.pointer(), from, self.stream) }.map_err(driver("copying to the GPU"))
    }

    /// Queues a copy of the first `bytes` bytes of `source` to `target` at `offset`, which may be read once the stream has
    /// passed it.
    ///
    /// # Errors
    /// If either has fewer; what the driver says.
    pub fn queue_download(
        &self,
        target: &mut PinnedMemory,
        offset: usize,
        source: &DeviceTensor,
        bytes: usize,
    ) -> Result<(), CudaError> {
        if bytes == 0 {
            return Ok(());
        }
        let into = target.as_mut_slice().get_mut(offset..offset + bytes).filter(|_| bytes <= source.bytes());
        let Some(into) = into else {
            return Err(CudaError::argument("queue_download", format!("{bytes} bytes of {source:?}")));
        };
        // SAFETY: checked above; page-locked memory lives until its owner, who waits for the stream, drops it.
        unsafe { result::memcpy_dtoh_async(into, source.pointer(), self.stream) }
            .map_err(driver("copying from the GPU"))
    }

    /// Queues a copy of `bytes` to the start of `target`. Waits for no kernel: the driver takes its own copy of ordinary
    /// memory before it returns.
    ///
    /// # Errors
    /// If they are more than it holds; what the driver says.
    pub fn queue_upload_of(&self, target: &DeviceTensor, bytes: &[u8]) -> Result<(), CudaError> {
        if bytes.len() > target.bytes() {
            return Err(CudaError::argument("queue_upload_of", format!("{} bytes into {target:?}", bytes.len())));
        }
        // SAFETY: checked above; `bytes` is pageable memory, which the call has read when it returns (CUDA's "API
        // synchronization behavior", transfers from pageable host memory).
        unsafe { result::memcpy_htod_async(target.pointer(), bytes, self.stream) }.map_err(driver("copying to the GPU"))
    }

    /// Copies `bytes` to the start of `target` and waits. For start and tests.
    ///
    /// # Errors
    /// If they are more than it holds; what the driver says.
    pub fn upload(&self, target: &DeviceTensor, bytes: &[u8]) -> Result<(), CudaError> {
        if bytes.len() > target.bytes() {
            return Err(CudaError::argument("upload", format!("{} bytes into {target:?}", bytes.len())));
        }
        self.bind()?;
        // SAFETY: checked above; waits before the borrow ends.
        unsafe { result::memcpy_htod_async(target.pointer(), bytes, self.stream) }
            .map_err(driver("copying to the GPU"))?;
        self.synchronize()
    }

    /// Copies `tensor` to the host and waits. For tests.
    ///
    /// # Errors
    /// What the driver says.
    #[cfg(test)]
    pub fn download(&self, tensor: &DeviceTensor) -> Result<Vec<u8>, CudaError> {
        self.bind()?;
        let mut bytes = vec![0_u8; tensor.bytes()];
        // SAFETY: as many bytes on both sides; waits before the borrow ends.
        unsafe { result::memcpy_dtoh_async(&mut bytes, tensor.pointer(), self.stream) }
            .map_err(driver("copying from the GPU"))?;
        self.synchronize()?;
        Ok(bytes)
    }

    /// Waits until everything queued has run.
    ///
    /// # Errors
    /// What the driver says, also of a kernel that failed.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        // SAFETY: the stream lives as long as this value.
        unsafe { result::stream::synchronize(self.stream) }.map_err(driver("waiting for the GPU"))
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // What was queued ends before its kernels may go.
            let _ = self.synchronize();
            // SAFETY: created in `open`, destroyed once.
            let _ = unsafe { result::stream::destroy(self.stream) };
        }
    }
}
