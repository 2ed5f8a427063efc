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
    /// Blocks that it has now.
    blocks: usize,
    /// Blocks that it had at first.
    planned: usize,
    /// Bytes of one block, all layers.
    block_bytes: usize,
    /// `[layer][plane][block]`, one row for each block that was planned, and the planes of all layers.
    #[cfg(feature = "cuda")]
    whole: Option<DeviceTensor>,
    #[cfg(feature = "cuda")]
    planes: usize,
}

impl KvCache {
    /// A cache of `blocks` for `layers` layers whose size stays; else as [`Self::shrinkable`].
    ///
    /// # Errors
    /// As [`Self::shrinkable`].
    #[cfg(any(feature = "cuda", test))]
    pub fn zeros(compute: &Compute, layers: usize, layout: KvLayout, blocks: usize) -> Result<Self> {
        Self::shrinkable(compute, layers, layout, blocks, blocks)
    }

    /// A cache of `blocks` for `layers` layers, zeroed: what is masked is multiplied by zero, and NaN would not vanish.
    /// [`Self::resize`] makes it smaller down to `least` blocks; on a GPU the memory of the others is apart.
    ///
    /// # Errors
    /// If a head is no multiple of 8 elements, the device has no kernels for its type, or no room.
    #[cfg_attr(not(feature = "cuda"), allow(unused_variables))] // only a GPU is told
    pub fn shrinkable(compute: &Compute, layers: usize, layout: KvLayout, blocks: usize, least: usize) -> Result<Self> {
        let planes = layers * layout.planes.count();
        let block_bytes = planes * layout.block_bytes();
        match compute {
            Compute::Cpu(_) => {
                let layer = |_| on_cpu::KvLayer::zeros(layout, blocks).map(KvLayer::Cpu);
                Ok(Self {
                    layers: (0..layers).map(layer).collect::<Result<_>>()?,
                    blocks,
                    planned: blocks,
                    block_bytes,
                    #[cfg(feature = "cuda")]
                    whole: None,
                    #[cfg(feature = "cuda")]
                    planes,
                })
            }
            #[cfg(feature = "cuda")]
            Compute::Gpu(gpu) => {
                let (whole, layers) = gpu.kv_cache(layers, layout, blocks, least)?;
                let layers = layers.into_iter().map(KvLayer::Gpu).collect();
                Ok(Self { layers, blocks, planned: blocks, block_bytes, whole: Some(whole), planes })
            }
        }
    }

    /// Gives back the memory of the blocks from `blocks` on, or takes it again, zeroed; what lies in the others stays. Where
    /// memory can only be given back whole nothing changes. No step is in flight.
    ///
    /// # Errors
    /// If there is no room, and the cache is as it was; what the driver says.
    ///
    /// # Panics
    /// If those are more blocks than it had at first.
    #[cfg_attr(not(feature = "cuda"), allow(unused_variables))] // only a GPU is asked
    pub fn resize(&mut self, compute: &Compute, blocks: usize) -> Result<()> {
        assert!(blocks <= self.planned, "{blocks} blocks of a cache of {}", self.planned);
        #[cfg(feature = "cuda")]
        if let (Compute::Gpu(gpu), Some(whole)) = (compute, &self.whole) {
            if whole.can_shrink() {
                gpu.gpu().resize_parts(whole, self.planes, blocks).map_err(candle_core::Error::wrap)?;
                self.blocks = blocks;
            }
            return Ok(());
        }
        for layer in &self.layers {
            match layer {
                KvLayer::Cpu(layer) => layer.resize(blocks),
                #[cfg(feature = "cuda")]
                KvLayer::Gpu(_) => return super::tensor::elsewhere("resize"),
            }
        }
        self.blocks = blocks;
        Ok(())
    }

    /// Blocks that it has now.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Bytes of one block, all layers.
    pub fn block_bytes(&self) -> usize {
        self.block_bytes
    }

    /// Bytes of memory that it had at first and has not now.
    pub fn given_back_bytes(&self) -> u64 {
        #[cfg(feature = "cuda")]
        if let Some(whole) = &self.whole {
            return whole.given_back_bytes() as u64;
        }
        ((self.planned - self.blocks) * self.block_bytes) as u64
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

    /// The whole cache in GPU memory: `[layer][plane][block]`, one row for each block that was planned.
    #[cfg(feature = "cuda")]
    pub fn gpu(&self) -> Option<&DeviceTensor> {
        self.whole.as_ref()
    }
}
