//! What the driver says of itself and its GPUs, and a small kernel that shows whether one of them computes.
//!
//! Decides nothing: the ladder does. Each function needs those before it to have succeeded.

use std::ffi::{CStr, c_char, c_int, c_uint};
use std::fmt::Write as _;

use cudarc::driver::{DriverError, result, sys};

use super::CudaError;
use super::error::driver;
use super::gpu::Context;
use super::kernel::{MACHINE_CODE, Modules, PTX};

/// What this build's kernels were compiled for, as compute capabilities without their dot: machine code, then PTX.
pub const IMAGES: (&[&str], &[&str]) = (MACHINE_CODE, PTX);

/// The driver's error for a machine on which it may use no GPU.
pub const NO_DEVICE: i32 = 100;

/// Threads of the probe's one block.
const LANES: usize = 32;
/// Rows and columns of its matrix product, and the length of its dot products.
const PRODUCT: [usize; 3] = [16, 8, 16];
/// Words that it writes.
const WORDS: usize = 2 * LANES + PRODUCT[0] * PRODUCT[1];

/// Why the driver does not start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartFailure {
    /// The driver's number of the error.
    pub code: i32,
    /// Its name and explanation.
    pub message: String,
}

/// A GPU that the driver offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundGpu {
    /// The driver's name of it.
    pub name: String,
    /// Major and minor compute capability.
    pub compute_capability: (u32, u32),
    /// Its memory, in bytes.
    pub total_bytes: u64,
}

/// Why a GPU did not pass the probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeError {
    /// The driver finds no code for it in this build: its own word.
    NoImage(String),
    /// The kernel ran and its answer is wrong.
    Wrong(String),
    /// A call failed.
    Failed(CudaError),
}

/// Starts the driver. Needs [`super::open_driver`].
///
/// # Errors
/// The driver's error. Numbers that this build does not know are no trouble, so newer drivers may have their own.
pub fn start() -> Result<(), StartFailure> {
    type Init = unsafe extern "C" fn(c_uint) -> c_int;
    // SAFETY: `open_driver` found the library and this symbol; the signature is the driver's.
    let code = unsafe { sys::culib().get::<Init>(c"cuInit").map_or(-1, |init| init(0)) };
    if code == 0 { Ok(()) } else { Err(StartFailure { code, message: describe(code) }) }
}

/// The CUDA version that the driver speaks, major and minor; 0.0 where it does not say.
pub fn driver_version() -> (u32, u32) {
    type Version = unsafe extern "C" fn(*mut c_int) -> c_int;
    let mut version = 0;
    // SAFETY: as above; the driver writes one int.
    unsafe {
        if let Ok(function) = sys::culib().get::<Version>(c"cuDriverGetVersion") {
            function(&mut version);
        }
    }
    let version = u32::try_from(version).unwrap_or(0);
    (version / 1000, version % 1000 / 10)
}

/// The driver's name of an error, and its explanation.
fn describe(code: c_int) -> String {
    type Text = unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int;
    let text = |function: &CStr| {
        let mut text = std::ptr::null();
        // SAFETY: as above; the driver writes the address of a text of its own that stays, or null.
        unsafe {
            sys::culib().get::<Text>(function).ok()?(code, &mut text);
            (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
        }
    };
    match (text(c"cuGetErrorName"), text(c"cuGetErrorString")) {
        (Some(name), Some(explanation)) => format!("{name} ({explanation})"),
        (Some(name), None) => name,
        _ => format!("error {code}"),
    }
}

/// All GPUs that the driver offers, in its order. Needs a driver of CUDA 13.0 or later that has started.
///
/// # Errors
/// What the driver says.
pub fn gpus() -> Result<Vec<FoundGpu>, CudaError> {
    let count = result::device::get_count().map_err(driver("counting the GPUs"))?;
    (0..count).map(|ordinal| find(ordinal).map_err(driver("asking about a GPU"))).collect()
}

fn find(ordinal: c_int) -> Result<FoundGpu, DriverError> {
    use sys::CUdevice_attribute as A;
    let device = result::device::get(ordinal)?;
    // SAFETY: the device is the driver's own.
    let attribute = |attribute| unsafe { result::device::get_attribute(device, attribute) };
    let major = attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    // SAFETY: as above.
    let total_bytes = unsafe { result::device::total_mem(device) }? as u64;
    Ok(FoundGpu {
        name: result::device::get_name(device)?,
        compute_capability: (major as u32, minor as u32),
        total_bytes,
    })
}

/// Loads all kernels for a GPU, runs the probe kernel on it, and lets go of it. Returns the bytes of its memory that
/// were free.
///
/// # Errors
/// [`ProbeError`].
pub fn probe(ordinal: usize) -> Result<u64, ProbeError> {
    let failed = |call| move |error| ProbeError::Failed(driver(call)(error));
    let context = Context::open(ordinal).map_err(ProbeError::Failed)?;
    let (free_bytes, _) = result::mem_get_info().map_err(failed("reading the free memory"))?;
    let limits = context.limits().map_err(ProbeError::Failed)?;
    let modules = Modules::load(limits.compute_capability).map_err(|error| match error.0 {
        sys::CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU
        | sys::CUresult::CUDA_ERROR_INVALID_IMAGE
        | sys::CUresult::CUDA_ERROR_INVALID_PTX
        | sys::CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION
        | sys::CUresult::CUDA_ERROR_JIT_COMPILER_NOT_FOUND
        | sys::CUresult::CUDA_ERROR_JIT_COMPILATION_DISABLED => ProbeError::NoImage(describe(error.0 as c_int)),
        _ => failed("loading the kernels")(error),
    })?;
    let outcome = run(&modules);
    modules.unload();
    context.unbind();
    let words = outcome.map_err(failed("the probe kernel"))?;
    match difference(&words) {
        None => Ok(free_bytes as u64),
        Some(difference) => Err(ProbeError::Wrong(difference)),
    }
}

/// Runs the kernel in the bound context and brings back what it wrote.
fn run(modules: &Modules) -> Result<Vec<u32>, DriverError> {
    let function = modules.function("probe", "probe").ok_or(DriverError(sys::CUresult::CUDA_ERROR_NOT_FOUND))?;
    let mut words = vec![0_u32; WORDS];
    let bytes = size_of_val(words.as_slice());
    // SAFETY: the context is bound; freed below on every way out.
    let mut out = unsafe { result::malloc_sync(bytes) }?;
    // SAFETY: `out` holds the words that the kernel writes, and its one parameter is that address; the null stream
    // orders all three, and the copy waits.
    let outcome = unsafe {
        result::memset_d8_sync(out, 0xFF, bytes)
            .and_then(|()| {
                let stream = std::ptr::null_mut();
                let mut arguments = [(&raw mut out).cast()];
                result::launch_kernel(function, (1, 1, 1), (LANES as u32, 1, 1), 0, stream, &mut arguments)
            })
            .and_then(|()| result::memcpy_dtoh_sync(&mut words, out))
    };
    // SAFETY: allocated above, freed once.
    let _ = unsafe { result::free_sync(out) };
    outcome.map(|()| words)
}

/// What `kernels/probe.cu` writes where the hardware computes as it should.
fn expected() -> Vec<u32> {
    let hashes = (1..=LANES as u32).map(|lane| {
        let hash = lane.wrapping_mul(2_654_435_761);
        hash ^ (hash >> 15)
    });
    let sums = (1..=LANES).map(|lane| (lane as f32).mul_add(1.0 / 3.0, -1.0 / 7.0).to_bits());
    let [rows, columns, depth] = PRODUCT;
    let a = |row: usize, k: usize| ((row * 3 + k * 5) % 7) as i32 - 3;
    let b = |k: usize, column: usize| ((k * 2 + column * 3) % 5) as i32 - 2;
    let products = (0..rows * columns).map(|at| {
        let (row, column) = (at / columns, at % columns);
        let sum: i32 = (0..depth).map(|k| a(row, k) * b(k, column)).sum();
        (sum as f32).to_bits()
    });
    hashes.chain(sums).chain(products).collect()
}

/// Which part of an answer is wrong, in words.
fn difference(words: &[u32]) -> Option<String> {
    let expected = expected();
    let parts = [("integers", 0..LANES), ("floats", LANES..2 * LANES), ("matrix product", 2 * LANES..WORDS)];
    let mut text = String::new();
    for (part, range) in parts {
        let wrong = range.clone().filter(|at| words.get(*at) != expected.get(*at)).count();
        if wrong > 0 {
            let separator = if text.is_empty() { "" } else { ", " };
            write!(text, "{separator}{wrong} of {} {part} wrong", range.len()).expect("a string");
        }
    }
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_right_answer_passes_and_each_wrong_part_is_named() {
        let right = expected();
        assert_eq!(right.len(), WORDS);
        assert_eq!(difference(&right), None);
        let mut wrong = right.clone();
        wrong[3] ^= 1;
        wrong[WORDS - 1] = u32::MAX;
        wrong[WORDS - 2] = u32::MAX;
        assert_eq!(difference(&wrong).as_deref(), Some("1 of 32 integers wrong, 2 of 128 matrix product wrong"));
        assert!(difference(&vec![u32::MAX; WORDS]).is_some());
    }

    #[test]
    fn the_expected_product_is_not_all_zeros() {
        // Bit patterns of zero would also be what a kernel leaves that does nothing in cleared memory.
        let zeros = expected()[2 * LANES..].iter().filter(|word| f32::from_bits(**word) == 0.0).count();
        assert!(zeros < 32, "{zeros}");
    }
}
