//! Decides what each step computes. Plain data in, plain data out: knows no tensors, no async runtime.

mod output;

pub use output::{BlockCopy, ScheduledRow, SchedulerOutput};
