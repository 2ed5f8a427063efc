//! The door: which requests come in.
//!
//! Knows the limits, not the load of a step. What is refused here is refused whole, with the numbers that say why.

use std::sync::Arc;

use thiserror::Error;

use super::sequence::{RequestFacts, Sequence, State};
use super::{RequestState, Scheduler};
use crate::request::{Pooling, Request, RequestId, SeqId};

/// Why a request is not taken.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum AdmitError {
    /// Nothing to go on from.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// `n` is 0.
    #[error("n is 0, it must be at least 1")]
    NoChoices,
    /// `max_tokens` is 0.
    #[error("max_tokens is 0, it must be at least 1")]
    NoTokens,
    /// The prompt leaves no room for an answer.
    #[error("the prompt has {prompt_tokens} tokens, but prompt and answer may have {max_model_len} together")]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// Most tokens of prompt and answer.
        max_model_len: u32,
    },
    /// The choices could never compute together.
    #[error("n is {n}, but at most {max_sequences} sequences compute at a time")]
    TooManyChoices {
        /// Choices asked for.
        n: u32,
        /// Most sequences that compute at a time.
        max_sequences: u32,
    },
    /// Everybody's queue is full: try again later.
    #[error("{waiting} requests wait already, at most {max_waiting} may")]
    QueueFull {
        /// Requests that wait.
        waiting: usize,
        /// Most that may.
        max_waiting: u32,
    },
    /// The tenant's queue is full: try again later.
    #[error("{waiting} requests of this client wait already, at most {max_waiting} may")]
    TenantQueueFull {
        /// Requests of this tenant that wait.
        waiting: usize,
        /// Most that may.
        max_waiting: u32,
    },
    /// The caller has used this id before and the request still lives.
    #[error("request {0:?} is there already")]
    DuplicateRequest(RequestId),
}

impl Scheduler {
    /// Takes a request. Returns its sequences, one a choice, in order.
    ///
    /// # Errors
    /// The limit that it breaks. It leaves nothing behind then.
    pub fn add(&mut self, id: RequestId, request: &Request) -> Result<Vec<SeqId>, AdmitError> {
        self.check(id, request)?;
        let facts = Arc::new(RequestFacts {
            id,
            arrival: self.arrivals,
            choices: request.n,
            priority: request.priority,
            stop: request.stop.clone(),
            prompt_logprobs: request.sampling.prompt_logprobs.is_some(),
            whole_prompt: request.sampling.prompt_logprobs.is_some() || request.pooling == Some(Pooling::Mean),
        });
        self.arrivals += 1;
        let prompt_len = request.prompt.len();
        let longest = self.config.max_model_len as usize;
        let mut living = Vec::with_capacity(request.n as usize);
        for choice in 0..request.n {
            living.push(self.sequences.insert(Sequence {
                request: facts.clone(),
                choice,
                tenant: self.queue.enter(&request.tenant),
                state: if choice == 0 { State::Waiting } else { State::Parked },
                prompt_len,
                max_len: longest.min(prompt_len.saturating_add(request.stop.max_tokens as usize)),
                tokens: request.prompt.to_vec(),
                pending: 0,
                computed: 0,
                charged: 0,
                memory: self.memory.sequence(request.cache_salt.as_deref()),
            }));
        }
        let leader = living[0];
        self.queue.push_back(self.sequences[leader].tenant, facts.ticket(leader));
        let sequences = living.clone();
        self.requests.insert(id, RequestState { living, forked: false, prompt_done: false, cached_tokens: None });
        Ok(sequences)
    }

    fn check(&self, id: RequestId, request: &Request) -> Result<(), AdmitError> {
        let config = &self.config;
        let prompt_tokens = request.prompt.len();
        let waiting = self.queue.waiting();
        let waiting_of_tenant = self.queue.waiting_of(&request.tenant);
        if prompt_tokens == 0 {
            Err(AdmitError::EmptyPrompt)
        } else if request.n == 0 {
            Err(AdmitError::NoChoices)
        } else if request.stop.max_tokens == 0 {
            Err(AdmitError::NoTokens)
        } else if prompt_tokens >= config.max_model_len as usize {
            Err(AdmitError::PromptTooLong { prompt_tokens, max_model_len: config.max_model_len })
        } else if request.n > config.max_sequences {
            Err(AdmitError::TooManyChoices { n: request.n, max_sequences: config.max_sequences })
        } else if waiting >= config.max_waiting as usize {
            Err(AdmitError::QueueFull { waiting, max_waiting: config.max_waiting })
        } else if waiting_of_tenant >= config.max_waiting_per_tenant as usize {
            let max_waiting = config.max_waiting_per_tenant;
            Err(AdmitError::TenantQueueFull { waiting: waiting_of_tenant, max_waiting })
        } else if self.requests.contains_key(&id) {
            Err(AdmitError::DuplicateRequest(id))
        } else {
            Ok(())
        }
    }
}
