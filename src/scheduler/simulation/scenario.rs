//! What happens in one run, drawn from its seed: limits, requests, and when they come and go.

use std::sync::Arc;

use super::device::next_token;
use crate::request::{FinishReason, Request, SamplingParams, StopConditions, Tenant, TokenId};
use crate::scheduler::{Lag, SchedulerConfig};

/// SplitMix64. Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ mixed >> 31
    }

    /// From `low` to `high`, both included.
    pub(super) fn between(&mut self, low: u32, high: u32) -> u32 {
        low + (self.next() % u64::from(high - low + 1)) as u32
    }

    pub(super) fn one_in(&mut self, times: u32) -> bool {
        self.between(1, times) == 1
    }
}

/// Small, so that stop tokens come up.
pub(super) const VOCABULARY: u32 = 40;

/// One request, and what its client does.
pub(super) struct Plan {
    pub(super) request: Request,
    pub(super) seed: u64,
    pub(super) arrives: u32,
    /// Ticks after its arrival.
    pub(super) cancelled_after: Option<u32>,
    /// A stop string: choice, and after how many of its tokens it is found.
    pub(super) stop_string: Option<(u32, usize)>,
}

impl Plan {
    /// What a choice says when nobody else is there and nobody cancels: the definition of correct.
    pub(super) fn alone(&self, choice: u32, max_model_len: u32) -> (Vec<TokenId>, FinishReason) {
        let stop = &self.request.stop;
        let mut tokens = self.request.prompt.to_vec();
        let prompt_len = tokens.len();
        loop {
            let token = next_token(tokens.iter().copied(), self.seed, choice);
            tokens.push(token);
            let generated = tokens.len() - prompt_len;
            let reason = if generated > stop.min_tokens as usize && stop.is_stop(token) {
                FinishReason::Stop
            } else if generated == stop.max_tokens as usize || tokens.len() == max_model_len as usize {
                FinishReason::Length
            } else if self.stop_string == Some((choice, generated)) {
                FinishReason::Stop
            } else {
                continue;
            };
            return (tokens.split_off(prompt_len), reason);
        }
    }
}

pub(super) struct Scenario {
    pub(super) config: SchedulerConfig,
    pub(super) plans: Vec<Plan>,
}

impl Scenario {
    pub(super) fn draw(seed: u64, lag: Lag) -> Self {
        let mut random = Random(seed);
        let block_size = [1, 2, 3, 4, 8, 16][random.between(0, 5) as usize];
        let max_model_len = random.between(4, 64);
        let max_sequences = random.between(1, 8);
        let smallest = max_model_len.div_ceil(block_size);
        let roomy = smallest * max_sequences + 8;
        let num_blocks =
            if random.one_in(2) { smallest + random.between(0, 3) } else { random.between(smallest, roomy) };
        let config = SchedulerConfig {
            block_size,
            num_blocks,
            max_sequences,
            max_step_tokens: max_sequences + random.between(0, 40),
            max_prompt_chunk_while_decoding: random.between(1, 24),
            prompt_tokens_per_decode: random.between(0, 3),
            prompt_tokens_per_waiting: random.between(0, 2),
            step_multiple: random.between(1, 4),
            max_model_len,
            max_waiting: random.between(2, 30),
            max_waiting_per_tenant: random.between(1, 30),
            prefix_cache: true,
            lag,
        };
        let prefixes: Vec<Vec<TokenId>> =
            (0..3).map(|_| (0..max_model_len).map(|_| random.between(0, VOCABULARY - 1)).collect()).collect();
        let count = random.between(1, 24);
        let span = random.between(1, 60);
        let plans = (0..count).map(|_| draw_plan(&mut random, &config, &prefixes, span)).collect();
        Self { config, plans }
    }
}

fn draw_plan(random: &mut Random, config: &SchedulerConfig, prefixes: &[Vec<TokenId>], span: u32) -> Plan {
    let prompt_len = random.between(1, config.max_model_len - 1);
    let shared = random.between(0, prompt_len) as usize;
    let mut prompt = prefixes[random.between(0, 2) as usize][..shared].to_vec();
    prompt.resize_with(prompt_len as usize, || random.between(0, VOCABULARY - 1));
    let n = if random.one_in(2) { 1 } else { random.between(1, 4.min(config.max_sequences)) };
    let request = Request {
        prompt: prompt.into(),
        n,
        sampling: SamplingParams { prompt_logprobs: random.one_in(8).then_some(1), ..SamplingParams::default() },
        stop: StopConditions {
            max_tokens: random.between(1, 30),
            min_tokens: random.between(0, 6),
            ignore_eos: random.one_in(3),
            eos_token_ids: Arc::from([0]),
            stop_token_ids: (0..random.between(0, 2)).map(|_| random.between(0, VOCABULARY - 1)).collect(),
        },
        tenant: Tenant::new(format!("tenant {}", random.between(0, 3))),
        cache_salt: [None, None, Some("a"), Some("b")][random.between(0, 3) as usize].map(Arc::from),
        priority: 0,
        masks: None,
        pooling: None,
        answered: 0,
    };
    Plan {
        request,
        seed: random.next(),
        arrives: random.between(0, span),
        cancelled_after: random.one_in(6).then(|| random.between(0, 40)),
        stop_string: random.one_in(6).then(|| (random.between(0, n - 1), random.between(1, 10) as usize)),
    }
}
