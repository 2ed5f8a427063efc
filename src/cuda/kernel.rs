//! Our kernels: modules from the embedded fatbins, functions by name, arguments, launches.

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::time::Instant;

use cudarc::driver::{DriverError, result, sys};

use super::error::driver;
use super::maps::TensorMap;
use super::{CudaError, DeviceTensor, Gpu};

include!(concat!(env!("OUT_DIR"), "/fatbins.rs"));

/// Shared memory of a block that needs no opting in, in bytes.
const DEFAULT_SHARED_BYTES: usize = 48 * 1024;

/// Shared memory that a block may have on every card that we run on: on compute capability 8.6, 8.9 and 12.0.
/// Source: CUDA C++ Programming Guide, technical specifications per compute capability.
const PORTABLE_SHARED_BYTES: usize = 99 * 1024;

/// All embedded modules that are for a card, by name. They stay on it until they are unloaded or the context ends.
#[derive(Default)]
pub(super) struct Modules {
    modules: HashMap<&'static str, sys::CUmodule>,
}

// SAFETY: module handles are plain addresses that the driver guards itself.
unsafe impl Send for Modules {}
// SAFETY: as above.
unsafe impl Sync for Modules {}

impl Modules {
    /// Loads every embedded module that is for this compute capability (90 is 9.0); the context must be bound. Where this
    /// build has no machine code for it the driver makes some of the PTX, and keeps it for the next time where it can.
    pub(super) fn load(compute_capability: u32) -> Result<Self, DriverError> {
        let (compiles, started) = (!has_machine_code(MACHINE_CODE, compute_capability), Instant::now());
        if compiles {
            tracing::info!(
                compute_capability,
                "the driver compiles the kernels for this card, which takes a while once"
            );
        }
        let mut modules = HashMap::new();
        for (name, image) in FATBINS {
            if is_for_hopper(name) && compute_capability != 90 {
                continue;
            }
            // SAFETY: the image is a whole fatbin, as nvcc wrote it.
            modules.insert(*name, unsafe { result::module::load_data(image.as_ptr().cast()) }?);
        }
        if compiles {
            tracing::info!(modules = modules.len(), seconds = started.elapsed().as_secs_f32(), "compiled the kernels");
        }
        Ok(Self { modules })
    }

    /// The function `name` of a module, which must be loaded.
    pub(super) fn function(&self, module: &str, name: &str) -> Option<sys::CUfunction> {
        let symbol = CString::new(name).ok()?;
        // SAFETY: the module was loaded, and is there as long as this value.
        unsafe { result::module::get_function(*self.modules.get(module)?, symbol) }.ok()
    }

    /// Unloads them all; the context must be bound, and nothing of them run, be recorded, or be launched again.
    pub(super) fn unload(self) {
        for module in self.modules.into_values() {
            // SAFETY: loaded in `load`, unloaded once.
            let _ = unsafe { result::module::unload(module) };
        }
    }
}

/// Whether code for one of `archs` (`86`; `90a` runs on 9.0 alone) runs on a compute capability as it is: that of the same
/// major and no later minor one does.
/// Source: CUDA C++ Programming Guide, binary compatibility.
fn has_machine_code(archs: &[&str], compute_capability: u32) -> bool {
    archs.iter().any(|arch| match arch.parse::<u32>() {
        Ok(arch) => arch / 10 == compute_capability / 10 && arch <= compute_capability,
        Err(_) => arch.trim_end_matches(char::is_alphabetic).parse() == Ok(compute_capability),
    })
}

/// Whether a module holds Hopper's own instructions, and machine code for nothing else.
fn is_for_hopper(module: &str) -> bool {
    module.ends_with("_sm90a")
}

/// A kernel: a function of one of our modules. Cheap to copy; valid as long as its `Gpu`.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    function: sys::CUfunction,
    is_for_hopper: bool,
    /// Whether its code waits for the kernel before it by itself (`after_previous` in `lantern.cuh`).
    waits: bool,
}

impl Kernel {
    /// The driver's handle.
    pub(super) fn function(self) -> sys::CUfunction {
        self.function
    }
}

// SAFETY: a function handle is a plain address that the driver guards itself.
unsafe impl Send for Kernel {}
// SAFETY: as above.
unsafe impl Sync for Kernel {}

/// The most arguments that a kernel of ours takes.
const MAX_ARGUMENTS: usize = 32;

/// The most words that they have together.
const MAX_WORDS: usize = 64;

/// The arguments of a launch, in the order of the kernel's parameters, each of at least one word of eight bytes.
#[derive(Clone, Copy, Debug)]
pub struct Arguments {
    words: [u64; MAX_WORDS],
    used: usize,
    /// Where each argument begins in `words`.
    starts: [usize; MAX_ARGUMENTS],
    count: usize,
}

impl Arguments {
    /// None yet.
    pub fn new() -> Self {
        Self { words: [0; MAX_WORDS], used: 0, starts: [0; MAX_ARGUMENTS], count: 0 }
    }

    fn push(mut self, words: &[u64]) -> Self {
        self.starts[self.count] = self.used;
        self.count += 1;
        self.words[self.used..][..words.len()].copy_from_slice(words);
        self.used += words.len();
        self
    }

    /// Their addresses, and null behind them.
    fn pointers(&mut self) -> [*mut c_void; MAX_ARGUMENTS] {
        let mut pointers = [std::ptr::null_mut::<c_void>(); MAX_ARGUMENTS];
        for (pointer, start) in pointers.iter_mut().zip(&self.starts[..self.count]) {
            *pointer = std::ptr::from_mut(&mut self.words[*start]).cast();
        }
        pointers
    }

    /// A pointer to a tensor's first element.
    pub fn tensor(self, tensor: &DeviceTensor) -> Self {
        self.push(&[tensor.pointer()])
    }

    /// A pointer to a tensor's first element, null where there is none.
    pub fn optional(self, tensor: Option<&DeviceTensor>) -> Self {
        self.push(&[tensor.map_or(0, DeviceTensor::pointer)])
    }

    /// A `__grid_constant__ TensorMap` of the kernel.
    pub(super) fn map(self, map: &TensorMap) -> Self {
        self.push(map.words())
    }

    /// An `int` of the kernel.
    ///
    /// # Panics
    /// If it does not fit 31 bits: no size of ours does that.
    pub fn size(self, value: usize) -> Self {
        let value = i32::try_from(value).expect("sizes fit an int");
        self.push(&[value as u64])
    }

    /// An `unsigned` of the kernel.
    pub fn u32(self, value: u32) -> Self {
        self.push(&[u64::from(value)])
    }

    /// An `unsigned long long` of the kernel.
    pub fn u64(self, value: u64) -> Self {
        self.push(&[value])
    }

    /// A `float` of the kernel.
    pub fn f32(self, value: f32) -> Self {
        self.push(&[u64::from(value.to_bits())])
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
        let function = self.modules().function(module, name);
        let function = function.ok_or_else(|| CudaError::NoKernel(format!("{module}/{name}")))?;
        // What was compiled for an older card does not wait, also where the driver made machine code of it for this one.
        let compiled_for = attribute(function, sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_PTX_VERSION)?;
        Ok(Kernel { function, is_for_hopper: is_for_hopper(module), waits: compiled_for >= 90 })
    }

    /// Lets blocks of `kernel` have `bytes` of dynamic shared memory. To be called once, before its first launch.
    ///
    /// # Errors
    /// If the card has less; if with the kernel's static shared memory that is more than every card has and its module
    /// is not for Hopper alone (a file `*_sm90a.cu`), whatever this card has.
    pub fn allow_shared_memory(&self, kernel: Kernel, bytes: usize) -> Result<(), CudaError> {
        use sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES as STATIC_BYTES;
        let static_bytes = attribute(kernel.function, STATIC_BYTES)? as usize;
        if !kernel.is_for_hopper && static_bytes + bytes > PORTABLE_SHARED_BYTES {
            let message =
                format!("{static_bytes} + {bytes} bytes a block, and some cards have {PORTABLE_SHARED_BYTES}");
            return Err(CudaError::argument("shared memory", message));
        }
        if static_bytes + bytes <= DEFAULT_SHARED_BYTES {
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

    /// Queues a kernel on the GPU's stream. From compute capability 9.0 on its blocks may begin before the kernel queued
    /// before it has ended, and wait for that themselves; everything else that is queued waits for a kernel's end.
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
        let mut arguments = arguments;
        let mut pointers = arguments.pointers();
        let mut begins_early = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let [x, y, z] = grid.blocks;
        let [tx, ty, tz] = grid.threads;
        let config = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: tx,
            blockDimY: ty,
            blockDimZ: tz,
            sharedMemBytes: grid.shared_bytes,
            hStream: self.stream(),
            attrs: &raw mut begins_early,
            numAttrs: kernel.waits.into(),
        };
        // SAFETY: `pointers` holds one address for each parameter; the rest is the caller's promise.
        unsafe {
            sys::cuLaunchKernelEx(&raw const config, kernel.function, pointers.as_mut_ptr(), std::ptr::null_mut())
        }
        .result()
        .map_err(driver("a kernel"))
    }
}

/// What the driver says of a function whose context is bound.
fn attribute(function: sys::CUfunction, which: sys::CUfunction_attribute) -> Result<i32, CudaError> {
    // SAFETY: the function lives as long as the context.
    unsafe { result::function::get_function_attribute(function, which) }.map_err(driver("an attribute of a kernel"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_code_serves_its_own_major_from_its_minor_on() {
        let all = ["80", "86", "89", "90a", "100", "120"];
        for (capability, expected) in [
            (80, true),
            (86, true),
            (87, true),
            (89, true),
            (90, true),
            (100, true),
            (103, true),
            (110, false),
            (120, true),
            (121, true),
            (75, false),
        ] {
            assert_eq!(has_machine_code(&all, capability), expected, "{capability}");
        }
        assert!(!has_machine_code(&["90a"], 91) && !has_machine_code(&["86"], 80) && !has_machine_code(&[], 80));
        assert!(!has_machine_code(&["120"], 90));
    }

    /// Dynamic shared memory is held by `Gpu::allow_shared_memory`; this is the static part, which the compiler tells.
    #[test]
    fn kernels_fit_the_shared_memory_of_every_card() {
        let report = include_str!(concat!(env!("OUT_DIR"), "/resources.txt"));
        let mut module = "";
        let mut seen = 0;
        for line in report.lines() {
            if let Some(name) = line.strip_prefix("module ") {
                module = name;
            } else if line.contains(" registers") {
                let words: Vec<&str> = line.split_whitespace().collect();
                let at = words.iter().position(|word| word.trim_end_matches(',') == "smem");
                let bytes: usize = at.map_or(0, |at| words[at - 2].parse().expect("a number of bytes"));
                assert!(is_for_hopper(module) || bytes <= PORTABLE_SHARED_BYTES, "{module}: {line}");
                seen += 1;
            }
        }
        // A build of PTX alone has no machine code that anything could be told about.
        assert!(MACHINE_CODE.is_empty() || seen >= FATBINS.len(), "{seen} kernels of {} modules", FATBINS.len());
    }
}
