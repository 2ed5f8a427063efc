//! Weights and rotary tables where the step computes.

#[cfg(feature = "cuda")]
use super::on_cuda::GpuWeight;
use super::{Compute, Matrix, RopeTable};
#[cfg(feature = "cuda")]
use crate::cuda::DeviceTensor;
use candle_core::{Result, bail};

/// Weights `[rows = outputs, columns = inputs]` of a linear layer, or an embedding table. Cloning shares them.
#[derive(Clone, Debug)]
pub enum Weight {
    /// As stored, mapped: several matrices stacked along their rows, whose formats may differ.
    Cpu(Vec<Matrix>),
    /// In GPU memory.
    #[cfg(feature = "cuda")]
    Gpu(GpuWeight),
}

impl Weight {
    /// Brings `parts`, stacked along their rows, to where `compute` computes. All have the same columns.
    ///
    /// # Errors
    /// If there are none, their columns differ, or the device has no room.
    pub fn load(compute: &Compute, parts: Vec<Matrix>) -> Result<Self> {
        let Some(columns) = parts.first().map(Matrix::columns) else { bail!("a weight of no matrices") };
        if let Some(part) = parts.iter().find(|part| part.columns() != columns) {
            bail!("{part:?} is stacked with matrices of {columns} columns");
        }
        match compute {
            Compute::Cpu(_) => Ok(Self::Cpu(parts)),
            #[cfg(feature = "cuda")]
            Compute::Gpu(gpu) => gpu.upload_weights(&parts).map(Self::Gpu),
        }
    }

    /// The same of an embedding table, which may be the output layer's weight as well.
    ///
    /// # Errors
    /// As [`Weight::load`].
    pub fn load_table(compute: &Compute, table: Matrix) -> Result<Self> {
        match compute {
            Compute::Cpu(_) => Self::load(compute, vec![table]),
            #[cfg(feature = "cuda")]
            Compute::Gpu(gpu) => gpu.upload_table(&table).map(Self::Gpu),
        }
    }

    /// As [`Weight::load`], for operations that a GPU has dense weights for alone: there they are made so. All parts have one shape.
    ///
    /// # Errors
    /// As [`Weight::load`].
    pub fn load_heads(compute: &Compute, parts: Vec<Matrix>) -> Result<Self> {
        match compute {
            Compute::Cpu(_) => Self::load(compute, parts),
            #[cfg(feature = "cuda")]
            Compute::Gpu(gpu) => gpu.upload_dense(&parts).map(|dense| Self::Gpu(GpuWeight::Dense(dense))),
        }
    }

    /// The matrices.
    ///
    /// # Errors
    /// If they are on a GPU.
    pub(super) fn parts(&self) -> Result<&[Matrix]> {
        match self {
            Self::Cpu(parts) => Ok(parts),
            #[cfg(feature = "cuda")]
            Self::Gpu(weight) => bail!("{weight:?} is not on the CPU"),
        }
    }

    /// The only matrix: that of an embedding table.
    ///
    /// # Errors
    /// If there are several, or it is on a GPU.
    pub(super) fn matrix(&self) -> Result<&Matrix> {
        match self.parts()? {
            [matrix] => Ok(matrix),
            parts => bail!("an embedding table of {} matrices", parts.len()),
        }
    }

    /// The weights on the GPU.
    ///
    /// # Errors
    /// If they are on the CPU.
    #[cfg(feature = "cuda")]
    pub(super) fn gpu(&self) -> Result<&GpuWeight> {
        match self {
            Self::Gpu(weight) => Ok(weight),
            Self::Cpu(_) => bail!("weights are not on the GPU"),
        }
    }
}

/// A rotary table where the step computes.
#[derive(Clone, Debug)]
pub enum Rope {
    /// In host memory.
    Cpu(RopeTable),
    /// Its cosines and sines, each `[positions, rotary_dim / 2]` in f32, in GPU memory.
    #[cfg(feature = "cuda")]
    Gpu {
        /// Which elements are rotated together.
        layout: super::RopeLayout,
        /// Cosines.
        cos: DeviceTensor,
        /// Sines.
        sin: DeviceTensor,
    },
}

impl Rope {
    /// Brings `table` to where `compute` computes.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn load(compute: &Compute, table: RopeTable) -> Result<Self> {
        match compute {
            Compute::Cpu(_) => Ok(Self::Cpu(table)),
            #[cfg(feature = "cuda")]
            Compute::Gpu(gpu) => {
                let (rows, columns) = (table.max_positions(), table.rotary_dim() / 2);
                let layout = table.layout();
                let cos = gpu.upload_f32(rows, columns, table.cos())?;
                Ok(Self::Gpu { layout, cos, sin: gpu.upload_f32(rows, columns, table.sin())? })
            }
        }
    }

    pub(super) fn table(&self) -> Result<&RopeTable> {
        match self {
            Self::Cpu(table) => Ok(table),
            #[cfg(feature = "cuda")]
            Self::Gpu { .. } => bail!("the rotary table is not on the CPU"),
        }
    }
}
