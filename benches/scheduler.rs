//! What the scheduler itself costs: one step, schedule and commit, with 1,000 sequences that decode.
//!
//! `cargo bench --bench scheduler`. The bar: under 100 microseconds, whoever else waits.

use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use lantern::request::{Request, RequestId, SamplingParams, SeqId, StopConditions, Tenant, TokenId};
use lantern::scheduler::{Lag, Scheduler, SchedulerConfig, SchedulerEvent, SchedulerOutput};

const RUNNING: u32 = 1000;
const TENANTS: u32 = 100;
const STEPS_A_LOOP: u32 = 200;

fn request(number: u32, prompt: u32, eos_token_ids: &Arc<[TokenId]>) -> Request {
    Request {
        prompt: (0..prompt).map(|at| number.wrapping_mul(31) + at).collect(),
        n: 1,
        sampling: SamplingParams::default(),
        stop: StopConditions {
            max_tokens: 1_000_000,
            min_tokens: 0,
            ignore_eos: false,
            eos_token_ids: eos_token_ids.clone(),
            stop_token_ids: Vec::new(),
        },
        tenant: Tenant::new(format!("tenant {}", number % TENANTS)),
        cache_salt: None,
        priority: 0,
        masks: None,
        pooling: None,
        answered: 0,
    }
}

/// A scheduler and the buffers of an engine around it.
struct Loop {
    scheduler: Scheduler,
    /// The step to fill next, and the one in flight.
    outputs: [SchedulerOutput; 2],
    sampled: Vec<(SeqId, TokenId)>,
    events: Vec<SchedulerEvent>,
}

impl Loop {
    /// 1,000 sequences past their prompts of `prompt` tokens, and `waiting` more that find no room.
    fn new(prompt: u32, waiting: u32, lag: Lag) -> Self {
        let config = SchedulerConfig {
            block_size: 16,
            num_blocks: 200_000,
            max_sequences: RUNNING,
            max_step_tokens: 8192,
            max_prompt_chunk_while_decoding: 7000,
            prompt_tokens_per_decode: 0,
            prompt_tokens_per_waiting: 0,
            step_multiple: 1,
            max_model_len: 1_000_000,
            max_waiting: 10_000,
            max_waiting_per_tenant: 10_000,
            prefix_cache: true,
            lag,
        };
        let mut scheduler = Scheduler::new(config, [5; 16]).expect("the limits agree");
        let eos_token_ids = Arc::from([2]);
        for number in 0..RUNNING + waiting {
            scheduler
                .add(RequestId(number.into()), &request(number, prompt, &eos_token_ids))
                .expect("the queue is long");
        }
        let mut it = Self { scheduler, outputs: Default::default(), sampled: Vec::new(), events: Vec::new() };
        if lag == Lag::One {
            it.scheduler.schedule(&mut it.outputs[1]);
        }
        while it.outputs[1].samples.len() < RUNNING as usize {
            it.step(lag);
        }
        // Until all buffers have their size.
        for _ in 0..STEPS_A_LOOP {
            it.step(lag);
        }
        it
    }

    fn step(&mut self, lag: Lag) {
        let [next, done] = &mut self.outputs;
        self.scheduler.schedule(next);
        if lag == Lag::Zero {
            std::mem::swap(next, done);
        }
        self.sampled.clear();
        self.sampled.extend(done.samples.iter().map(|&seq| (seq, 9)));
        self.events.clear();
        self.scheduler.commit(done, &self.sampled, &mut self.events);
        if lag == Lag::One {
            std::mem::swap(next, done);
        }
    }
}

fn steps(criterion: &mut Criterion) {
    for (name, prompt, waiting, lag) in [
        ("1,000 running of 250 tokens", 250, 0, Lag::Zero),
        ("1,000 running of 250 tokens, 1,000 waiting", 250, 1000, Lag::Zero),
        ("1,000 running of 250 tokens, 1,000 waiting, lag 1", 250, 1000, Lag::One),
        ("1,000 running of 1,000 tokens", 1000, 0, Lag::Zero),
    ] {
        let mut it = Loop::new(prompt, waiting, lag);
        let mut age = 0;
        criterion.bench_function(&format!("step: {name}"), |bencher| {
            bencher.iter_custom(|steps| {
                let mut spent = Duration::ZERO;
                for _ in 0..steps {
                    // Every step grows each sequence by a token: fresh ones keep the contexts at one size.
                    if age == STEPS_A_LOOP {
                        it = Loop::new(prompt, waiting, lag);
                        age = 0;
                    }
                    age += 1;
                    let start = Instant::now();
                    it.step(lag);
                    spent += start.elapsed();
                }
                spent
            });
        });
        assert_eq!(it.outputs[1].rows.len(), RUNNING as usize, "everybody decodes in every step");
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(50).measurement_time(Duration::from_secs(2)).warm_up_time(Duration::from_millis(200));
    targets = steps
}
criterion_main!(benches);
