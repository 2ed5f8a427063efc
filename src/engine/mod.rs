//! The loop that turns requests into tokens, on one OS thread of its own. Knows no HTTP and no text.

mod handle;
mod metrics;

pub(crate) use handle::{Command, EngineInbox, Submission, channel};
pub use handle::{EVENT_CAPACITY, EngineHandle, EngineLimits, EngineStatus, RequestStream, SubmitError};
pub use metrics::{EngineMetrics, MetricsSnapshot};
