//! How long work takes on the GPU itself, without what the host spends to queue it.

use cudarc::driver::{result, sys};

use super::error::driver;
use super::{CudaError, Gpu};

/// Replays of which the fastest counts.
const REPLAYS: usize = 3;

/// A captured sequence of launches, with the two events around a replay.
struct Recording {
    graph: sys::CUgraph,
    executable: Option<sys::CUgraphExec>,
    events: Vec<sys::CUevent>,
}

impl Drop for Recording {
    fn drop(&mut self) {
        // SAFETY: each was created by `Gpu::record` and is destroyed once; `time` has waited for the replays.
        unsafe {
            for event in self.events.drain(..) {
                let _ = result::event::destroy(event);
            }
            if let Some(executable) = self.executable.take() {
                let _ = result::graph::exec_destroy(executable);
            }
            let _ = result::graph::destroy(self.graph);
        }
    }
}

impl Gpu {
    /// Microseconds that one call of `work` keeps the GPU busy: the fastest replay of a graph of `repeats` calls,
    /// after one plain call to warm up. `work` may queue kernels and copies; it may not allocate or wait. To keep the
    /// L2 cache from flattering, let it take other buffers at each call.
    ///
    /// # Errors
    /// What the driver says, and what `work` returns.
    pub fn time(&self, repeats: usize, mut work: impl FnMut(&Self) -> Result<(), CudaError>) -> Result<f64, CudaError> {
        self.bind()?;
        work(self)?;
        self.synchronize()?;
        let recording = self.record(repeats, &mut work)?;
        let executable = recording.executable.expect("recorded");
        let [start, end] = recording.events[..] else { unreachable!("two events") };
        let mut fastest = f64::INFINITY;
        for _ in 0..=REPLAYS {
            // SAFETY: graph, events and stream are alive, and the events are on this stream.
            let milliseconds = unsafe {
                result::event::record(start, self.stream()).map_err(driver("timing"))?;
                result::graph::launch(executable, self.stream()).map_err(driver("replaying a graph"))?;
                result::event::record(end, self.stream()).map_err(driver("timing"))?;
                self.synchronize()?;
                result::event::elapsed(start, end).map_err(driver("timing"))?
            };
            fastest = fastest.min(f64::from(milliseconds) * 1e3 / repeats.max(1) as f64);
        }
        Ok(fastest)
    }

    fn record(
        &self,
        repeats: usize,
        work: &mut impl FnMut(&Self) -> Result<(), CudaError>,
    ) -> Result<Recording, CudaError> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream is alive and captures nothing yet; the capture ends below whatever `work` says.
        unsafe { result::stream::begin_capture(self.stream(), mode) }.map_err(driver("capturing a graph"))?;
        let queued = (0..repeats.max(1)).try_for_each(|_| work(self));
        // SAFETY: begun above.
        let graph = unsafe { result::stream::end_capture(self.stream()) }.map_err(driver("capturing a graph"));
        let graph = match queued {
            Ok(()) => graph?,
            Err(error) => {
                // SAFETY: a graph that was captured belongs to this function.
                let _ = graph.map(|graph| unsafe { result::graph::destroy(graph) });
                return Err(error);
            }
        };
        let mut recording = Recording { graph, executable: None, events: Vec::new() };
        // SAFETY: the graph is alive.
        let executable = unsafe { result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0)) };
        recording.executable = Some(executable.map_err(driver("instantiating a graph"))?);
        for _ in 0..2 {
            let event = result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT).map_err(driver("an event"))?;
            recording.events.push(event);
        }
        Ok(recording)
    }
}
