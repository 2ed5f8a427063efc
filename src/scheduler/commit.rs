//! What becomes of sampled tokens, and how sequences end.
//!
//! Knows no budget. Only here do tokens become known, blocks enter the prefix index, and steps leave flight.

use super::sequence::State;
use super::{ScheduledRow, Scheduler, SchedulerEvent, SchedulerOutput};
use crate::request::{FinishReason, RequestId, SeqId, TokenId};

impl Scheduler {
    /// Takes in the results of a step: `sampled` has one token for each of `output.samples`, in that order. Tokens
    /// of sequences that have ended meanwhile are dropped. What happened is added to `events`.
    ///
    /// # Panics
    /// If `output` is not the oldest step in flight, or `sampled` does not belong to it.
    pub fn commit(&mut self, output: &SchedulerOutput, sampled: &[(SeqId, TokenId)], events: &mut Vec<SchedulerEvent>) {
        let oldest = self.in_flight.pop_front();
        assert!(oldest == Some(output.step), "step {} is committed, {oldest:?} is the oldest in flight", output.step);
        assert!(sampled.len() == output.samples.len(), "{} of {} tokens", sampled.len(), output.samples.len());
        for row in &output.rows {
            self.publish(row);
            for at in row.samples.clone() {
                let (seq, token) = sampled[at];
                assert!(seq == output.samples[at], "a token for {seq:?} instead of {:?}", output.samples[at]);
                self.take_token(seq, token, events);
            }
        }
        self.memory.committed(output.step);
    }

    /// The row's blocks are computed now; their owner may have lost them since.
    fn publish(&mut self, row: &ScheduledRow) {
        if let Some(sequence) = self.sequences.get_mut(row.seq)
            && sequence.state == State::Running
        {
            let computed = row.start as usize + row.tokens.len();
            self.memory.publish(&mut sequence.memory, &sequence.tokens[..computed]);
        }
    }

    fn take_token(&mut self, seq: SeqId, token: TokenId, events: &mut Vec<SchedulerEvent>) {
        let Some(sequence) = self.sequences.get_mut(seq) else { return };
        sequence.pending -= 1;
        sequence.tokens.push(token);
        let request = sequence.request.id;
        if sequence.generated() == 1
            && let Some(state) = self.requests.get_mut(&request)
            && !std::mem::replace(&mut state.prompt_done, true)
        {
            let cached_tokens = state.cached_tokens.unwrap_or(0);
            events.push(SchedulerEvent::PromptDone { request, cached_tokens });
        }
        events.push(SchedulerEvent::Token { request, choice: sequence.choice, seq, token });
        self.queue.charge_output_token(sequence.tenant);
        if let Some(reason) = sequence.end() {
            self.finish(seq, reason, events);
        }
    }

    /// Ends every choice of a request that still lives, as [`FinishReason::Cancelled`]. Returns false if there is
    /// no such request.
    pub fn cancel(&mut self, request: RequestId, events: &mut Vec<SchedulerEvent>) -> bool {
        let Some(state) = self.requests.get(&request) else { return false };
        // The last first: so no choice becomes the leader for a moment.
        for seq in state.living.clone().into_iter().rev() {
            self.finish(seq, FinishReason::Cancelled, events);
        }
        true
    }

    /// Ends one choice for a reason from outside, such as a stop string. It is in no later step; its blocks are
    /// free as soon as no step in flight can use them. Returns false if it has ended already.
    pub fn finish(&mut self, seq: SeqId, reason: FinishReason, events: &mut Vec<SchedulerEvent>) -> bool {
        let Some(mut sequence) = self.sequences.remove(seq) else { return false };
        let request = sequence.request.id;
        events.push(SchedulerEvent::Finished { request, choice: sequence.choice, seq, reason });
        self.memory.release(&mut sequence.memory, self.in_flight.back().copied());
        self.leave_state(sequence.state);
        if sequence.state == State::Waiting {
            self.queue.remove(sequence.tenant, seq);
        }
        self.released.push(seq);
        self.leave_request(seq, request, sequence.charged);
        self.queue.leave(sequence.tenant);
        true
    }

    /// Takes an ended choice off its request. If it was to compute the prompt for others, the next one does.
    fn leave_request(&mut self, seq: SeqId, request: RequestId, charged: usize) {
        let Some(state) = self.requests.get_mut(&request) else { return };
        let was_leader = !state.forked && state.living.first() == Some(&seq);
        state.living.retain(|&living| living != seq);
        let Some(&next) = state.living.first() else {
            self.requests.remove(&request);
            return;
        };
        if was_leader {
            self.set_state(next, State::Waiting);
            self.set_followers(request, State::Parked);
            let sequence = &mut self.sequences[next];
            sequence.charged = charged;
            let ticket = sequence.request.ticket(next);
            self.queue.push_front(sequence.tenant, ticket);
        }
    }

    pub(super) fn set_state(&mut self, seq: SeqId, state: State) {
        let old = std::mem::replace(&mut self.sequences[seq].state, state);
        self.leave_state(old);
        self.occupied += usize::from(state.occupies());
    }

    /// Sets the state of the choices that wait for their leader to compute the prompt.
    pub(super) fn set_followers(&mut self, request: RequestId, state: State) {
        let Some(request) = self.requests.get(&request).filter(|request| !request.forked) else { return };
        for &follower in &request.living[1..] {
            let old = std::mem::replace(&mut self.sequences[follower].state, state);
            self.occupied += usize::from(state.occupies());
            self.occupied -= usize::from(old.occupies());
        }
    }

    fn leave_state(&mut self, state: State) {
        self.occupied -= usize::from(state.occupies());
        self.running_is_stale |= state == State::Running;
    }
}
