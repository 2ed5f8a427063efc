//! Who is served next: a queue a tenant, and a counter of what each tenant has got.
//!
//! Knows tickets only, no tokens and no blocks. The tenant with the lowest counter goes first; a tenant that comes
//! back to the queue is lifted to the others' level, so that nobody saves up a claim by being away.
//! Source: Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024 (virtual token counters).

use std::collections::{HashMap, VecDeque};

use super::event::TenantStats;
use crate::request::{SeqId, Tenant};

/// What a prompt token costs its tenant when it is computed.
const PROMPT_TOKEN_COST: u64 = 1;
/// What a generated token costs.
const OUTPUT_TOKEN_COST: u64 = 2;
/// Tenants without sequences are remembered up to this many tenants in all.
const MAX_REMEMBERED_TENANTS: usize = 1024;

/// A sequence that wants to compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket {
    /// Within its tenant the lowest comes first.
    pub(super) priority: i32,
    pub(super) arrival: u64,
    pub(super) seq: SeqId,
}

#[derive(Debug)]
struct TenantQueue {
    tenant: Tenant,
    counter: u64,
    waiting: VecDeque<Ticket>,
    /// Running sequences with prompt left to compute, set anew in each step.
    prompting: VecDeque<Ticket>,
    /// Living sequences.
    sequences: usize,
    prompt_tokens: u64,
    output_tokens: u64,
}

#[derive(Default)]
pub(super) struct FairQueue {
    tenants: Vec<TenantQueue>,
    by_name: HashMap<Tenant, usize>,
    /// Tickets in all queues.
    waiting: usize,
    /// Counter of the tenant whose queue was the last to become empty.
    last_counter: u64,
}

impl FairQueue {
    /// Tickets that wait, of everybody.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Tickets of one tenant that wait.
    pub(super) fn waiting_of(&self, tenant: &Tenant) -> usize {
        self.by_name.get(tenant).map_or(0, |&at| self.tenants[at].waiting.len())
    }

    /// The place of `tenant`, which now has one more living sequence.
    pub(super) fn enter(&mut self, tenant: &Tenant) -> usize {
        let at = self.by_name.get(tenant).copied().unwrap_or_else(|| self.create(tenant));
        self.tenants[at].sequences += 1;
        at
    }

    /// One sequence of the tenant has ended.
    pub(super) fn leave(&mut self, at: usize) {
        self.tenants[at].sequences -= 1;
    }

    /// A place for a new tenant: where many are remembered, that of the idle one that has got the least, which
    /// loses the least by being forgotten.
    fn create(&mut self, tenant: &Tenant) -> usize {
        let new = TenantQueue {
            tenant: tenant.clone(),
            counter: 0,
            waiting: VecDeque::new(),
            prompting: VecDeque::new(),
            sequences: 0,
            prompt_tokens: 0,
            output_tokens: 0,
        };
        let idle = (0..self.tenants.len())
            .filter(|&at| self.tenants.len() >= MAX_REMEMBERED_TENANTS && self.tenants[at].sequences == 0)
            .min_by_key(|&at| self.tenants[at].counter);
        let at = match idle {
            Some(at) => {
                let forgotten = std::mem::replace(&mut self.tenants[at], new);
                self.by_name.remove(&forgotten.tenant);
                at
            }
            None => {
                self.tenants.push(new);
                self.tenants.len() - 1
            }
        };
        self.by_name.insert(tenant.clone(), at);
        at
    }

    /// For who is new: behind those of its priority, and of lower numbers.
    pub(super) fn push_back(&mut self, at: usize, ticket: Ticket) {
        self.lift(at);
        let waiting = &mut self.tenants[at].waiting;
        let before = waiting.iter().rposition(|other| other.priority <= ticket.priority);
        waiting.insert(before.map_or(0, |before| before + 1), ticket);
        self.waiting += 1;
    }

    /// For who was preempted.
    pub(super) fn push_front(&mut self, at: usize, ticket: Ticket) {
        self.lift(at);
        self.tenants[at].waiting.push_front(ticket);
        self.waiting += 1;
    }

    /// A tenant that joins those who wait starts at their level.
    fn lift(&mut self, at: usize) {
        if self.tenants[at].waiting.is_empty() {
            let waiting = self.tenants.iter().filter(|tenant| !tenant.waiting.is_empty());
            let level = waiting.map(|tenant| tenant.counter).min().unwrap_or(self.last_counter);
            let counter = &mut self.tenants[at].counter;
            *counter = level.max(*counter);
        }
    }

    /// The tenant's first ticket.
    pub(super) fn front(&self, at: usize) -> Option<Ticket> {
        self.tenants[at].waiting.front().copied()
    }

    /// Takes `seq` out of the tenant's queue.
    pub(super) fn remove(&mut self, at: usize, seq: SeqId) {
        let tenant = &mut self.tenants[at];
        let place = tenant.waiting.iter().position(|ticket| ticket.seq == seq);
        let place = place.unwrap_or_else(|| panic!("{seq:?} is not in its tenant's queue"));
        tenant.waiting.remove(place);
        self.waiting -= 1;
        if tenant.waiting.is_empty() {
            self.last_counter = tenant.counter;
        }
    }

    /// Forgets which running sequences had prompt left to compute.
    pub(super) fn clear_prompting(&mut self) {
        for tenant in &mut self.tenants {
            tenant.prompting.clear();
        }
    }

    /// `ticket` runs and has prompt left to compute.
    pub(super) fn push_prompting(&mut self, at: usize, ticket: Ticket) {
        self.tenants[at].prompting.push_back(ticket);
    }

    /// The tenant's first running sequence with prompt left to compute.
    pub(super) fn pop_prompting(&mut self, at: usize) -> Option<Ticket> {
        self.tenants[at].prompting.pop_front()
    }

    /// When the tenant's turn comes, lowest first: by counter, then by arrival. `None`: it wants no prompt computed.
    pub(super) fn turn(&self, at: usize) -> Option<(u64, u64)> {
        let tenant = &self.tenants[at];
        let first = tenant.prompting.front().or(tenant.waiting.front())?;
        Some((tenant.counter, first.arrival))
    }

    /// Places of all tenants.
    pub(super) fn places(&self) -> std::ops::Range<usize> {
        0..self.tenants.len()
    }

    /// What the tenant has got, weighted.
    pub(super) fn counter(&self, at: usize) -> u64 {
        self.tenants[at].counter
    }

    pub(super) fn charge_prompt(&mut self, at: usize, tokens: usize) {
        let tenant = &mut self.tenants[at];
        tenant.prompt_tokens += tokens as u64;
        tenant.counter += tokens as u64 * PROMPT_TOKEN_COST;
    }

    pub(super) fn charge_output_token(&mut self, at: usize) {
        let tenant = &mut self.tenants[at];
        tenant.output_tokens += 1;
        tenant.counter += OUTPUT_TOKEN_COST;
    }

    pub(super) fn stats(&self) -> impl Iterator<Item = TenantStats<'_>> {
        self.tenants.iter().map(|tenant| TenantStats {
            tenant: &tenant.tenant,
            prompt_tokens: tenant.prompt_tokens,
            output_tokens: tenant.output_tokens,
            waiting: tenant.waiting.len(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticket(number: u64) -> Ticket {
        Ticket { priority: 0, arrival: number, seq: SeqId(number) }
    }

    #[test]
    fn who_was_away_starts_at_the_level_of_those_who_wait() {
        let mut queue = FairQueue::default();
        let [a, b, c] = ["a", "b", "c"].map(|name| queue.enter(&Tenant::new(name)));
        queue.push_back(a, ticket(0));
        queue.charge_prompt(a, 100);
        queue.push_back(b, ticket(1));
        assert_eq!(queue.counter(b), 100);
        queue.charge_output_token(b);
        queue.push_back(c, ticket(2));
        assert_eq!((queue.counter(b), queue.counter(c)), (102, 100), "the lowest of those who wait");

        queue.remove(a, SeqId(0));
        queue.remove(c, SeqId(2));
        queue.remove(b, SeqId(1));
        queue.push_back(a, ticket(3));
        assert_eq!(queue.counter(a), 102, "nobody waits: the level of the last who did");
        queue.charge_prompt(c, 500);
        queue.push_back(c, ticket(4));
        assert_eq!(queue.counter(c), 600, "what one has got is not forgotten");
    }

    #[test]
    fn turns_go_by_counter_then_arrival_and_the_preempted_come_first() {
        let mut queue = FairQueue::default();
        let [a, b] = ["a", "b"].map(|name| queue.enter(&Tenant::new(name)));
        assert_eq!(queue.turn(a), None);
        queue.push_back(a, ticket(5));
        queue.push_back(b, ticket(6));
        assert!(queue.turn(a) < queue.turn(b));
        queue.charge_prompt(a, 1);
        assert!(queue.turn(a) > queue.turn(b));
        queue.push_front(a, ticket(2));
        assert_eq!(queue.front(a), Some(ticket(2)));
        assert_eq!((queue.waiting(), queue.waiting_of(&Tenant::new("a"))), (3, 2));
    }

    #[test]
    fn the_lowest_priority_of_a_tenant_goes_first() {
        let mut queue = FairQueue::default();
        let a = queue.enter(&Tenant::new("a"));
        for (number, priority) in [(0, 0), (1, 5), (2, -1), (3, 0), (4, -1), (5, 9)] {
            queue.push_back(a, Ticket { priority, ..ticket(number) });
        }
        for number in [2, 4, 0, 3, 1, 5] {
            assert_eq!(queue.front(a).map(|ticket| ticket.arrival), Some(number));
            queue.remove(a, SeqId(number));
        }
    }

    #[test]
    fn idle_tenants_are_remembered_up_to_a_limit() {
        let mut queue = FairQueue::default();
        let busy = queue.enter(&Tenant::new("busy"));
        for number in 0..2 * MAX_REMEMBERED_TENANTS {
            let at = queue.enter(&Tenant::new(number.to_string()));
            queue.charge_prompt(at, 1 + number);
            queue.leave(at);
        }
        assert_eq!(queue.stats().count(), MAX_REMEMBERED_TENANTS);
        assert_eq!(queue.enter(&Tenant::new("busy")), busy);
    }
}
