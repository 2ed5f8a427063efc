//! Candle's tensors as slices: sources to read, destinations to write in place.
//!
//! Knows storage and layout; not what is computed.

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Storage, StorageRef, Tensor, bail};
use std::cell::Cell;
use std::ops::Deref;

/// A contiguous f32 tensor on the CPU, locked for reading.
pub struct Source<'a> {
    storage: StorageRef<'a>,
    from: usize,
    to: usize,
}

impl<'a> Source<'a> {
    /// Locks `tensor`, which must be contiguous f32 on the CPU. `op` and `what` name it in errors.
    pub fn new(tensor: &'a Tensor, op: &'static str, what: &str) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        let Some((from, to)) = layout.contiguous_offsets() else {
            bail!("{op}: {what} {:?} is not contiguous", tensor.shape())
        };
        match &*storage {
            Storage::Cpu(CpuStorage::F32(_)) => Ok(Self { storage, from, to }),
            _ => bail!("{op}: {what} is {:?} on {:?}, not F32 on the CPU", tensor.dtype(), tensor.device()),
        }
    }
}

impl Deref for Source<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(values)) => &values[self.from..self.to],
            _ => unreachable!("checked when it was locked"),
        }
    }
}

/// Calls `write` with the elements of `dst`, a contiguous f32 tensor on the CPU at any start offset. `sources` are what
/// `write` reads: none may share storage with `dst`, whose lock is held meanwhile.
pub fn write_f32(
    dst: &Tensor,
    op: &'static str,
    sources: &[&Tensor],
    write: impl FnOnce(&mut [f32]) -> Result<()>,
) -> Result<()> {
    let own = address(dst);
    if sources.iter().any(|source| address(source) == own) {
        bail!("{op}: the destination shares its storage with a source");
    }
    dst.inplace_op1(&Write { op, write: Cell::new(Some(write)) })
}

/// Where a tensor's storage lies: equal for tensors that share it.
fn address(tensor: &Tensor) -> *const Storage {
    &*tensor.storage_and_layout().0
}

/// Candle's hook for writing into a tensor, over a closure.
struct Write<F> {
    op: &'static str,
    write: Cell<Option<F>>,
}

impl<F: FnOnce(&mut [f32]) -> Result<()>> InplaceOp1 for Write<F> {
    fn name(&self) -> &'static str {
        self.op
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let Some((from, to)) = layout.contiguous_offsets() else {
            bail!("{}: the destination {:?} is not contiguous", self.op, layout.shape())
        };
        let CpuStorage::F32(values) = storage else { bail!("{}: the destination is not F32", self.op) };
        match self.write.take() {
            Some(write) => write(&mut values[from..to]),
            None => bail!("{}: applied twice", self.op),
        }
    }
}

/// Rows and columns of a tensor `[t, n]`.
pub fn shape2(tensor: &Tensor, op: &'static str, what: &str) -> Result<(usize, usize)> {
    match *tensor.dims() {
        [rows, columns] => Ok((rows, columns)),
        _ => bail!("{op}: {what} is {:?}, not of two dimensions", tensor.shape()),
    }
}

/// Fails unless `tensor` has the shape `expected`.
pub fn expect_shape(tensor: &Tensor, op: &'static str, what: &str, expected: &[usize]) -> Result<()> {
    if tensor.dims() != expected {
        bail!("{op}: {what} is {:?}, expected {expected:?}", tensor.dims());
    }
    Ok(())
}
