//! Takes what sets memory out of recorded graphs: a kernel does it instead.
//!
//! Some of cuBLASLt's products zero a few bytes of their workspace first. A graph of kernels alone is launched in some
//! microseconds; one node of another kind among them makes the driver walk over all nodes, for each launch.

use std::ffi::c_void;
use std::ptr::{from_mut, null_mut};

use cudarc::driver::sys;

use super::error::driver;
use super::{CudaError, Gpu, Kernel};

const WHAT: &str = "recording a step";

/// Threads of a block of the kernel, and how many blocks it has at most.
const THREADS: usize = 256;
const MAX_BLOCKS: usize = 256;

/// A node's neighbours and the kinds of the edges to them.
type Neighbours = (Vec<sys::CUgraphNode>, Vec<sys::CUgraphEdgeData>);

impl Gpu {
    /// Puts kernels in the place of the nodes of a graph that zero whole words.
    ///
    /// # Errors
    /// What the driver says; [`CudaError::NoKernel`].
    ///
    /// # Safety
    /// `graph` is alive, and nobody else changes it.
    pub(super) unsafe fn zero_by_kernels(&self, graph: sys::CUgraph) -> Result<(), CudaError> {
        let kernel = self.kernel("blocks", "zero_words")?;
        // SAFETY: the caller's word; the list is as long as was asked.
        let nodes = unsafe {
            let mut count = 0;
            sys::cuGraphGetNodes(graph, null_mut(), &mut count).result().map_err(driver(WHAT))?;
            let mut nodes = vec![null_mut(); count];
            sys::cuGraphGetNodes(graph, nodes.as_mut_ptr(), &mut count).result().map_err(driver(WHAT))?;
            nodes
        };
        for node in nodes {
            // SAFETY: nodes of a graph that is alive, each looked at once.
            unsafe {
                if let Some((address, words)) = zeroed_words(node)? {
                    replace(graph, node, kernel, address, words)?;
                }
            }
        }
        Ok(())
    }
}

/// Where and how many words a node zeroes, if that is all it does.
///
/// # Safety
/// The node is alive.
unsafe fn zeroed_words(node: sys::CUgraphNode) -> Result<Option<(u64, u32)>, CudaError> {
    let mut kind = sys::CUgraphNodeType::CU_GRAPH_NODE_TYPE_EMPTY;
    // SAFETY: the caller's word.
    unsafe { sys::cuGraphNodeGetType(node, &mut kind) }.result().map_err(driver(WHAT))?;
    if kind != sys::CUgraphNodeType::CU_GRAPH_NODE_TYPE_MEMSET {
        return Ok(None);
    }
    // SAFETY: plain data, for which all zeros is a value.
    let mut memset: sys::CUDA_MEMSET_NODE_PARAMS = unsafe { std::mem::zeroed() };
    // SAFETY: a node of this kind, which is alive.
    unsafe { sys::cuGraphMemsetNodeGetParams(node, &mut memset) }.result().map_err(driver(WHAT))?;
    let bytes = memset.width * memset.elementSize as usize;
    let whole = memset.dst.is_multiple_of(4) && bytes.is_multiple_of(4) && bytes / 4 <= i32::MAX as usize;
    Ok((memset.value == 0 && memset.height == 1 && whole).then_some((memset.dst, (bytes / 4) as u32)))
}

/// Puts a kernel that zeroes `words` from `address` on in the place of `node`.
///
/// # Safety
/// The graph is alive, and `node` one of it.
unsafe fn replace(
    graph: sys::CUgraph,
    node: sys::CUgraphNode,
    kernel: Kernel,
    mut address: u64,
    mut words: u32,
) -> Result<(), CudaError> {
    // SAFETY: the caller's word.
    let (before, after) = unsafe {
        (neighbours(node, sys::cuGraphNodeGetDependencies_v2)?, neighbours(node, sys::cuGraphNodeGetDependentNodes_v2)?)
    };
    let mut arguments: [*mut c_void; 2] = [from_mut(&mut address).cast(), from_mut(&mut words).cast()];
    // SAFETY: plain data, for which all zeros is a value.
    let mut params: sys::CUgraphNodeParams = unsafe { std::mem::zeroed() };
    params.type_ = sys::CUgraphNodeType::CU_GRAPH_NODE_TYPE_KERNEL;
    params.__bindgen_anon_1.kernel = sys::CUDA_KERNEL_NODE_PARAMS_v3 {
        func: kernel.function(),
        gridDimX: (words as usize).div_ceil(THREADS).clamp(1, MAX_BLOCKS) as u32,
        gridDimY: 1,
        gridDimZ: 1,
        blockDimX: THREADS as u32,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: 0,
        kernelParams: arguments.as_mut_ptr(),
        extra: null_mut(),
        kern: null_mut(),
        ctx: null_mut(),
    };
    let mut new = null_mut();
    // SAFETY: all are nodes of this graph; the driver copies the arguments, which are of the kernel's types.
    unsafe {
        let ((from, kinds), count) = (&before, before.0.len());
        sys::cuGraphAddNode_v2(&mut new, graph, from.as_ptr(), kinds.as_ptr(), count, &mut params)
            .result()
            .map_err(driver(WHAT))?;
        let (to, kinds) = &after;
        let from = vec![new; to.len()];
        if !to.is_empty() {
            sys::cuGraphAddDependencies_v2(graph, from.as_ptr(), to.as_ptr(), kinds.as_ptr(), to.len())
                .result()
                .map_err(driver(WHAT))?;
        }
        sys::cuGraphDestroyNode(node).result().map_err(driver(WHAT))
    }
}

/// What of the driver lists a node's neighbours on one side.
type List = unsafe fn(sys::CUgraphNode, *mut sys::CUgraphNode, *mut sys::CUgraphEdgeData, *mut usize) -> sys::CUresult;

/// The neighbours of a node that `list` lists.
///
/// # Safety
/// The node is alive.
unsafe fn neighbours(node: sys::CUgraphNode, list: List) -> Result<Neighbours, CudaError> {
    let mut count = 0;
    // SAFETY: the caller's word; the lists are as long as was asked.
    unsafe {
        list(node, null_mut(), null_mut(), &mut count).result().map_err(driver(WHAT))?;
        let (mut nodes, mut kinds) = (vec![null_mut(); count], vec![std::mem::zeroed(); count]);
        if count > 0 {
            list(node, nodes.as_mut_ptr(), kinds.as_mut_ptr(), &mut count).result().map_err(driver(WHAT))?;
        }
        Ok((nodes, kinds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::DType;

    #[test]
    #[ignore = "needs an NVIDIA GPU"]
    fn cuda_recorded_zeroes_are_written_and_other_values_too() -> Result<(), CudaError> {
        let gpu = Gpu::open(0).expect("an NVIDIA GPU");
        let words = gpu.empty(1, 70_000, DType::U32, "a test")?;
        for (value, count) in [(0, 70_000), (0, 1), (7, 300)] {
            gpu.upload(&words, &vec![0xFF; words.bytes()])?;
            let graph = gpu.record_graph(|| {
                // SAFETY: the tensor is as long, and lives until the graph has run.
                unsafe { sys::cuMemsetD32Async(words.pointer(), value, count, gpu.stream()) }
                    .result()
                    .map_err(driver(WHAT))
            })?;
            gpu.launch_graph(&graph)?;
            let found = gpu.download(&words)?;
            let expected = (0..70_000).flat_map(|at| if at < count { value } else { u32::MAX }.to_le_bytes());
            assert!(found.into_iter().eq(expected), "{count} times {value}");
        }
        Ok(())
    }
}
