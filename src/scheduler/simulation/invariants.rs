//! What must hold after every step, whatever happened.

use std::collections::{HashMap, HashSet};

use crate::kv_cache::BlockId;
use crate::request::SeqId;
use crate::scheduler::sequence::{State, Work};
use crate::scheduler::{CROWD_CHUNKS, Scheduler, SchedulerOutput};

/// Between any two calls: accounts agree with each other.
pub(super) fn check_accounts(scheduler: &Scheduler, in_flight: &[&SchedulerOutput]) {
    let pool = scheduler.memory.pool();
    let mut held: HashMap<BlockId, u32> = HashMap::new();
    for block in scheduler.memory.held_blocks() {
        *held.entry(block).or_default() += 1;
    }
    let (mut occupied, mut waiting) = (0, 0);
    let living: Vec<SeqId> = scheduler.requests.values().flat_map(|request| request.living.clone()).collect();
    assert_eq!(living.len(), scheduler.sequences.len());
    for &seq in &living {
        let sequence = &scheduler.sequences[seq];
        occupied += usize::from(sequence.state.occupies());
        waiting += usize::from(sequence.state == State::Waiting);
        assert_eq!(sequence.state == State::Running, !sequence.memory.blocks().is_empty(), "{seq:?}");
        for &block in sequence.memory.blocks() {
            *held.entry(block).or_default() += 1;
        }
    }
    assert_eq!(scheduler.occupied, occupied);
    assert!(occupied <= scheduler.config.max_sequences as usize);
    assert_eq!(scheduler.queue.waiting(), waiting);
    for block in (0..pool.num_total() as u32).map(BlockId) {
        assert_eq!(pool.references(block), held.get(&block).copied().unwrap_or(0), "references of {block:?}");
    }
    assert_eq!(pool.num_free() + held.len(), pool.num_total(), "free + live = total");

    for step in in_flight {
        for block in &step.block_tables {
            assert!(pool.references(*block) > 0, "{block:?} is free while step {} uses it", step.step);
        }
    }
}

/// After `schedule`: the step keeps the limits and disturbs no step before it.
pub(super) fn check_step(scheduler: &Scheduler, output: &SchedulerOutput, before: Option<&SchedulerOutput>) {
    let config = &scheduler.config;
    let block_size = config.block_size as usize;
    assert!(output.tokens.len() <= config.max_step_tokens as usize, "budget");
    let decodes = scheduler.decodes.len();
    let prompt_tokens: usize = output.rows[decodes..].iter().map(|row| row.tokens.len()).sum();
    let (fixed, each) = (config.max_prompt_chunk_while_decoding, config.prompt_tokens_per_decode);
    // Who waited before the step was planned is not known here: the crowd counts in full.
    let crowd = if config.prompt_tokens_per_waiting > 0 { CROWD_CHUNKS * fixed } else { 0 };
    let cap = (fixed.max(crowd) as usize).max(decodes * each as usize);
    let told = scheduler.decodes.iter().any(|&seq| scheduler.sequences[seq].generated() > 0);
    assert!(!told || prompt_tokens <= cap, "chunk cap");
    let rows: HashSet<SeqId> = output.rows.iter().map(|row| row.seq).collect();
    assert_eq!(rows.len(), output.rows.len(), "one row a sequence");
    assert!(rows.len() <= config.max_sequences as usize);

    let mut written = HashMap::new();
    for row in &output.rows {
        let end = row.start as usize + row.tokens.len();
        assert_eq!(row.blocks.len(), end.div_ceil(block_size));
        for &block in &output.block_tables[row.blocks.clone()][row.start as usize / block_size..] {
            let other = written.insert(block, row.seq);
            assert_eq!(other, None, "{block:?} is written by two rows");
        }
    }
    let targets: HashSet<BlockId> = output.copies.iter().map(|copy| copy.target).collect();
    assert_eq!(targets.len(), output.copies.len(), "a block is copied to once");
    assert!(targets.iter().all(|target| written.contains_key(target)), "a copy is made for a row of this step");
    for row in &output.rows {
        for block in &output.block_tables[row.blocks.clone()] {
            assert!(written.get(block).is_none_or(|&writer| writer == row.seq), "{block:?} is read and written");
        }
    }
    for row in before.iter().flat_map(|before| &before.rows) {
        // Choices of one request hand over their shared last block; nobody else may touch what is in use.
        for block in &before.unwrap().block_tables[row.blocks.clone()] {
            let Some(&writer) = written.get(block) else { continue };
            let request = |seq| scheduler.sequences.get(seq).map(|sequence| sequence.request.id);
            assert_eq!(request(writer), request(row.seq), "{block:?} is reused under a step in flight");
        }
    }
    for &seq in &scheduler.running {
        let sequence = &scheduler.sequences[seq];
        let takes_part = rows.contains(&seq) || output.samples.contains(&seq);
        if sequence.state == State::Running && sequence.work() == Work::Decode && !takes_part {
            let short = scheduler.running_is_stale || scheduler.memory.pool().num_free() == 0;
            assert!(short, "{seq:?} has room and gets no token");
        }
    }
}
