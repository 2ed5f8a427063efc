//! The engine's loop against a runner that counts: what readers see when all goes well and when it does not.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc;
use std::task::Poll;
use std::time::Duration;

use crate::request::{
    FinishReason, MAX_LISTED_TOKENS, Request, RequestEvent, SamplingParams, SeqId, StopConditions, Tenant,
};
use crate::runner::{KvSize, RunnerError, SampleError, Sampled, StepOutput, StepRunner};
use crate::scheduler::{Lag, Scheduler, SchedulerConfig, SchedulerOutput};

use super::{EVENT_CAPACITY, EngineHandle, EngineLimits, EngineStatus, SubmitError, channel, spawn};

/// Every token is 7, until a prompt holds [`POISON`] or [`BREAK`].
struct Sevens {
    /// One message a step; a step waits for it where the test holds the other end.
    gate: Option<mpsc::Receiver<()>>,
    poisoned: Vec<SeqId>,
    computed: VecDeque<StepOutput>,
    released: mpsc::Sender<SeqId>,
}

const POISON: u32 = 66;
pub(crate) const BREAK: u32 = 13;

impl StepRunner for Sevens {
    fn start(&mut self, seq: SeqId, request: Arc<Request>, _choice: u32, _seed: u64) {
        if request.prompt.contains(&POISON) {
            self.poisoned.push(seq);
        }
        assert!(!request.prompt.contains(&BREAK), "a test breaks the engine");
    }

    fn release(&mut self, seq: SeqId) {
        let _ = self.released.send(seq);
    }

    fn begin(&mut self, planned: &SchedulerOutput) -> Result<(), RunnerError> {
        if let Some(gate) = &self.gate {
            let _ = gate.recv_timeout(Duration::from_secs(10));
        }
        let mut output = StepOutput::default();
        for seq in &planned.samples {
            if self.poisoned.contains(seq) {
                output.failed.push((*seq, SampleError::NotFinite));
            }
            output.sampled.push(Sampled { seq: *seq, token: 7, logprobs: None });
        }
        self.computed.push_back(output);
        Ok(())
    }

    fn collect(&mut self) -> Result<StepOutput, RunnerError> {
        self.computed.pop_front().ok_or(RunnerError::NothingBegun)
    }

    /// Main memory has room for as many blocks as it has bytes.
    fn resize_kv(&mut self, blocks: u32, main_bytes: u64) -> Result<KvSize, RunnerError> {
        assert!(self.computed.is_empty(), "a step is in flight");
        let blocks = if main_bytes == 0 { blocks } else { blocks.min(main_bytes as u32) };
        Ok(KvSize { blocks, given_back_bytes: 1000 * u64::from(512 - blocks) })
    }
}

struct Setup {
    engine: EngineHandle,
    released: mpsc::Receiver<SeqId>,
    thread: std::thread::JoinHandle<()>,
}

/// An engine that says 7 for ever, one step a message, and breaks at a prompt that holds [`BREAK`].
pub(crate) fn breakable() -> (EngineHandle, mpsc::Sender<()>) {
    let (gate, held) = mpsc::channel();
    (engine(Lag::Zero, 4, Some(held)).engine, gate)
}

fn engine(lag: Lag, max_waiting: u32, gate: Option<mpsc::Receiver<()>>) -> Setup {
    let config = SchedulerConfig {
        block_size: 16,
        num_blocks: 512,
        max_sequences: 4,
        max_step_tokens: 64,
        max_prompt_chunk_while_decoding: 16,
        prompt_tokens_per_decode: 0,
        prompt_tokens_per_waiting: 0,
        step_multiple: 1,
        max_model_len: 4096,
        max_waiting: 64,
        max_waiting_per_tenant: 64,
        lag,
        prefix_cache: true,
    };
    let scheduler = Scheduler::new(config, [1; 16]).expect("a valid configuration");
    let limits = EngineLimits { max_context: 4096, max_sequences: 4, max_waiting, vocab_size: 100 };
    let (engine, inbox) = channel(limits);
    let (sender, released) = mpsc::channel();
    let runner = Sevens { gate, poisoned: Vec::new(), computed: VecDeque::new(), released: sender };
    let thread = spawn(scheduler, runner, inbox).expect("a thread");
    Setup { engine, released, thread }
}

fn request(prompt: &[u32], max_tokens: u32) -> Request {
    Request {
        prompt: prompt.into(),
        n: 1,
        sampling: SamplingParams::greedy(),
        stop: StopConditions {
            max_tokens,
            min_tokens: 0,
            ignore_eos: false,
            eos_token_ids: Arc::from([2]),
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

fn tokens(engine: &EngineHandle, prompt: &[u32], max_tokens: u32) -> Vec<RequestEvent> {
    let mut stream = engine.submit(request(prompt, max_tokens)).expect("taken");
    std::iter::from_fn(move || stream.blocking_next()).collect()
}

#[test]
fn a_request_gets_its_events_in_order_with_either_lag() {
    for lag in [Lag::Zero, Lag::One] {
        let setup = engine(lag, 4, None);
        let events = tokens(&setup.engine, &[1, 2, 3], 3);
        let token = RequestEvent::Token { choice: 0, token: 7, logprobs: None };
        let expected = [
            RequestEvent::Prompt { cached_tokens: 0, logprobs: Vec::new(), pooled: None },
            token.clone(),
            token.clone(),
            token,
            RequestEvent::Finished { choice: 0, reason: FinishReason::Length },
        ];
        assert_eq!(events, expected, "{lag:?}");
        let counted = setup.engine.metrics().snapshot();
        assert_eq!((counted.prompt_tokens, counted.generated_tokens), (3, 3));
    }
}

#[test]
fn dropping_a_stream_frees_its_sequence_and_its_blocks() {
    let setup = engine(Lag::Zero, 4, None);
    let mut stream = setup.engine.submit(request(&[1, 2], 900)).expect("taken");
    assert!(stream.blocking_next().is_some());
    drop(stream);
    setup.released.recv_timeout(Duration::from_secs(10)).expect("the sequence is released");
    assert_eq!(tokens(&setup.engine, &[1; 900], 2).len(), 4);
}

#[test]
fn a_stop_string_ends_one_choice_alone() {
    let (gate, held) = mpsc::channel();
    let setup = engine(Lag::One, 4, Some(held));
    let mut both = request(&[1, 2], 500);
    both.n = 2;
    let mut stream = setup.engine.submit(both).expect("taken");
    // Three steps run, then the engine waits until the stop string is found.
    (0..3).for_each(|_| gate.send(()).expect("the engine runs"));
    let mut gate = Some(gate);
    let mut counts = [0, 0];
    let mut reasons = [None, None];
    while let Some(event) = stream.blocking_next() {
        match event {
            RequestEvent::Token { choice, .. } => {
                counts[choice as usize] += 1;
                stream.end_choice(0);
                gate = None;
            }
            RequestEvent::Finished { choice, reason } => reasons[choice as usize] = Some(reason),
            _ => {}
        }
    }
    assert_eq!(reasons, [Some(FinishReason::Stop), Some(FinishReason::Length)]);
    assert_eq!(counts[1], 500);
    assert!(counts[0] <= 4, "choice 0 went on for {} tokens", counts[0]);
    assert!(gate.is_none());
}

#[test]
fn what_one_row_cannot_do_ends_that_request_alone() {
    let setup = engine(Lag::Zero, 4, None);
    let mut good = setup.engine.submit(request(&[1], 200)).expect("taken");
    let bad = tokens(&setup.engine, &[POISON], 200);
    assert_eq!(bad, [RequestEvent::Failed(SampleError::NotFinite.to_string().into())]);
    let events: Vec<_> = std::iter::from_fn(|| good.blocking_next()).collect();
    assert_eq!(events.len(), 202);
}

#[test]
fn a_broken_invariant_ends_the_engine_and_says_so() {
    let setup = engine(Lag::Zero, 4, None);
    let mut good = setup.engine.submit(request(&[1], 1000)).expect("taken");
    let bad = tokens(&setup.engine, &[BREAK], 5);
    setup.thread.join().expect("the engine's thread ends in order");
    let EngineStatus::Dead(reason) = setup.engine.status() else { panic!("{:?}", setup.engine.status()) };
    assert!(reason.contains("a test breaks the engine"), "{reason}");
    assert!(bad.len() <= 1, "{bad:?}");
    let last = std::iter::from_fn(|| good.blocking_next()).last().expect("at least the failure");
    assert_eq!(last, RequestEvent::Failed(reason.clone()));
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    assert_eq!(runtime.block_on(setup.engine.dead()), reason);
    assert_eq!(setup.engine.submit(request(&[1], 1)).err(), Some(SubmitError::Dead(reason)));
}

#[test]
fn a_full_queue_refuses_and_a_finished_request_makes_room() {
    let (gate, held) = mpsc::channel();
    let setup = engine(Lag::Zero, 1, Some(held));
    let mut streams: Vec<_> = (0..5).map(|_| setup.engine.submit(request(&[1], 1)).expect("there is room")).collect();
    let Err(SubmitError::Busy { max_waiting: 1, retry_after_s }) = setup.engine.submit(request(&[1], 1)) else {
        panic!("the sixth request was not refused");
    };
    assert!(retry_after_s >= 1);
    drop(gate);
    for stream in &mut streams {
        assert!(std::iter::from_fn(|| stream.blocking_next()).count() == 3);
    }
    assert!(setup.engine.submit(request(&[1], 1)).is_ok());
}

#[test]
fn one_tenant_cannot_fill_the_queue_alone() {
    let (gate, held) = mpsc::channel();
    let setup = engine(Lag::Zero, 4, Some(held));
    let of = |tenant: &str| Request { tenant: Tenant::new(tenant), ..request(&[1], 1) };
    let mut streams: Vec<_> = (0..7).map(|_| setup.engine.submit(of("greedy")).expect("there is room")).collect();
    assert!(matches!(setup.engine.submit(of("greedy")), Err(SubmitError::Busy { .. })));
    streams.push(setup.engine.submit(of("other")).expect("a quarter of the queue is for others"));
    drop(gate);
    for stream in &mut streams {
        assert_eq!(std::iter::from_fn(|| stream.blocking_next()).count(), 3);
    }
}

#[test]
fn a_reader_that_is_too_slow_is_ended_and_holds_nobody() {
    let setup = engine(Lag::Zero, 4, None);
    let mut slow = setup.engine.submit(request(&[1], 4000)).expect("taken");
    // Nobody reads until the engine has given up on it.
    setup.released.recv_timeout(Duration::from_secs(10)).expect("the sequence is released");
    let events: Vec<_> = std::iter::from_fn(|| slow.blocking_next()).collect();
    assert_eq!(events.len(), EVENT_CAPACITY);
    assert!(!events.iter().any(|event| matches!(event, RequestEvent::Finished { .. })));
    assert_eq!(tokens(&setup.engine, &[1], 3).len(), 5, "others go on");
}

#[test]
fn draining_finishes_what_runs_and_shutdown_tells_the_rest() {
    let setup = engine(Lag::Zero, 4, None);
    let mut running = setup.engine.submit(request(&[1], 50)).expect("taken");
    setup.engine.drain();
    assert_eq!(setup.engine.submit(request(&[1], 1)).err(), Some(SubmitError::Draining));
    assert_eq!(std::iter::from_fn(|| running.blocking_next()).count(), 52);

    let (gate, held) = mpsc::channel();
    let setup = engine(Lag::Zero, 4, Some(held));
    let mut running = setup.engine.submit(request(&[1], 1000)).expect("taken");
    setup.engine.shutdown("the machine goes down");
    drop(gate);
    setup.thread.join().expect("the engine's thread ends in order");
    let last = std::iter::from_fn(|| running.blocking_next()).last();
    assert_eq!(last, Some(RequestEvent::Failed("the machine goes down".into())));
}

fn resize(engine: &EngineHandle, blocks: u32, main_bytes: u64) -> Option<u32> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(engine.resize_kv(blocks, main_bytes))
}

#[test]
fn an_idle_engine_resizes_its_cache_within_its_bounds_and_serves_as_before() {
    for lag in [Lag::Zero, Lag::One] {
        let setup = engine(lag, 4, None);
        let gauges = || {
            let counted = setup.engine.metrics().snapshot();
            (counted.blocks_total, counted.blocks_used, counted.kv_given_back_bytes)
        };
        assert_eq!(gauges(), (512, 0, 0), "before anything was done");
        let longest = vec![1; 4000];
        let whole = tokens(&setup.engine, &longest, 90);
        // One whole context of 4096 tokens stays.
        assert_eq!((resize(&setup.engine, 0, 0), gauges()), (Some(256), (256, 0, 256_000)));
        let again = tokens(&setup.engine, &longest, 90);
        assert_eq!(whole[1..], again[1..], "{lag:?}");
        let RequestEvent::Prompt { cached_tokens, .. } = again[0] else { panic!("{:?}", again[0]) };
        assert_eq!(cached_tokens, 3984, "what lies in the blocks that stay is found");
        assert_eq!((resize(&setup.engine, u32::MAX, 300), gauges()), (Some(300), (300, 0, 212_000)));
        assert_eq!((resize(&setup.engine, u32::MAX, 9999), gauges()), (Some(512), (512, 0, 0)));
        assert_eq!(tokens(&setup.engine, &longest, 90)[1..], whole[1..], "{lag:?}");
    }
}

#[test]
fn a_busy_engine_keeps_its_cache_as_it_is() {
    let (gate, held) = mpsc::channel();
    let setup = engine(Lag::One, 4, Some(held));
    let mut running = setup.engine.submit(request(&[1], 200)).expect("taken");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let answer = runtime.block_on(async {
        let mut asked = std::pin::pin!(setup.engine.resize_kv(0, 0));
        // The first look sends the wish; the request needs many steps after that.
        let early = std::future::poll_fn(|context| Poll::Ready(asked.as_mut().poll(context).is_ready())).await;
        assert!(!early, "the engine waits for the gate");
        drop(gate);
        asked.await
    });
    assert_eq!((answer, setup.engine.metrics().snapshot().blocks_total), (None, 512));
    assert_eq!(std::iter::from_fn(|| running.blocking_next()).count(), 202);
    assert_eq!(resize(&setup.engine, 0, 0), Some(256), "now it is idle");
    setup.engine.shutdown("the test is over");
    setup.thread.join().expect("the engine's thread ends in order");
    assert_eq!(resize(&setup.engine, 0, 0), None, "nobody is there to do it");
}

#[test]
fn bad_requests_are_refused_with_the_field_and_both_counts() {
    let setup = engine(Lag::Zero, 4, None);
    let refused = |change: &dyn Fn(&mut Request)| {
        let mut bad = request(&[1], 1);
        change(&mut bad);
        setup.engine.submit(bad).err().expect("refused").to_string()
    };
    let too_long = refused(&|bad| bad.prompt = vec![1; 4096].into());
    assert!(too_long.contains("4096 tokens") && too_long.contains("holds 4096"), "{too_long}");
    assert!(refused(&|bad| bad.prompt = Vec::new().into()).starts_with("prompt"));
    assert!(refused(&|bad| bad.prompt = vec![100].into()).contains("token id 100"));
    assert!(refused(&|bad| bad.n = 5).starts_with("n: 5"));
    assert!(refused(&|bad| bad.stop.max_tokens = 0).starts_with("max_tokens"));
    assert!(refused(&|bad| bad.sampling.temperature = f32::NAN).starts_with("temperature"));
    assert!(refused(&|bad| bad.sampling.top_p = 0.0).starts_with("top_p"));
    assert!(refused(&|bad| bad.sampling.top_k = Some(0)).starts_with("top_k"));
    assert!(refused(&|bad| bad.sampling.logit_bias = vec![(100, 1.0)]).contains("token id 100"));
    assert!(refused(&|bad| bad.stop.stop_token_ids = vec![1, 100]).starts_with("stop_token_ids: 100 "));
    assert!(refused(&|bad| bad.stop.min_tokens = 4096).starts_with("min_tokens: 4096 after"));
    assert!(refused(&|bad| bad.sampling.logprobs = Some(21)).starts_with("logprobs"));
    let bias = refused(&|bad| bad.sampling.logit_bias = vec![(1, 1.0); MAX_LISTED_TOKENS + 1]);
    assert_eq!(bias, "logit_bias: 1025 tokens are more than the 1024 taken");
    let stops = refused(&|bad| bad.stop.stop_token_ids = vec![1; MAX_LISTED_TOKENS]);
    assert!(stops.starts_with("stop_token_ids: 1025 tokens"), "{stops}");
    let mut most = request(&[1], 1);
    most.sampling.logit_bias = vec![(1, 1.0); MAX_LISTED_TOKENS];
    most.stop.stop_token_ids = vec![1; MAX_LISTED_TOKENS - 1];
    assert!(setup.engine.submit(most).is_ok());
}
