//! A tensor where the step computes.

#[cfg(feature = "cuda")]
use crate::cuda::{DType, DeviceTensor};
use candle_core::{Device, Result};
#[cfg(feature = "cuda")]
use candle_core::{Error, bail};

use super::Compute;
use super::on_cpu::Source;

/// What a tensor holds, which decides its element type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// What goes from one operation to the next: f32 on the CPU, the model's own type on a GPU.
    Activation,
    /// The residual stream, logits, norms and biases: f32 everywhere.
    Exact,
}

/// A row-major, contiguous tensor: `[rows, columns]`, or a vector. Cloning shares its memory.
#[derive(Clone, Debug)]
pub enum Tensor {
    /// f32, in host memory.
    Cpu(candle_core::Tensor),
    /// In GPU memory; a vector is one row.
    #[cfg(feature = "cuda")]
    Gpu(DeviceTensor),
}

impl Tensor {
    /// `[rows, columns]` of zeros.
    ///
    /// # Errors
    /// If the device has no room.
    #[cfg_attr(not(feature = "cuda"), allow(unused_variables))]
    pub fn zeros(compute: &Compute, rows: usize, columns: usize, kind: Kind) -> Result<Self> {
        match compute {
            Compute::Cpu(_) => {
                let zeros = candle_core::Tensor::zeros((rows, columns), candle_core::DType::F32, &Device::Cpu)?;
                Ok(Self::Cpu(zeros))
            }
            #[cfg(feature = "cuda")]
            Compute::Gpu(gpu) => {
                let dtype = if kind == Kind::Exact { DType::F32 } else { gpu.dtype() };
                gpu.gpu().zeros(rows, columns, dtype, "the step's buffers").map(Self::Gpu).map_err(Error::wrap)
            }
        }
    }

    /// A vector of f32.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn vector(compute: &Compute, values: Vec<f32>) -> Result<Self> {
        let length = values.len();
        match compute {
            Compute::Cpu(_) => Ok(Self::Cpu(candle_core::Tensor::from_vec(values, length, &Device::Cpu)?)),
            #[cfg(feature = "cuda")]
            Compute::Gpu(gpu) => gpu.upload_f32(1, length, &values).map(Self::Gpu),
        }
    }

    /// The first `count` rows.
    ///
    /// # Errors
    /// If there are fewer.
    pub fn first_rows(&self, count: usize) -> Result<Self> {
        match self {
            Self::Cpu(tensor) => Ok(Self::Cpu(tensor.narrow(0, 0, count)?)),
            #[cfg(feature = "cuda")]
            Self::Gpu(tensor) if count > tensor.rows() => bail!("{count} rows of {tensor:?}"),
            #[cfg(feature = "cuda")]
            Self::Gpu(tensor) => Ok(Self::Gpu(tensor.slice(0, count))),
        }
    }

    /// The same memory as as many rows of fewer columns, one behind the other; its content is that of other places.
    ///
    /// # Errors
    /// If there are fewer columns.
    pub fn first_columns(&self, columns: usize) -> Result<Self> {
        match self {
            Self::Cpu(tensor) => {
                let (rows, own) = tensor.dims2()?;
                if columns == own {
                    return Ok(self.clone());
                }
                Ok(Self::Cpu(tensor.reshape(rows * own)?.narrow(0, 0, rows * columns)?.reshape((rows, columns))?))
            }
            #[cfg(feature = "cuda")]
            Self::Gpu(tensor) if columns > tensor.columns() => bail!("{columns} columns of {tensor:?}"),
            #[cfg(feature = "cuda")]
            Self::Gpu(tensor) => Ok(Self::Gpu(tensor.view(0, tensor.rows(), columns, tensor.dtype()))),
        }
    }

    /// The tensor as Candle's.
    ///
    /// # Errors
    /// If it is on a GPU.
    pub fn cpu(&self) -> Result<&candle_core::Tensor> {
        match self {
            Self::Cpu(tensor) => Ok(tensor),
            #[cfg(feature = "cuda")]
            Self::Gpu(tensor) => bail!("{tensor:?} is not on the CPU"),
        }
    }

    /// Its elements, locked for reading. `op` and `what` name it in errors.
    ///
    /// # Errors
    /// If it is on a GPU.
    pub fn source(&self, op: &'static str, what: &str) -> Result<Source<'_>> {
        Source::new(self.cpu()?, op, what)
    }

    /// The tensor as the GPU's.
    ///
    /// # Errors
    /// If it is on the CPU.
    #[cfg(feature = "cuda")]
    pub fn gpu(&self) -> Result<&DeviceTensor> {
        match self {
            Self::Gpu(tensor) => Ok(tensor),
            Self::Cpu(tensor) => bail!("{:?} is not on the GPU", tensor.shape()),
        }
    }
}

/// What `op` was given lies in two places.
#[cfg(feature = "cuda")]
pub(super) fn elsewhere(op: &'static str) -> Result<()> {
    bail!("{op}: its arguments are not all where it computes")
}
