//! The scheduler's promises, one by one; what holds of all of them together is the simulation's business.

use std::sync::Arc;

use super::*;
use crate::request::{FinishReason, Request, SamplingParams, StopConditions, Tenant, TokenId};

fn config() -> SchedulerConfig {
    SchedulerConfig {
        block_size: 4,
        num_blocks: 64,
        max_sequences: 8,
        max_step_tokens: 64,
        max_prompt_chunk_while_decoding: 8,
        prompt_tokens_per_decode: 0,
        prompt_tokens_per_waiting: 0,
        step_multiple: 1,
        max_model_len: 128,
        max_waiting: 256,
        max_waiting_per_tenant: 200,
        prefix_cache: true,
        lag: Lag::Zero,
    }
}

fn scheduler(config: SchedulerConfig) -> Scheduler {
    Scheduler::new(config, [1; 16]).unwrap()
}

/// A prompt of `len` tokens, different for each `kind`.
fn prompt(kind: u32, len: u32) -> Arc<[TokenId]> {
    (0..len).map(|at| 1000 * kind + at).collect()
}

fn request(prompt: Arc<[TokenId]>, max_tokens: u32) -> Request {
    Request {
        prompt,
        n: 1,
        sampling: SamplingParams::default(),
        stop: StopConditions {
            max_tokens,
            min_tokens: 0,
            ignore_eos: false,
            eos_token_ids: Arc::from([STOP]),
            stop_token_ids: Vec::new(),
        },
        tenant: Tenant::default(),
        cache_salt: None,
        priority: 0,
        masks: None,
        pooling: None,
        answered: 0,
    }
}

fn of(tenant: &str, request: Request) -> Request {
    Request { tenant: Tenant::new(tenant), ..request }
}

const STOP: TokenId = 7;
const WORD: TokenId = 8;

fn schedule(scheduler: &mut Scheduler) -> SchedulerOutput {
    let mut output = SchedulerOutput::default();
    scheduler.schedule(&mut output);
    output
}

/// Commits `output`, with `token` for everybody.
fn commit(scheduler: &mut Scheduler, output: &SchedulerOutput, token: TokenId) -> Vec<SchedulerEvent> {
    let sampled: Vec<_> = output.samples.iter().map(|&seq| (seq, token)).collect();
    let mut events = Vec::new();
    scheduler.commit(output, &sampled, &mut events);
    events
}

fn step(scheduler: &mut Scheduler) -> SchedulerOutput {
    let output = schedule(scheduler);
    commit(scheduler, &output, WORD);
    output
}

/// Runs until nothing is left; returns the cached tokens of each prompt that was done, in order.
fn finish_all(scheduler: &mut Scheduler) -> Vec<u32> {
    let mut cached = Vec::new();
    while !scheduler.is_idle() {
        let output = schedule(scheduler);
        if output.is_empty() {
            continue;
        }
        for event in commit(scheduler, &output, WORD) {
            if let SchedulerEvent::PromptDone { cached_tokens, .. } = event {
                cached.push(cached_tokens);
            }
        }
    }
    cached
}

#[test]
fn what_can_never_run_is_refused_with_the_numbers() {
    let limits = SchedulerConfig { max_waiting: 3, max_waiting_per_tenant: 2, ..config() };
    let good = request(prompt(1, 127), 5);
    let cases = [
        (request(prompt(1, 0), 5), AdmitError::EmptyPrompt),
        (Request { n: 0, ..good.clone() }, AdmitError::NoChoices),
        (request(prompt(1, 5), 0), AdmitError::NoTokens),
        (request(prompt(1, 128), 5), AdmitError::PromptTooLong { prompt_tokens: 128, max_model_len: 128 }),
        (Request { n: 9, ..good.clone() }, AdmitError::TooManyChoices { n: 9, max_sequences: 8 }),
    ];
    let mut scheduler = scheduler(limits);
    for (refused, error) in cases {
        assert_eq!(scheduler.add(RequestId(0), &refused), Err(error));
    }
    assert!(scheduler.is_idle() && scheduler.tenants().count() == 0, "the refused leave nothing behind");

    scheduler.add(RequestId(1), &good).unwrap();
    assert_eq!(scheduler.add(RequestId(1), &good), Err(AdmitError::DuplicateRequest(RequestId(1))));
    scheduler.add(RequestId(2), &good).unwrap();
    let full = AdmitError::TenantQueueFull { waiting: 2, max_waiting: 2 };
    assert_eq!(scheduler.add(RequestId(3), &good), Err(full));
    scheduler.add(RequestId(3), &of("other", good.clone())).unwrap();
    let full = AdmitError::QueueFull { waiting: 3, max_waiting: 3 };
    assert_eq!(scheduler.add(RequestId(4), &of("third", good)), Err(full));
}

#[test]
fn a_long_prompt_delays_nobodys_next_token() {
    let mut scheduler = scheduler(config());
    let short = scheduler.add(RequestId(1), &request(prompt(1, 3), 50)).unwrap()[0];
    step(&mut scheduler);
    let long = scheduler.add(RequestId(2), &request(prompt(2, 100), 5)).unwrap()[0];
    for chunk in 0..13 {
        let output = step(&mut scheduler);
        let rows: Vec<_> = output.rows.iter().map(|row| (row.seq, row.tokens.len())).collect();
        assert_eq!(rows, [(short, 1), (long, if chunk < 12 { 8 } else { 4 })]);
        assert_eq!(output.samples.len(), if chunk < 12 { 1 } else { 2 });
    }
}

#[test]
fn a_burst_that_comes_in_pieces_is_computed_as_if_at_once() {
    let mut scheduler = scheduler(SchedulerConfig { lag: Lag::One, ..config() });
    let lens = |output: &SchedulerOutput| output.rows.iter().map(|row| row.tokens.len()).collect::<Vec<_>>();
    scheduler.add(RequestId(1), &request(prompt(1, 3), 50)).unwrap();
    let first = schedule(&mut scheduler);
    scheduler.add(RequestId(2), &request(prompt(2, 60), 50)).unwrap();
    let second = schedule(&mut scheduler);
    assert_eq!(lens(&second), [1, 60], "the first token is on its way: nobody waits for a second one");
    commit(&mut scheduler, &first, WORD);
    scheduler.add(RequestId(3), &request(prompt(3, 60), 50)).unwrap();
    let third = schedule(&mut scheduler);
    assert_eq!(lens(&third), [1, 1, 8]);
}

#[test]
fn nobody_decodes_so_the_whole_step_goes_to_prompts() {
    let mut scheduler = scheduler(config());
    for number in 0..3 {
        scheduler.add(RequestId(number), &request(prompt(number as u32, 30), 5)).unwrap();
    }
    let lengths: Vec<_> = step(&mut scheduler).rows.iter().map(|row| row.tokens.len()).collect();
    assert_eq!(lengths, [30, 30, 4]);
}

#[test]
fn whole_blocks_of_a_known_prompt_are_not_computed_again() {
    let plain = |len| request(prompt(1, len), 2);
    let salted = Request { cache_salt: Some(Arc::from("salt")), ..plain(16) };
    let mut with_logprobs = plain(16);
    with_logprobs.sampling.prompt_logprobs = Some(1);
    let cases = [
        ("first", plain(16), 0),
        ("the last token is computed: its logits are wanted", plain(16), 12),
        ("a partial block", plain(15), 12),
        ("longer", plain(21), 16),
        ("another salt", salted.clone(), 0),
        ("the same salt", salted, 12),
        ("prompt log-probabilities need every position", with_logprobs, 0),
    ];
    let mut scheduler = scheduler(config());
    for (name, request, cached) in cases {
        scheduler.add(RequestId(0), &request).unwrap();
        assert_eq!(finish_all(&mut scheduler), [cached], "{name}");
    }
    let stats = scheduler.stats();
    assert_eq!((stats.prefix_hit_tokens, stats.blocks_used), (12 + 12 + 16 + 12, 0));
}

#[test]
fn a_block_is_found_only_after_its_step_is_committed() {
    let mut scheduler = scheduler(SchedulerConfig { lag: Lag::One, max_prompt_chunk_while_decoding: 32, ..config() });
    scheduler.add(RequestId(1), &request(prompt(1, 16), 5)).unwrap();
    let first = schedule(&mut scheduler);
    scheduler.add(RequestId(2), &request(prompt(1, 16), 5)).unwrap();
    let second = schedule(&mut scheduler);
    assert_eq!(second.rows[1].start, 0);
    commit(&mut scheduler, &first, WORD);
    scheduler.add(RequestId(3), &request(prompt(1, 16), 5)).unwrap();
    let third = schedule(&mut scheduler);
    assert_eq!(third.rows.last().map(|row| row.start), Some(12));
}

#[test]
fn choices_share_the_prompt_and_copy_what_they_write() {
    let mut scheduler = scheduler(config());
    let choices = scheduler.add(RequestId(1), &Request { n: 3, ..request(prompt(1, 6), 5) }).unwrap();
    let output = step(&mut scheduler);
    assert_eq!((output.rows.len(), &output.samples), (1, &choices));
    assert_eq!(scheduler.stats().blocks_used, 2);

    let output = step(&mut scheduler);
    let blocks: Vec<_> = output.rows.iter().map(|row| &output.block_tables[row.blocks.clone()]).collect();
    assert_eq!(output.copies.len(), 2, "the last holder writes in place");
    for (copy, table) in output.copies.iter().zip(&blocks) {
        assert_eq!((copy.source, copy.target), (blocks[2][1], table[1]));
        assert_eq!(table[0], blocks[2][0]);
    }
    assert_eq!(scheduler.stats().blocks_used, 4);
    assert!(step(&mut scheduler).copies.is_empty());
}

#[test]
fn the_next_choice_leads_when_the_first_is_ended_early() {
    let mut scheduler = scheduler(SchedulerConfig { max_step_tokens: 10, ..config() });
    let choices = scheduler.add(RequestId(1), &Request { n: 3, ..request(prompt(1, 16), 2) }).unwrap();
    step(&mut scheduler);
    let mut events = Vec::new();
    assert!(scheduler.finish(choices[0], FinishReason::Cancelled, &mut events));
    assert!(!scheduler.finish(choices[0], FinishReason::Cancelled, &mut events), "it has ended");
    assert_eq!(events.len(), 1);
    let output = step(&mut scheduler);
    assert_eq!((output.rows[0].seq, output.rows[0].start), (choices[1], 8), "out of the prefix cache");
    assert_eq!(output.samples, choices[1..]);
    assert_eq!(output.released, choices[..1]);
    let paid = scheduler.tenants().next().unwrap().prompt_tokens;
    assert_eq!(paid, 16, "what was computed twice is paid once");
}

#[test]
fn a_stop_token_ends_after_min_tokens_and_others_at_the_limits() {
    let stop = |min_tokens, ignore_eos, max_tokens, prompt_len| {
        let mut request = request(prompt(1, prompt_len), max_tokens);
        request.stop = StopConditions { min_tokens, ignore_eos, ..request.stop };
        request
    };
    let mut extra = request(prompt(1, 3), 9);
    extra.stop = StopConditions { ignore_eos: true, stop_token_ids: vec![STOP], ..extra.stop };
    let cases = [
        ("at once", stop(0, false, 9, 3), 1, FinishReason::Stop),
        ("the first two cannot end it", stop(2, false, 9, 3), 3, FinishReason::Stop),
        ("ignored", stop(0, true, 9, 3), 9, FinishReason::Length),
        ("own stop token", extra, 1, FinishReason::Stop),
        ("stop and limit together", stop(0, false, 1, 3), 1, FinishReason::Stop),
        ("model length", stop(0, true, 99, 125), 3, FinishReason::Length),
    ];
    for (name, request, tokens, reason) in cases {
        let mut scheduler = scheduler(config());
        let seq = scheduler.add(RequestId(5), &request).unwrap()[0];
        let mut events = Vec::new();
        while events.last().is_none_or(|event| !matches!(event, SchedulerEvent::Finished { .. })) {
            let output = schedule(&mut scheduler);
            assert!(!output.is_empty(), "{name}");
            events.extend(commit(&mut scheduler, &output, STOP));
        }
        let (request, choice) = (RequestId(5), 0);
        assert_eq!(events[0], SchedulerEvent::PromptDone { request, cached_tokens: 0 }, "{name}");
        assert_eq!(
            events[1..events.len() - 1],
            vec![SchedulerEvent::Token { request, choice, seq, token: STOP }; tokens]
        );
        assert_eq!(events.last(), Some(&SchedulerEvent::Finished { request, choice, seq, reason }), "{name}");
    }
}

#[test]
fn what_was_computed_past_a_stop_is_dropped_and_its_blocks_freed_after_that_step() {
    let mut scheduler = scheduler(SchedulerConfig { lag: Lag::One, ..config() });
    let seq = scheduler.add(RequestId(1), &request(prompt(1, 6), 9)).unwrap()[0];
    let first = schedule(&mut scheduler);
    let second = schedule(&mut scheduler);
    assert!(second.rows[0].follows_sample && !first.rows[0].follows_sample);

    assert_eq!(commit(&mut scheduler, &first, STOP).len(), 3, "prompt, token, end");
    assert_eq!(scheduler.stats().blocks_used, 2, "the second step may still write them");
    let third = schedule(&mut scheduler);
    assert!(third.is_empty());
    assert_eq!(third.released, [seq]);
    assert_eq!(commit(&mut scheduler, &second, WORD), []);
    assert_eq!(scheduler.stats().blocks_used, 0);
    assert_eq!(scheduler.tenants().next().map(|tenant| tenant.output_tokens), Some(1));
    assert!(scheduler.is_idle());
}

#[test]
fn an_end_that_is_known_is_not_run_past() {
    for (max_tokens, steps) in [(1, 1), (2, 2), (99, 3)] {
        let mut scheduler = scheduler(SchedulerConfig { lag: Lag::One, max_model_len: 9, ..config() });
        scheduler.add(RequestId(1), &request(prompt(1, 6), max_tokens)).unwrap();
        let mut flying = schedule(&mut scheduler);
        for _ in 1..steps {
            let next = schedule(&mut scheduler);
            assert_eq!(next.rows.len(), 1);
            commit(&mut scheduler, &std::mem::replace(&mut flying, next), WORD);
        }
        assert!(schedule(&mut scheduler).is_empty(), "max_tokens {max_tokens}");
        let end = commit(&mut scheduler, &flying, WORD).pop();
        assert!(matches!(end, Some(SchedulerEvent::Finished { reason: FinishReason::Length, .. })));
    }
}

#[test]
fn a_cancelled_request_is_gone_with_the_next_step() {
    let mut scheduler = scheduler(config());
    let choices = scheduler.add(RequestId(1), &Request { n: 2, ..request(prompt(1, 6), 9) }).unwrap();
    let waiting = scheduler.add(RequestId(2), &request(prompt(2, 100), 9)).unwrap();
    step(&mut scheduler);
    let mut events = Vec::new();
    assert!(scheduler.cancel(RequestId(1), &mut events) && scheduler.cancel(RequestId(2), &mut events));
    assert!(!scheduler.cancel(RequestId(1), &mut events));
    assert_eq!(events.len(), 3);
    assert_eq!((scheduler.stats().blocks_used, scheduler.stats().running), (0, 0));
    let output = schedule(&mut scheduler);
    assert!(output.is_empty() && scheduler.stats().waiting == 0);
    assert_eq!(output.released, [choices[1], choices[0], waiting[0]]);
    assert!(scheduler.is_idle());
}

#[test]
fn the_newest_of_who_got_the_most_makes_room_and_is_the_first_to_come_back() {
    let mut scheduler = scheduler(SchedulerConfig { num_blocks: 8, max_model_len: 30, ..config() });
    let mut add = |number, tenant, len| {
        scheduler.add(RequestId(number), &of(tenant, request(prompt(number as u32, len), 20))).unwrap()[0]
    };
    let [_old, newest] = [add(1, "greedy", 7), add(2, "greedy", 7)];
    add(3, "modest", 6);
    let mut outputs = Vec::new();
    while scheduler.stats().preemptions == 0 {
        outputs.push(step(&mut scheduler));
    }
    let without = outputs.last().unwrap();
    assert_eq!(without.rows.len(), 2);
    assert!(without.rows.iter().all(|row| row.seq != newest), "the other tenant's is newer, but got less");
    let computed = outputs[..outputs.len() - 1].iter().filter(|output| output.samples.contains(&newest)).count();

    let later = scheduler.add(RequestId(4), &of("greedy", request(prompt(4, 2), 2))).unwrap()[0];
    let back = std::iter::repeat_with(|| step(&mut scheduler))
        .take(100)
        .find(|output| output.rows.iter().any(|row| row.seq == newest || row.seq == later))
        .unwrap();
    let row = back.rows.iter().find(|row| row.seq == newest).expect("who was preempted goes before later ones");
    let tokens = row.start as usize + row.tokens.len();
    assert_eq!(tokens, 7 + computed, "its tokens are kept");
}

#[test]
fn a_flood_of_one_tenant_does_not_keep_another_waiting() {
    let mut scheduler = scheduler(SchedulerConfig { max_sequences: 2, ..config() });
    for number in 0..200 {
        scheduler.add(RequestId(number), &of("flood", request(prompt(number as u32, 20), 10))).unwrap();
    }
    for _ in 0..30 {
        step(&mut scheduler);
    }
    let seq = scheduler.add(RequestId(999), &of("single", request(prompt(999, 20), 10))).unwrap()[0];
    let waits = std::iter::repeat_with(|| step(&mut scheduler))
        .take_while(|output| output.rows.iter().all(|row| row.seq != seq))
        .count();
    assert!(waits <= 12, "{waits} steps, where one answer of the flood takes about 10");
}

/// Source of the bound: Sheng et al., OSDI 2024: tenants that both wait differ by at most
/// 2 max(cost of the longest prompt, cost of all tokens that run at a time).
#[test]
fn tenants_that_both_wait_get_the_same_within_the_bound() {
    for lag in [Lag::Zero, Lag::One] {
        let limits = SchedulerConfig { max_sequences: 4, num_blocks: 40, max_model_len: 40, lag, ..config() };
        let bound = 2 * (2 * 4 * 40);
        let mut scheduler = scheduler(limits);
        for number in 0..200 {
            let many_long = of("long", request(prompt(number, 38), 2));
            let few_short = of("chatty", request(prompt(1000 + number, 3), 37));
            scheduler.add(RequestId(u64::from(2 * number)), &many_long).unwrap();
            if number < 50 {
                scheduler.add(RequestId(u64::from(2 * number + 1)), &few_short).unwrap();
            }
        }
        let (mut least, mut largest_gap) = (0, 0);
        let mut flying = None;
        while scheduler.tenants().all(|tenant| tenant.waiting > 0) {
            let next = schedule(&mut scheduler);
            let done = match lag {
                Lag::Zero => Some(next),
                Lag::One if next.is_empty() => flying.take(),
                Lag::One => flying.replace(next),
            };
            if let Some(done) = done {
                commit(&mut scheduler, &done, WORD);
            }
            let got: Vec<_> = scheduler.tenants().map(|t| t.prompt_tokens + 2 * t.output_tokens).collect();
            least = got[0].min(got[1]);
            largest_gap = largest_gap.max(got[0].abs_diff(got[1]));
        }
        assert!(least > 3 * bound, "the run is too short to show anything: {least}");
        assert!(largest_gap <= bound, "{largest_gap} apart, at most {bound} allowed");
    }
}

#[test]
#[should_panic(expected = "steps [1] are not committed")]
fn lag_0_has_one_step_at_a_time() {
    let mut scheduler = scheduler(config());
    scheduler.add(RequestId(1), &request(prompt(1, 6), 9)).unwrap();
    schedule(&mut scheduler);
    schedule(&mut scheduler);
}
