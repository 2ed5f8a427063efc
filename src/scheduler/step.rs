//! What the next step computes: decodes, then prompt chunks, then whoever may begin.
//!
//! Knows no results: those come with the commit.

use std::cmp::Reverse;

use super::fair_queue::Ticket;
use super::sequence::{State, Work};
use super::{ScheduledRow, Scheduler, SchedulerOutput};
use crate::request::SeqId;

/// Stands in `tokens` for a token that is not known yet.
const PLACEHOLDER: u32 = 0;

impl Scheduler {
    /// Fills `output`, whatever it held, with the next step.
    ///
    /// An output [without rows](SchedulerOutput::is_empty) is no step: it is neither executed nor committed, but
    /// `released` counts. With sequences left it comes only while a step is in flight, whose commit frees blocks or
    /// ends sequences.
    ///
    /// # Panics
    /// If more steps are in flight than [`Lag`](super::Lag) allows, or if the bookkeeping is broken.
    pub fn schedule(&mut self, output: &mut SchedulerOutput) {
        assert!(self.in_flight.len() <= self.config.lag.steps(), "steps {:?} are not committed", self.in_flight);
        clear(output);
        std::mem::swap(&mut output.released, &mut self.released);
        self.drop_stale_running();

        let everybody_advances = self.reserve_decodes(output);
        let mut decodes = std::mem::take(&mut self.decodes);
        if !everybody_advances {
            decodes.retain(|&seq| self.is_running(seq));
        }
        for &seq in &decodes {
            self.push_row(seq, 1, output);
        }
        let left = self.config.max_step_tokens as usize - decodes.len();
        // Who has no token yet, but in a step in flight, reads nothing that could falter: a burst that comes in pieces is
        // computed as if it had come at once.
        let budget = if decodes.iter().any(|&seq| self.sequences[seq].generated() > 0) {
            left.min(self.config.prompt_tokens_beside(decodes.len(), self.queue.waiting()))
        } else {
            left
        };
        self.decodes = decodes;
        self.push_prompt_chunks(budget, everybody_advances, output);

        if !output.is_empty() {
            self.steps += 1;
            output.step = self.steps;
            self.in_flight.push_back(self.steps);
        }
    }

    fn drop_stale_running(&mut self) {
        if std::mem::take(&mut self.running_is_stale) {
            let sequences = &self.sequences;
            self.running.retain(|&seq| sequences.get(seq).is_some_and(|sequence| sequence.state == State::Running));
        }
    }

    fn is_running(&self, seq: SeqId) -> bool {
        self.sequences[seq].state == State::Running
    }

    /// Sorts running sequences into those that decode, with room for their next token, and those with prompt left.
    /// Where room is short, preempts. Returns whether nobody was preempted or left out.
    fn reserve_decodes(&mut self, output: &mut SchedulerOutput) -> bool {
        let preemptions = self.preemptions;
        let mut all = true;
        self.decodes.clear();
        self.queue.clear_prompting();
        for at in 0..self.running.len() {
            let seq = self.running[at];
            let sequence = &self.sequences[seq];
            if sequence.state != State::Running {
                continue;
            }
            match sequence.work() {
                Work::Decode => {
                    let reserved = self.reserve_decode(seq, output);
                    self.decodes.extend(reserved.then_some(seq));
                    all &= reserved;
                }
                Work::Prompt => {
                    let (tenant, ticket) = (sequence.tenant, sequence.request.ticket(seq));
                    self.queue.push_prompting(tenant, ticket);
                }
                Work::Nothing => {}
            }
        }
        all && self.preemptions == preemptions
    }

    /// Makes room for the next token of `seq`; false if it has to wait for a commit or was preempted itself.
    fn reserve_decode(&mut self, seq: SeqId, output: &mut SchedulerOutput) -> bool {
        loop {
            let sequence = &mut self.sequences[seq];
            if let Ok(copy) = self.memory.make_writable(&mut sequence.memory, sequence.computed) {
                output.copies.extend(copy);
                return true;
            }
            if self.memory.holds_released() {
                return false;
            }
            let Some(victim) = self.victim() else { return false };
            assert!(self.occupied > 1, "{seq:?} is alone and has no room");
            self.preempt(victim, output);
            if victim == seq {
                return false;
            }
        }
    }

    /// The newest sequence of the tenant that has got the most. Those that end with the step in flight are spared:
    /// they give their blocks back anyway.
    fn victim(&self) -> Option<SeqId> {
        let running = self.running.iter().copied().filter(|&seq| {
            let sequence = &self.sequences[seq];
            sequence.state == State::Running && sequence.work() != Work::Nothing
        });
        running.max_by_key(|&seq| {
            let sequence = &self.sequences[seq];
            (self.queue.counter(sequence.tenant), sequence.request.arrival, sequence.choice)
        })
    }

    /// Sends a running sequence back to the front of its tenant's queue. It keeps its tokens, even one in flight,
    /// and computes them again, as far as the prefix cache has lost them.
    fn preempt(&mut self, seq: SeqId, output: &mut SchedulerOutput) {
        let sequence = &mut self.sequences[seq];
        if let Some(last) = sequence.memory.blocks().last() {
            output.copies.retain(|copy| copy.target != *last);
        }
        self.memory.release(&mut sequence.memory, self.in_flight.back().copied());
        sequence.computed = 0;
        let (tenant, ticket, request) = (sequence.tenant, sequence.request.ticket(seq), sequence.request.id);
        self.set_state(seq, State::Waiting);
        self.set_followers(request, State::Parked);
        self.queue.push_front(tenant, ticket);
        self.preemptions += 1;
    }

    /// Shares `budget` among running prompts and the queue: always the next chunk of whoever has got the least.
    fn push_prompt_chunks(&mut self, mut budget: usize, mut admit: bool, output: &mut SchedulerOutput) {
        let mut turns = std::mem::take(&mut self.turns);
        turns.clear();
        turns.extend(self.queue.places().filter_map(|tenant| self.turn(tenant)));
        while budget > 0 {
            let Some(Reverse((_, _, tenant))) = turns.pop() else { break };
            let seq = match self.queue.pop_prompting(tenant) {
                Some(Ticket { seq, .. }) if !self.is_running(seq) => None,
                Some(Ticket { seq, .. }) => Some(seq),
                None if admit => {
                    let admitted = self.admit_front(tenant);
                    // Nobody overtakes: who cannot begin now would else wait for as long as smaller ones come.
                    admit = admitted.is_some();
                    admitted
                }
                None => continue,
            };
            if let Some(seq) = seq {
                let sequence = &self.sequences[seq];
                let chunk = sequence.left().min(budget);
                self.memory.assert_writable(&sequence.memory, sequence.computed, sequence.computed + chunk);
                self.push_row(seq, chunk, output);
                budget -= chunk;
            }
            turns.extend(self.turn(tenant));
        }
        self.turns = turns;
    }

    fn turn(&self, tenant: usize) -> Option<Reverse<(u64, u64, usize)>> {
        self.queue.turn(tenant).map(|(counter, arrival)| Reverse((counter, arrival, tenant)))
    }

    /// Lets the first of the tenant's queue run, if there is room for it and for its choices.
    fn admit_front(&mut self, tenant: usize) -> Option<SeqId> {
        let Ticket { seq, .. } = self.queue.front(tenant)?;
        let sequence = &mut self.sequences[seq];
        let id = sequence.request.id;
        let request = self.requests.get_mut(&id)?;
        let rows = if request.forked { 1 } else { request.living.len() };
        if self.occupied + rows > self.config.max_sequences as usize {
            return None;
        }
        // Some room for those who run, or they would preempt the newcomer at once.
        let spare = self.occupied.div_ceil(self.config.block_size as usize);
        let wanted = request.prompt_done || !sequence.request.whole_prompt;
        let reuse = self.config.prefix_cache && wanted;
        let computed = self.memory.open(&mut sequence.memory, &sequence.tokens, reuse, spare).ok()?;
        sequence.computed = computed;
        request.cached_tokens.get_or_insert(computed as u32);
        self.queue.remove(tenant, seq);
        self.running.push(seq);
        self.set_state(seq, State::Running);
        self.set_followers(id, State::Following);
        Some(seq)
    }

    /// Adds the next `count` tokens of `seq` to the step.
    fn push_row(&mut self, seq: SeqId, count: usize, output: &mut SchedulerOutput) {
        let sequence = &mut self.sequences[seq];
        let (start, end) = (sequence.computed, sequence.computed + count);
        let known = sequence.tokens.len();
        let follows_sample = end > known;
        sequence.computed = end;

        let tokens = output.tokens.len();
        output.tokens.extend_from_slice(&sequence.tokens[start..end.min(known)]);
        output.tokens.extend(follows_sample.then_some(PLACEHOLDER));
        let blocks = output.block_tables.len();
        let used = self.memory.pool().blocks_for(end);
        output.block_tables.extend_from_slice(&sequence.memory.blocks()[..used]);

        let paid = start.max(sequence.charged);
        let prompt_end = end.min(sequence.prompt_len);
        if paid < prompt_end {
            sequence.charged = prompt_end;
            self.queue.charge_prompt(sequence.tenant, prompt_end - paid);
        }

        let samples = output.samples.len();
        let is_first_prompt = start < sequence.prompt_len && sequence.generated() == 0;
        let prompt_logprobs = is_first_prompt && sequence.request.prompt_logprobs;
        if end == known + sequence.pending {
            sequence.pending += 1;
            output.samples.push(seq);
            if is_first_prompt && sequence.request.choices > 1 {
                self.fork(seq, output);
            }
        }
        output.rows.push(ScheduledRow {
            seq,
            start: start as u32,
            tokens: tokens..output.tokens.len(),
            blocks: blocks..output.block_tables.len(),
            follows_sample,
            samples: samples..output.samples.len(),
            prompt_logprobs,
        });
    }

    /// The prompt of `leader` ends in this step: its other choices go on from here on their own.
    fn fork(&mut self, leader: SeqId, output: &mut SchedulerOutput) {
        let Some(request) = self.requests.get_mut(&self.sequences[leader].request.id) else { return };
        request.forked = true;
        for &seq in &request.living[1..] {
            let memory = self.memory.fork(&self.sequences[leader].memory);
            let sequence = &mut self.sequences[seq];
            // Following and Running both count against `max_sequences`: nothing else changes.
            sequence.state = State::Running;
            sequence.memory = memory;
            sequence.computed = sequence.prompt_len;
            sequence.charged = sequence.prompt_len;
            sequence.pending = 1;
            self.running.push(seq);
            output.samples.push(seq);
        }
    }
}

fn clear(output: &mut SchedulerOutput) {
    let SchedulerOutput { step, copies, rows, tokens, block_tables, samples, released } = output;
    *step = 0;
    copies.clear();
    rows.clear();
    tokens.clear();
    block_tables.clear();
    samples.clear();
    released.clear();
}
