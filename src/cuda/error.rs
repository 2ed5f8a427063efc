//! What can go wrong on the GPU.

use cudarc::driver::DriverError;

/// Why a call on the GPU failed. After a [`CudaError::Driver`] of a running step nothing on the GPU can be trusted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CudaError {
    /// A call of the driver.
    #[error("{call}: {message}")]
    Driver {
        /// What was tried.
        call: &'static str,
        /// The driver's name of the error and its explanation.
        message: String,
    },
    /// A call of cuBLASLt.
    #[error("{call}: cuBLASLt status {status}")]
    Blas {
        /// What was tried.
        call: &'static str,
        /// cuBLAS's own number.
        status: i32,
    },
    /// The GPU has not the memory.
    #[error("{bytes} bytes of GPU memory for {what} cannot be had: {free_bytes} are free")]
    OutOfMemory {
        /// Bytes that were asked for.
        bytes: usize,
        /// What they were for.
        what: String,
        /// Bytes that were free at that moment.
        free_bytes: usize,
    },
    /// A kernel is in none of the embedded modules.
    #[error("no kernel {0} is in this build")]
    NoKernel(String),
    /// An argument does not fit the kernel.
    #[error("{op}: {message}")]
    Argument {
        /// The operation.
        op: &'static str,
        /// What does not fit.
        message: String,
    },
}

impl CudaError {
    /// What was looked up, where this card and this build have it: Hopper's own kernels.
    pub(super) fn if_here<T>(found: Result<T, Self>) -> Result<Option<T>, Self> {
        match found {
            Err(Self::NoKernel(_)) => Ok(None),
            found => found.map(Some),
        }
    }

    /// An argument that does not fit `op`.
    pub(crate) fn argument(op: &'static str, message: impl Into<String>) -> Self {
        Self::Argument { op, message: message.into() }
    }
}

/// Names what was tried when the driver refused.
pub(super) fn driver(call: &'static str) -> impl FnOnce(DriverError) -> CudaError {
    move |error| {
        let name =
            error.error_name().map_or_else(|_| format!("{:?}", error.0), |name| name.to_string_lossy().into_owned());
        let text = error.error_string().map_or_else(|_| String::new(), |text| format!(" ({})", text.to_string_lossy()));
        CudaError::Driver { call, message: name + &text }
    }
}
