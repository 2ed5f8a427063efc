//! Work recorded once and launched many times, and marks in the stream to wait for.

use std::sync::Arc;

use cudarc::driver::{result, sys};

use super::error::driver;
use super::gpu::{Context, LoadedModules};
use super::{CudaError, Gpu};

/// A recorded sequence of kernels, with the addresses that they had then.
pub struct Graph {
    context: Arc<Context>,
    executable: sys::CUgraphExec,
    /// Those of its kernels, which stay as long as it does.
    _modules: Arc<LoadedModules>,
}

// SAFETY: the handle is a plain address that the driver guards; it belongs to this value alone.
unsafe impl Send for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: instantiated in `record_graph`, destroyed once.
            let _ = unsafe { result::graph::exec_destroy(self.executable) };
        }
    }
}

/// A mark in the stream.
pub struct Event {
    context: Arc<Context>,
    event: sys::CUevent,
}

// SAFETY: as for `Graph`.
unsafe impl Send for Event {}

impl Event {
    /// Waits until the stream has passed the mark; at once where it was never made.
    ///
    /// # Errors
    /// What the driver says, also of a kernel that failed before it.
    pub fn wait(&self) -> Result<(), CudaError> {
        // SAFETY: the event lives as long as this value.
        unsafe { result::event::synchronize(self.event) }.map_err(driver("waiting for a step"))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: created in `Gpu::event`, destroyed once.
            let _ = unsafe { result::event::destroy(self.event) };
        }
    }
}

impl Gpu {
    /// An event that was not made yet.
    ///
    /// # Errors
    /// What the driver says.
    pub fn event(&self) -> Result<Event, CudaError> {
        self.bind()?;
        let event = result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING).map_err(driver("an event"))?;
        Ok(Event { context: self.context().clone(), event })
    }

    /// Makes the mark behind everything that was queued.
    ///
    /// # Errors
    /// What the driver says.
    pub fn mark(&self, event: &Event) -> Result<(), CudaError> {
        // SAFETY: event and stream live and are of one context.
        unsafe { result::event::record(event.event, self.stream()) }.map_err(driver("marking a step"))
    }

    /// Records what `queue` queues, instead of running it. It may allocate nothing and wait for nothing.
    ///
    /// # Errors
    /// What `queue` or the driver says.
    pub fn record_graph<E: From<CudaError>>(&self, queue: impl FnOnce() -> Result<(), E>) -> Result<Graph, E> {
        self.bind()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives as long as this value; the capture ends below, whatever `queue` says.
        unsafe { result::stream::begin_capture(self.stream(), mode) }.map_err(driver("recording a step"))?;
        let queued = queue();
        // SAFETY: as above.
        let graph = unsafe { result::stream::end_capture(self.stream()) }.map_err(driver("recording a step"));
        queued?;
        let graph = graph?;
        // SAFETY: the graph was just recorded; it is destroyed once, below.
        let executable = unsafe { self.zero_by_kernels(graph) }.and_then(|()| {
            // SAFETY: as above.
            unsafe { result::graph::instantiate(graph, sys::CUgraphInstantiate_flags_enum(0)) }
                .map_err(driver("making a graph"))
        });
        // SAFETY: as above; the executable does not need it.
        let _ = unsafe { result::graph::destroy(graph) };
        let executable = executable?;
        let graph = Graph { context: self.context().clone(), executable, _modules: self.loaded_modules() };
        // SAFETY: both live.
        unsafe { result::graph::upload(graph.executable, self.stream()) }.map_err(driver("uploading a graph"))?;
        Ok(graph)
    }

    /// Queues a recorded graph.
    ///
    /// # Errors
    /// What the driver says, also of earlier work.
    pub fn launch_graph(&self, graph: &Graph) -> Result<(), CudaError> {
        // SAFETY: both live; what the graph's kernels touch is kept by whoever recorded it.
        unsafe { result::graph::launch(graph.executable, self.stream()) }.map_err(driver("launching a step"))
    }
}
