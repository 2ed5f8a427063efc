//! The paged cache of all layers.

#[cfg(feature = "cuda")]
use super::on_cuda::GpuKvLayer;
#[cfg(feature = "cuda")]
use crate::cuda::DeviceTensor;
use candle_core::Result;

use super::{Compute, KvLayout, on_cpu};

/// K and V of one layer.
#[derive(Clone, Debug)]
pub enum KvLayer {
    /// In host memory.
    Cpu(on_cpu::KvLayer),
    /// In GPU memory.
    #[cfg(feature = "cuda")]
    Gpu(GpuKvLayer),
}

/// K and V of every layer, in blocks of [`KvLayout::BLOCK_SIZE`] tokens.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<KvLayer>,
    /// `[layer][plane][block]`, one row a block, and the planes of all layers.
    #[cfg(feature = "cuda")]
    whole: Option<DeviceTensor>,
    #[cfg(feature = "cuda")]
    planes: usize,
}

impl KvCache {
    /// A cache of `blocks` for `layers` layers, zeroed: what is masked is multiplied by zero, and NaN would not vanish.
    ///
    /// # Errors
    /// If a head is no multiple of 8 elements, the device has no kernels for its type, or no room.
    pub fn zeros(compute: &Compute, layers: usize, layout: KvLayout, blocks: usize) -> Result<Self> {
        match compute {
            Compute::Cpu(_) => {
                let layer = |_| on_cpu::KvLayer::zeros(layout, blocks).map(KvLayer::Cpu);
                Ok(Self {
                    layers: (0..layers).map(layer).collect::<Result<_>>()?,
                    #[cfg(feature = "cuda")]
                    whole: None,
                    #[cfg(feature = "cuda")]
                    planes: layers * layout.planes.count(),
                })
            }
            #[cfg(feature = "cuda")]
            Compute::Gpu(gpu) => {
                let planes = layers * layout.planes.count();
                let (whole, layers) = gpu.kv_cache(layers, layout, blocks)?;
                Ok(Self { layers: layers.into_iter().map(KvLayer::Gpu).collect(), whole: Some(whole), planes })
            }
        }
    }

    /// The layers, first to last.
    pub fn layers(&self) -> &[KvLayer] {
        &self.layers
    }

    /// Copies whole blocks of every layer, `(from, to)`, in order. On the CPU; a GPU's runner queues its own.
    ///
    /// # Errors
    /// If a block is outside the cache.
    pub fn copy_blocks(&self, compute: &Compute, copies: &[(u32, u32)]) -> Result<()> {
        for layer in &self.layers {
            match (compute, layer) {
                (Compute::Cpu(cpu), KvLayer::Cpu(layer)) => on_cpu::copy_blocks(cpu, layer, copies)?,
                #[cfg(feature = "cuda")]
                _ => return super::tensor::elsewhere("copy_blocks"),
            }
        }
        Ok(())
    }

    /// Planes of all layers: K and V of each, or its latents.
    #[cfg(feature = "cuda")]
    pub fn planes(&self) -> usize {
        self.planes
    }

    /// The whole cache in GPU memory: `[layer][plane][block]`, one row a block.
    #[cfg(feature = "cuda")]
    pub fn gpu(&self) -> Option<&DeviceTensor> {
        self.whole.as_ref()
    }
}
