//! Decides what each step computes. Plain data in, plain data out: knows no tensors, no async runtime.
//!
//! There is no prompt phase and no answer phase. A sequence has tokens, `computed` of which are in the cache, and
//! wants the rest computed; a step has a budget of tokens. Those who decode come first, then prompt chunks of
//! whoever has got the least (`fair_queue`). Long prompts, prefix hits and preempted sequences need no modes.
//!
//! Invariants, held by assertions in release builds and by the simulation:
//! - a block is free, or as many tables hold it as it has references; nobody writes a block that others can read;
//! - only blocks whose step is committed are in the prefix index;
//! - what a step in flight may write is reused only after its commit;
//! - if anything runs, somebody advances; alone, a sequence always has room.

mod admission;
mod commit;
mod config;
mod event;
mod fair_queue;
mod memory;
mod output;
mod sequence;
#[cfg(test)]
mod simulation;
mod step;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};

pub use crate::config::Lag;
pub use admission::AdmitError;
pub use config::{CROWD_CHUNKS, ConfigError, SchedulerConfig};
pub use event::{SchedulerEvent, SchedulerStats, TenantStats};
pub use output::{BlockCopy, ScheduledRow, SchedulerOutput};

use crate::kv_cache::BlockPool;
pub use crate::kv_cache::{BlockId, blocks_for};
use crate::request::{RequestId, SeqId};
use fair_queue::FairQueue;
use memory::Memory;
use sequence::Sequences;

/// One request's living choices.
struct RequestState {
    /// In the order of choices. Until `forked`, the first is the leader, who computes the prompt for all.
    living: Vec<SeqId>,
    /// Whether each choice has its own table.
    forked: bool,
    prompt_done: bool,
    /// Prompt tokens that the prefix cache held when the request began.
    cached_tokens: Option<u32>,
}

/// All requests of one engine, from [`Scheduler::add`] to their last [`SchedulerEvent::Finished`].
///
/// With [`Lag::Zero`] the caller schedules, executes and commits in turn. With [`Lag::One`] it may schedule the
/// next step before it commits the last; then the tokens that are not known yet are placeholders, and what was
/// computed past a sequence's end is dropped at its commit.
pub struct Scheduler {
    config: SchedulerConfig,
    sequences: Sequences,
    requests: HashMap<RequestId, RequestState>,
    queue: FairQueue,
    memory: Memory,
    /// Sequences that hold blocks, by admission. May hold some that have stopped running, see `running_is_stale`.
    running: Vec<SeqId>,
    running_is_stale: bool,
    /// Sequences that count against `max_sequences`.
    occupied: usize,
    /// Steps that are not committed, oldest first.
    in_flight: VecDeque<u64>,
    steps: u64,
    arrivals: u64,
    preemptions: u64,
    /// Ended since the last step was scheduled.
    released: Vec<SeqId>,
    /// Buffer of one step: sequences whose next position can be written.
    decodes: Vec<SeqId>,
    /// Buffer of one step: tenants by turn.
    turns: BinaryHeap<Reverse<(u64, u64, usize)>>,
}

impl Scheduler {
    /// A scheduler without requests. `hash_key` is drawn at random for each engine.
    ///
    /// # Errors
    /// Limits that contradict each other.
    pub fn new(config: SchedulerConfig, hash_key: [u8; 16]) -> Result<Self, ConfigError> {
        config.validate()?;
        let pool = BlockPool::new(config.num_blocks, config.block_size, hash_key);
        Ok(Self {
            config,
            sequences: Sequences::default(),
            requests: HashMap::new(),
            queue: FairQueue::default(),
            memory: Memory::new(pool),
            running: Vec::new(),
            running_is_stale: false,
            occupied: 0,
            in_flight: VecDeque::new(),
            steps: 0,
            arrivals: 0,
            preemptions: 0,
            released: Vec::new(),
            decodes: Vec::new(),
            turns: BinaryHeap::new(),
        })
    }

    /// The limits.
    pub fn config(&self) -> &SchedulerConfig {
        &self.config
    }

    /// Whether no sequence lives, no step is in flight and no ended sequence is left to be told by
    /// [`SchedulerOutput::released`].
    pub fn is_idle(&self) -> bool {
        self.sequences.len() == 0 && self.in_flight.is_empty() && self.released.is_empty()
    }

    /// Plans with `blocks` blocks of the KV cache from now on. Prefixes that lie in those that stay are found as before.
    ///
    /// # Panics
    /// If it is not idle, or that is less than [`SchedulerConfig::least_blocks`] or more than it began with.
    pub fn resize_cache(&mut self, blocks: u32) {
        let (least, most) = (self.config.least_blocks(), self.config.num_blocks);
        assert!(self.is_idle(), "the KV cache is resized while sequences live");
        assert!((least..=most).contains(&blocks), "{blocks} blocks of KV cache, and {least} to {most} may be");
        self.memory.resize(blocks);
    }

    /// What it holds now, and counts since the start.
    pub fn stats(&self) -> SchedulerStats {
        let pool = self.memory.pool();
        let counts = pool.stats();
        SchedulerStats {
            running: self.occupied,
            waiting: self.queue.waiting(),
            preemptions: self.preemptions,
            prefix_queried_tokens: counts.queried_tokens,
            prefix_hit_tokens: counts.hit_tokens,
            evictions: counts.evictions,
            blocks_used: pool.num_total() - pool.num_free(),
            blocks_total: pool.num_total(),
        }
    }

    /// What each tenant got.
    pub fn tenants(&self) -> impl Iterator<Item = TenantStats<'_>> {
        self.queue.stats()
    }
}
