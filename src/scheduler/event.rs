//! What a committed step tells, and what can be counted. Plain data.

use crate::request::{FinishReason, RequestId, SeqId, Tenant, TokenId};

/// What happened to a request, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SchedulerEvent {
    /// The prompt is computed; comes once, before the request's first token.
    PromptDone {
        /// Whose prompt.
        request: RequestId,
        /// Prompt tokens that the prefix cache held.
        cached_tokens: u32,
    },
    /// One more token of one choice.
    Token {
        /// Whose token.
        request: RequestId,
        /// Which choice, from 0.
        choice: u32,
        /// The choice's sequence.
        seq: SeqId,
        /// The token.
        token: TokenId,
    },
    /// One choice has ended; comes exactly once a choice, and nothing follows for it.
    Finished {
        /// Whose choice.
        request: RequestId,
        /// Which choice, from 0.
        choice: u32,
        /// The choice's sequence.
        seq: SeqId,
        /// Why.
        reason: FinishReason,
    },
}

/// What the scheduler holds now, and its counts since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SchedulerStats {
    /// Sequences that compute, or wait for their first choice to compute the prompt.
    pub running: usize,
    /// Entries in the queue: requests not begun, and preempted sequences.
    pub waiting: usize,
    /// How often a sequence had to give its blocks back.
    pub preemptions: u64,
    /// Tokens of full blocks that were looked for in the prefix cache.
    pub prefix_queried_tokens: u64,
    /// Tokens that were found there.
    pub prefix_hit_tokens: u64,
    /// Blocks whose content was given up for another.
    pub evictions: u64,
    /// Blocks that sequences hold.
    pub blocks_used: usize,
    /// All blocks.
    pub blocks_total: usize,
}

/// What one tenant got since it came. A tenant that has been idle for long may be forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TenantStats<'a> {
    /// Who.
    pub tenant: &'a Tenant,
    /// Prompt tokens computed, without those that the prefix cache held.
    pub prompt_tokens: u64,
    /// Tokens generated.
    pub output_tokens: u64,
    /// Entries in the queue.
    pub waiting: usize,
}
