//! Seeded runs of the scheduler against a fake device: arrivals, tenants, choices, cancels, exhaustion.
//!
//! Each run is made with lag 0 and with lag 1, and every answer must be the one that the request gets alone.
//! `LANTERN_SIM_SEEDS` sets how many seeds run, `LANTERN_SIM_FIRST_SEED` where they begin.

mod device;
mod invariants;
mod scenario;

use std::collections::VecDeque;

use super::{AdmitError, Lag, Scheduler, SchedulerEvent, SchedulerOutput, SchedulerStats};
use crate::request::{FinishReason, RequestId, SeqId, TokenId};
use device::{Device, Stream};
use invariants::{check_accounts, check_step};
use scenario::{Random, Scenario};

/// One choice as its client sees it.
#[derive(Default)]
struct Answer {
    seq: Option<SeqId>,
    tokens: Vec<TokenId>,
    finished: Option<FinishReason>,
}

#[derive(Default)]
struct Client {
    admitted_at: Option<u32>,
    prompt_done: bool,
    answers: Vec<Answer>,
    /// Positions whose prompt log-probabilities came.
    prompt_logprobs: Vec<bool>,
}

struct Simulation {
    scenario: Scenario,
    random: Random,
    scheduler: Scheduler,
    device: Device,
    clients: Vec<Client>,
    in_flight: VecDeque<(SchedulerOutput, Vec<(SeqId, TokenId)>)>,
    events: Vec<SchedulerEvent>,
}

impl Simulation {
    fn new(seed: u64, lag: Lag) -> Self {
        let scenario = Scenario::draw(seed, lag);
        let config = scenario.config.clone();
        let new_client = |plan: &scenario::Plan| Client {
            answers: (0..plan.request.n).map(|_| Answer::default()).collect(),
            prompt_logprobs: vec![false; plan.request.prompt.len()],
            ..Client::default()
        };
        Self {
            device: Device::new(config.num_blocks, config.block_size),
            scheduler: Scheduler::new(config, [9; 16]).unwrap(),
            clients: scenario.plans.iter().map(new_client).collect(),
            random: Random(seed ^ 0x5EED),
            in_flight: VecDeque::new(),
            events: Vec::new(),
            scenario,
        }
    }

    fn run(mut self) -> SchedulerStats {
        let last_arrival = self.scenario.plans.iter().map(|plan| plan.arrives).max().unwrap_or(0);
        for tick in 0.. {
            assert!(tick < 20_000, "somebody starves");
            if self.scheduler.is_idle() && self.random.one_in(2) {
                self.resize();
            }
            let all_came = self.arrivals(tick);
            self.cancels(tick);
            self.check();
            // Where masks need the last token, an engine with lag 1 commits before it schedules.
            if self.scenario.config.lag == Lag::Zero || self.random.one_in(6) {
                self.commit_all();
            }
            let launched = self.launch();
            if self.scenario.config.lag == Lag::Zero || !launched || self.in_flight.len() == 2 {
                let progress = self.commit_oldest();
                let idle = self.scheduler.is_idle();
                assert!(progress || idle || !all_came || tick <= last_arrival + 41, "sequences live and nothing runs");
            }
            if all_came && self.scheduler.is_idle() {
                break;
            }
        }
        self.check_end();
        self.scheduler.stats()
    }

    /// Nobody is there: the cache may have another size.
    fn resize(&mut self) {
        let config = &self.scenario.config;
        let blocks = self.random.between(config.least_blocks(), config.num_blocks);
        self.scheduler.resize_cache(blocks);
        self.device.resize(blocks);
    }

    /// Returns whether every client has been let in; the refused try again.
    fn arrivals(&mut self, tick: u32) -> bool {
        let mut all = true;
        for at in 0..self.clients.len() {
            let plan = &self.scenario.plans[at];
            if self.clients[at].admitted_at.is_some() {
                continue;
            }
            if plan.arrives > tick {
                all = false;
                continue;
            }
            match self.scheduler.add(RequestId(at as u64), &plan.request) {
                Ok(sequences) => {
                    self.clients[at].admitted_at = Some(tick);
                    for (choice, seq) in sequences.into_iter().enumerate() {
                        self.clients[at].answers[choice].seq = Some(seq);
                        let salt = plan.request.cache_salt.clone();
                        let stream = Stream { seed: plan.seed, choice: choice as u32, salt, last: None };
                        assert!(self.device.streams.insert(seq, stream).is_none(), "{seq:?} is given twice");
                    }
                }
                Err(AdmitError::QueueFull { .. } | AdmitError::TenantQueueFull { .. }) => all = false,
                Err(error) => panic!("{error}"),
            }
        }
        all
    }

    fn cancels(&mut self, tick: u32) {
        for at in 0..self.clients.len() {
            let Some(admitted) = self.clients[at].admitted_at else { continue };
            if self.scenario.plans[at].cancelled_after == Some(tick - admitted) {
                self.scheduler.cancel(RequestId(at as u64), &mut self.events);
                self.take_events();
            }
        }
    }

    /// Schedules a step and starts it.
    fn launch(&mut self) -> bool {
        let mut output = SchedulerOutput::default();
        self.scheduler.schedule(&mut output);
        check_step(&self.scheduler, &output, self.in_flight.back().map(|(step, _)| step));
        for row in output.rows.iter().filter(|row| row.prompt_logprobs) {
            let client = self.clients.iter_mut().find(|client| client.answers.iter().any(|a| a.seq == Some(row.seq)));
            let wanted = &mut client.unwrap().prompt_logprobs;
            wanted[row.start as usize..][..row.tokens.len()].fill(true);
        }
        let samples = self.device.execute(&output);
        let launched = !output.is_empty();
        assert!(launched || output.copies.is_empty());
        if launched {
            self.in_flight.push_back((output, samples));
        }
        self.check();
        launched
    }

    fn commit_oldest(&mut self) -> bool {
        let Some((output, samples)) = self.in_flight.pop_front() else { return false };
        self.scheduler.commit(&output, &samples, &mut self.events);
        self.take_events();
        self.check();
        true
    }

    fn commit_all(&mut self) {
        while self.commit_oldest() {}
    }

    fn check(&self) {
        let in_flight: Vec<_> = self.in_flight.iter().map(|(output, _)| output).collect();
        check_accounts(&self.scheduler, &in_flight);
    }

    /// What the clients see, in order; stop strings end choices from here.
    fn take_events(&mut self) {
        let mut stopped = Vec::new();
        for event in std::mem::take(&mut self.events) {
            match event {
                SchedulerEvent::PromptDone { request, cached_tokens } => {
                    let at = request.0 as usize;
                    let sampling = &self.scenario.plans[at].request.sampling;
                    assert!(!std::mem::replace(&mut self.clients[at].prompt_done, true), "PromptDone comes once");
                    assert!((cached_tokens as usize) < self.scenario.plans[at].request.prompt.len());
                    assert!(sampling.prompt_logprobs.is_none() || cached_tokens == 0);
                }
                SchedulerEvent::Token { request, choice, seq, token } => {
                    let at = request.0 as usize;
                    assert!(self.clients[at].prompt_done, "PromptDone comes first");
                    let answer = &mut self.clients[at].answers[choice as usize];
                    assert_eq!((answer.seq, answer.finished), (Some(seq), None), "nothing follows the end");
                    answer.tokens.push(token);
                    if self.scenario.plans[at].stop_string == Some((choice, answer.tokens.len())) {
                        stopped.push(seq);
                    }
                }
                SchedulerEvent::Finished { request, choice, seq, reason } => {
                    let answer = &mut self.clients[request.0 as usize].answers[choice as usize];
                    assert_eq!((answer.seq, answer.finished), (Some(seq), None), "Finished comes once");
                    answer.finished = Some(reason);
                }
            }
        }
        for seq in stopped {
            if self.scheduler.finish(seq, FinishReason::Stop, &mut self.events) {
                self.take_events();
            }
        }
    }

    fn check_end(&self) {
        assert_eq!(
            self.scheduler.memory.pool().num_free(),
            self.scheduler.memory.pool().num_total(),
            "blocks are lost"
        );
        assert!(self.device.streams.is_empty(), "sequences were not released");
        assert!(self.scheduler.requests.is_empty());
        for (at, (plan, client)) in self.scenario.plans.iter().zip(&self.clients).enumerate() {
            let wants_logprobs = plan.request.sampling.prompt_logprobs.is_some();
            if client.prompt_done {
                assert!(client.prompt_logprobs.iter().all(|&came| came == wants_logprobs), "log-probabilities of {at}");
            }
            for (choice, answer) in client.answers.iter().enumerate() {
                let (tokens, reason) = plan.alone(choice as u32, self.scenario.config.max_model_len);
                match answer.finished {
                    Some(FinishReason::Cancelled) => {
                        assert!(plan.cancelled_after.is_some(), "request {at}, choice {choice}");
                        assert!(tokens.starts_with(&answer.tokens), "request {at}, choice {choice}");
                    }
                    Some(finished) => {
                        assert_eq!(answer.tokens, tokens, "request {at}, choice {choice}");
                        assert_eq!(finished, reason, "request {at}, choice {choice}");
                    }
                    None => panic!("request {at}, choice {choice} has no end"),
                }
            }
        }
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().expect("a number of seeds"))
}

#[test]
fn every_request_gets_what_it_gets_alone() {
    let first = number("LANTERN_SIM_FIRST_SEED", 0);
    let seeds = number("LANTERN_SIM_SEEDS", 500);
    let (mut preemptions, mut hits, mut evictions) = (0, 0, 0);
    for seed in first..first + seeds {
        for lag in [Lag::Zero, Lag::One] {
            let run = std::panic::catch_unwind(|| Simulation::new(seed, lag).run());
            let stats = run.unwrap_or_else(|_| panic!("seed {seed} fails with lag {lag:?}"));
            preemptions += stats.preemptions;
            hits += stats.prefix_hit_tokens;
            evictions += stats.evictions;
        }
    }
    println!(
        "{seeds} seeds: {preemptions} preemptions, {hits} tokens found in the prefix cache, {evictions} evictions"
    );
    assert!(seeds < 100 || (preemptions > seeds && hits > seeds && evictions > seeds), "the runs are too easy");
}
