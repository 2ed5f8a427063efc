//! What the engine counts, for `/metrics`, `ps` and the benchmark. Read at any time from any thread.
//!
//! Knows no exposition format.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Counters (only grow) and gauges of one engine.
#[derive(Debug, Default)]
pub struct EngineMetrics {
    pub(crate) running: AtomicU64,
    pub(crate) waiting: AtomicU64,
    pub(crate) blocks_total: AtomicU64,
    pub(crate) blocks_used: AtomicU64,
    pub(crate) kv_given_back_bytes: AtomicU64,
    pub(crate) steps: AtomicU64,
    pub(crate) prompt_tokens: AtomicU64,
    pub(crate) generated_tokens: AtomicU64,
    pub(crate) preemptions: AtomicU64,
    pub(crate) prefix_queries: AtomicU64,
    pub(crate) prefix_hits: AtomicU64,
    pub(crate) model_nanoseconds: AtomicU64,
    pub(crate) step_nanoseconds: AtomicU64,
}

/// One reading of [`EngineMetrics`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MetricsSnapshot {
    /// Sequences that are being computed (gauge).
    pub running: u64,
    /// Requests that wait (gauge).
    pub waiting: u64,
    /// Blocks in the pool (gauge).
    pub blocks_total: u64,
    /// Blocks that live sequences hold (gauge).
    pub blocks_used: u64,
    /// Bytes of what was planned for the KV cache that it has given back (gauge).
    pub kv_given_back_bytes: u64,
    /// Steps done.
    pub steps: u64,
    /// Prompt tokens computed or found in the prefix cache.
    pub prompt_tokens: u64,
    /// Tokens generated.
    pub generated_tokens: u64,
    /// Sequences put back for want of blocks.
    pub preemptions: u64,
    /// Tokens looked up in the prefix index.
    pub prefix_queries: u64,
    /// Tokens found there.
    pub prefix_hits: u64,
    /// Time inside the model's forward pass, in nanoseconds.
    pub model_nanoseconds: u64,
    /// Time of whole steps, in nanoseconds.
    pub step_nanoseconds: u64,
}

impl EngineMetrics {
    /// All values; each is read by itself, so they may be of neighbouring steps.
    pub fn snapshot(&self) -> MetricsSnapshot {
        MetricsSnapshot {
            running: self.running.load(Relaxed),
            waiting: self.waiting.load(Relaxed),
            blocks_total: self.blocks_total.load(Relaxed),
            blocks_used: self.blocks_used.load(Relaxed),
            kv_given_back_bytes: self.kv_given_back_bytes.load(Relaxed),
            steps: self.steps.load(Relaxed),
            prompt_tokens: self.prompt_tokens.load(Relaxed),
            generated_tokens: self.generated_tokens.load(Relaxed),
            preemptions: self.preemptions.load(Relaxed),
            prefix_queries: self.prefix_queries.load(Relaxed),
            prefix_hits: self.prefix_hits.load(Relaxed),
            model_nanoseconds: self.model_nanoseconds.load(Relaxed),
            step_nanoseconds: self.step_nanoseconds.load(Relaxed),
        }
    }

    /// A guess at when a place in a full queue is free, in seconds: the longer the queue, the later.
    pub(crate) fn retry_after_s(&self) -> u32 {
        let waiting = self.waiting.load(Relaxed);
        u32::try_from(1 + waiting / 16).unwrap_or(60).min(60)
    }
}
