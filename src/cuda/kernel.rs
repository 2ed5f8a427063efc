//! Our kernels: modules from the embedded fatbins, functions by name, arguments, launches.

use std::collections::HashMap;
use std::ffi::{CString, c_void};

use cudarc::driver::{result, sys};

use super::error::driver;
use super::{CudaError, DeviceTensor, Gpu};

include!(concat!(env!("OUT_DIR"), "/fatbins.rs"));

/// Shared memory of a block that needs no opting in, in bytes.
const DEFAULT_SHARED_BYTES: usize = 48 * 1024;

/// All functions of all embedded modules that were asked for, by name. Lives as long as the context.
pub(super) struct Modules {
    modules: HashMap<&'static str, sys::CUmodule>,
}

// SAFETY: module handles are plain addresses that the driver guards itself.
unsafe impl Send for Modules {}
// SAFETY: as above.
unsafe impl Sync for Modules {}

impl Modules {
    /// Loads every embedded module; the context must be bound.
    pub(super) fn load() -> Result<Self, CudaError> {
        let mut modules = HashMap::new();
        for (name, image) in FATBINS {
            // SAFETY: the image is a whole fatbin, as nvcc wrote it.
            let module = unsafe { result::module::load_data(image.as_ptr().cast()) };
            modules.insert(*name, module.map_err(driver("loading the kernels"))?);
        }
        Ok(Self { modules })
    }
}

/// A kernel: a function of one of our modules. Cheap to copy; valid as long as its `Gpu`.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    function: sys::CUfunction,
}

// SAFETY: a function handle is a plain address that the driver guards itself.
unsafe impl Send for Kernel {}
// SAFETY: as above.
unsafe impl Sync for Kernel {}

/// The most arguments that a kernel of ours takes.
const MAX_ARGUMENTS: usize = 32;

/// The arguments of a launch, in the order of the kernel's parameters, each at most eight bytes.
#[derive(Clone, Copy, Debug)]
pub struct Arguments {
    values: [u64; MAX_ARGUMENTS],
    count: usize,
}

impl Arguments {
    /// None yet.
    pub fn new() -> Self {
        Self { values: [0; MAX_ARGUMENTS], count: 0 }
    }

    fn push(mut self, value: u64) -> Self {
        self.values[self.count] = value;
        self.count += 1;
        self
    }

    /// A pointer to a tensor's first element.
    pub fn tensor(self, tensor: &DeviceTensor) -> Self {
        self.push(tensor.pointer())
    }

    /// A pointer to a tensor's first element, null where there is none.
    pub fn optional(self, tensor: Option<&DeviceTensor>) -> Self {
        self.push(tensor.map_or(0, DeviceTensor::pointer))
    }

    /// An `int` of the kernel.
    ///
    /// # Panics
    /// If it does not fit 31 bits: no size of ours does that.
    pub fn size(self, value: usize) -> Self {
        let value = i32::try_from(value).expect("sizes fit an int");
        self.push(value as u64)
    }

    /// An `unsigned` of the kernel.
    pub fn u32(self, value: u32) -> Self {
        self.push(u64::from(value))
    }

    /// An `unsigned long long` of the kernel.
    pub fn u64(self, value: u64) -> Self {
        self.push(value)
    }

    /// A `float` of the kernel.
    pub fn f32(self, value: f32) -> Self {
        self.push(u64::from(value.to_bits()))
    }
}

/// How many blocks of how many threads, and their dynamic shared memory.
#[derive(Clone, Copy, Debug)]
pub struct Grid {
    /// Blocks.
    pub blocks: [u32; 3],
    /// Threads of a block.
    pub threads: [u32; 3],
    /// Dynamic shared memory of a block, in bytes.
    pub shared_bytes: u32,
}

impl Grid {
    /// `blocks` of `threads`, without dynamic shared memory.
    pub fn linear(blocks: usize, threads: u32) -> Self {
        let blocks = u32::try_from(blocks).expect("a grid fits 32 bits");
        Self { blocks: [blocks, 1, 1], threads: [threads, 1, 1], shared_bytes: 0 }
    }
}

impl Gpu {
    /// The kernel `name` of the module `module`: the `.cu` file without its ending.
    ///
    /// # Errors
    /// [`CudaError::NoKernel`].
    pub fn kernel(&self, module: &str, name: &str) -> Result<Kernel, CudaError> {
        self.bind()?;
        let missing = || CudaError::NoKernel(format!("{module}/{name}"));
        let module = self.modules().modules.get(module).ok_or_else(missing)?;
        let symbol = CString::new(name).map_err(|_| missing())?;
        // SAFETY: the module lives as long as the context.
        let function = unsafe { result::module::get_function(*module, symbol) }.map_err(|_| missing())?;
        Ok(Kernel { function })
    }

    /// Lets blocks of `kernel` have `bytes` of dynamic shared memory. To be called once, before its first launch.
    ///
    /// # Errors
    /// If the card has less.
    pub fn allow_shared_memory(&self, kernel: Kernel, bytes: usize) -> Result<(), CudaError> {
        if bytes <= DEFAULT_SHARED_BYTES {
            return Ok(());
        }
        let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the function lives as long as the context.
        unsafe { result::function::set_function_attribute(kernel.function, attribute, bytes as i32) }
            .map_err(driver("shared memory of a kernel"))
    }

    /// Blocks of `threads` and `shared_bytes` that fit one multiprocessor at once, at least 1.
    ///
    /// # Errors
    /// If the driver refuses to say.
    pub fn blocks_per_multiprocessor(
        &self,
        kernel: Kernel,
        threads: u32,
        shared_bytes: usize,
    ) -> Result<usize, CudaError> {
        // SAFETY: the function lives as long as the context.
        let blocks = unsafe {
            result::occupancy::max_active_block_per_multiprocessor(kernel.function, threads as i32, shared_bytes)
        };
        blocks.map(|blocks| (blocks as usize).max(1)).map_err(driver("occupancy"))
    }

    /// Queues a kernel on the GPU's stream.
    ///
    /// # Errors
    /// What the driver says, also of earlier work.
    ///
    /// # Safety
    /// The arguments are those of the kernel, and what they point at is as large as it will touch and lives until the
    /// stream has passed it. Wrappers in this folder check that.
    pub(super) unsafe fn launch(&self, kernel: Kernel, grid: Grid, arguments: Arguments) -> Result<(), CudaError> {
        if grid.blocks.contains(&0) {
            return Ok(());
        }
        let Arguments { mut values, count } = arguments;
        let mut pointers = [std::ptr::null_mut::<c_void>(); MAX_ARGUMENTS];
        for (pointer, value) in pointers.iter_mut().zip(&mut values) {
            *pointer = std::ptr::from_mut(value).cast();
        }
        let [x, y, z] = grid.blocks;
        let [tx, ty, tz] = grid.threads;
        // SAFETY: `pointers` holds one address for each parameter; the rest is the caller's promise.
        unsafe {
            result::launch_kernel(
                kernel.function,
                (x, y, z),
                (tx, ty, tz),
                grid.shared_bytes,
                self.stream(),
                &mut pointers[..count],
            )
        }
        .map_err(driver("a kernel"))
    }
}
