//! The engine's thread: take requests, schedule, execute, commit, tell; again.
//!
//! Knows what a step is, and neither how it is planned nor how it is computed.

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::request::{FinishReason, RequestEvent, RequestId, SeqId, TokenLogprobs};
use crate::runner::{RunnerError, SampleError, StepOutput, StepRunner, give_back_freed};
use crate::scheduler::{AdmitError, Scheduler, SchedulerEvent, SchedulerOutput};

use super::delivery::{Delivery, Reader};
use super::handle::{Command, EngineInbox, KvResize, Submission};

/// A request that the scheduler has.
struct Live {
    submission: Submission,
    reader: Arc<Reader>,
    sequences: Vec<SeqId>,
    /// Choices that have not ended.
    unfinished: usize,
    /// What the prompt's chunks have given so far.
    prompt_logprobs: Vec<TokenLogprobs>,
    /// What the prompt was pooled to.
    pooled: Option<Vec<f32>>,
}

/// Everything the engine's thread owns.
pub(crate) struct Engine<R> {
    scheduler: Scheduler,
    runner: R,
    /// Its end says that the model's memory is free: see [`Engine::leave`].
    inbox: EngineInbox,
    /// Steps that may be begun before the oldest of them is committed, less one: 0 or 1.
    lag: usize,
    live: HashMap<RequestId, Live>,
    owners: HashMap<SeqId, RequestId>,
    /// Steps that were begun and are not committed.
    uncommitted: VecDeque<SchedulerOutput>,
    /// Outputs whose memory is used again.
    spare: Vec<SchedulerOutput>,
    events: Vec<SchedulerEvent>,
    delivery: Delivery,
    /// What is to be done once a step is over.
    resize: Option<KvResize>,
}

/// Whether the loop goes on.
enum Flow {
    Continue,
    Stop(Arc<str>),
}

/// Runs an engine on an OS thread of its own until its handles are gone, it is shut down, or it breaks.
///
/// # Errors
/// If the operating system refuses the thread.
pub(crate) fn spawn<R: StepRunner + 'static>(
    scheduler: Scheduler,
    runner: R,
    inbox: EngineInbox,
) -> std::io::Result<JoinHandle<()>> {
    let lag = scheduler.config().lag.steps();
    // A runner that computes where it is called leaves no processor for another thread.
    let delivery = if lag == 0 { Delivery::direct() } else { Delivery::by_thread()? };
    let mut engine = Engine {
        scheduler,
        runner,
        inbox,
        lag,
        live: HashMap::new(),
        owners: HashMap::new(),
        uncommitted: VecDeque::new(),
        spare: Vec::new(),
        events: Vec::new(),
        delivery,
        resize: None,
    };
    // Nobody who has a handle sees a cache without blocks.
    engine.publish();
    std::thread::Builder::new().name("lantern-engine".into()).spawn(move || {
        let ended = catch_unwind(AssertUnwindSafe(|| engine.run()));
        let reason = match ended {
            Ok(Ok(reason)) => reason,
            Ok(Err(error)) => format!("a step failed: {error}").into(),
            Err(panic) => format!("an invariant is broken: {}", panic_message(&*panic)).into(),
        };
        tracing::info!(%reason, "the engine has ended");
        engine.end_all(reason);
        engine.leave();
    })
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("a panic without a message")
}

impl<R: StepRunner> Engine<R> {
    fn run(&mut self) -> Result<Arc<str>, RunnerError> {
        loop {
            if let Flow::Stop(reason) = self.take_commands() {
                return Ok(reason);
            }
            let started = Instant::now();
            self.drop_abandoned();
            self.step(started)?;
            self.resize_kv()?;
            self.publish();
        }
    }

    /// Takes what has arrived; waits for it where there is nothing to do.
    fn take_commands(&mut self) -> Flow {
        if self.live.is_empty() && self.scheduler.is_idle() {
            match self.inbox.wait() {
                Some(command) => {
                    if let Flow::Stop(reason) = self.take(command) {
                        return Flow::Stop(reason);
                    }
                }
                None => return Flow::Stop("nobody holds it any more".into()),
            }
        }
        while let Some(command) = self.inbox.try_next() {
            if let Flow::Stop(reason) = self.take(command) {
                return Flow::Stop(reason);
            }
        }
        Flow::Continue
    }

    fn take(&mut self, command: Command) -> Flow {
        match command {
            Command::Submit(submission) => self.admit(*submission),
            Command::ResizeKv(wish) => self.resize = Some(wish),
            Command::Shutdown(reason) => return Flow::Stop(reason),
        }
        Flow::Continue
    }

    fn admit(&mut self, submission: Submission) {
        let id = submission.id;
        match self.scheduler.add(id, &submission.request) {
            Ok(sequences) => {
                let seed = submission.request.sampling.seed.unwrap_or_else(crate::runner::random_seed);
                let request = Arc::new(submission.request.clone());
                for (choice, seq) in sequences.iter().enumerate() {
                    self.runner.start(*seq, request.clone(), choice as u32, seed);
                    self.owners.insert(*seq, id);
                }
                let unfinished = sequences.len();
                let reader = Reader::new(id, submission.events.clone());
                self.delivery.open(&reader);
                let (prompt_logprobs, pooled) = (Vec::new(), None);
                self.live.insert(id, Live { submission, reader, sequences, unfinished, prompt_logprobs, pooled });
            }
            Err(error) => refuse(&submission, &error),
        }
    }

    /// Cancels what nobody reads any more, and ends the choices whose readers have found a stop string.
    fn drop_abandoned(&mut self) {
        let mut abandoned = Vec::new();
        for (id, live) in &self.live {
            if live.reader.is_lost() {
                abandoned.push(*id);
                continue;
            }
            for (seq, ended) in live.sequences.iter().zip(live.submission.ended.iter()) {
                if ended.load(Relaxed) {
                    self.scheduler.finish(*seq, FinishReason::Stop, &mut self.events);
                }
            }
        }
        for id in abandoned {
            self.cancel(id);
        }
        self.tell_all(&mut StepOutput::default());
    }

    /// One step, whose work began at `started`: plan and begin the next, commit the one that is `lag` steps old.
    fn step(&mut self, started: Instant) -> Result<(), RunnerError> {
        let scheduling = Instant::now();
        let mut planned = self.spare.pop().unwrap_or_default();
        self.scheduler.schedule(&mut planned);
        for seq in &planned.released {
            self.runner.release(*seq);
        }
        let (empty, tokens, rows) = (planned.is_empty(), planned.tokens.len(), planned.rows.len());
        let begun = Instant::now();
        if empty {
            self.spare.push(planned);
        } else {
            self.runner.begin(&planned)?;
            self.uncommitted.push_back(planned);
        }
        let collecting = Instant::now();
        let mut waited = Duration::ZERO;
        let keep = if empty { 0 } else { self.lag };
        while self.uncommitted.len() > keep
            && let Some(planned) = self.uncommitted.pop_front()
        {
            let result = self.runner.collect()?;
            self.inbox.metrics().model_nanoseconds.fetch_add(result.model_time.as_nanos() as u64, Relaxed);
            waited += result.model_time;
            self.commit(planned, result);
        }
        if !empty {
            let metrics = self.inbox.metrics();
            metrics.steps.fetch_add(1, Relaxed);
            metrics.step_nanoseconds.fetch_add(started.elapsed().as_nanos() as u64, Relaxed);
            let schedule_us = (begun - scheduling).as_micros() as u64;
            let begin_us = (collecting - begun).as_micros() as u64;
            let commit_us = collecting.elapsed().saturating_sub(waited).as_micros() as u64;
            let wait_us = waited.as_micros() as u64;
            tracing::trace!(rows, tokens, schedule_us, begin_us, wait_us, commit_us, "step");
        }
        Ok(())
    }

    /// Gives the KV cache the size that was wished for, unless somebody needs the one that it has.
    fn resize_kv(&mut self) -> Result<(), RunnerError> {
        let Some(KvResize { blocks, main_bytes, reply }) = self.resize.take() else { return Ok(()) };
        // What has ended is let go of first.
        while self.live.is_empty() && !self.scheduler.is_idle() {
            self.step(Instant::now())?;
        }
        let mut now = None;
        if self.live.is_empty() {
            let config = self.scheduler.config();
            let blocks = blocks.clamp(config.least_blocks(), config.num_blocks);
            let size = self.runner.resize_kv(blocks, main_bytes)?;
            self.scheduler.resize_cache(size.blocks);
            self.inbox.metrics().kv_given_back_bytes.store(size.given_back_bytes, Relaxed);
            now = Some(size.blocks);
        }
        // Before it is answered, so that who has the answer sees gauges that agree.
        self.publish();
        let _ = reply.send(now);
        Ok(())
    }

    fn commit(&mut self, planned: SchedulerOutput, mut result: StepOutput) {
        for (seq, error) in std::mem::take(&mut result.failed) {
            if let Some(id) = self.owners.get(&seq).copied() {
                self.fail(id, error);
            }
        }
        for (seq, start, logprobs) in std::mem::take(&mut result.prompt_logprobs) {
            if let Some(live) = self.owners.get(&seq).and_then(|id| self.live.get_mut(id)) {
                // A preempted prompt comes again from its first token: what it gives now replaces what it gave.
                live.prompt_logprobs.truncate(start as usize);
                live.prompt_logprobs.extend(logprobs);
            }
        }
        for (seq, pooled) in std::mem::take(&mut result.pooled) {
            if let Some(live) = self.owners.get(&seq).and_then(|id| self.live.get_mut(id)) {
                live.pooled = Some(pooled);
            }
        }
        let sampled: Vec<_> = result.sampled.iter().map(|sampled| (sampled.seq, sampled.token)).collect();
        self.scheduler.commit(&planned, &sampled, &mut self.events);
        // Before anybody hears of it, so that who has its answer sees gauges without it.
        self.publish();
        self.tell_all(&mut result);
        self.spare.push(planned);
    }

    /// Passes the scheduler's events on; sending them may cancel requests, which gives more events.
    fn tell_all(&mut self, result: &mut StepOutput) {
        // Before anybody hears of them, as the gauges.
        let tokens = self.events.iter().filter(|event| matches!(event, SchedulerEvent::Token { .. })).count();
        self.inbox.metrics().generated_tokens.fetch_add(tokens as u64, Relaxed);
        let mut next = 0;
        while !self.events.is_empty() {
            for event in std::mem::take(&mut self.events) {
                self.tell(event, result, &mut next);
            }
        }
        self.delivery.flush();
    }

    /// Passes one event on to whom it concerns. `next` is where the next token's draw is looked for first.
    fn tell(&mut self, event: SchedulerEvent, result: &mut StepOutput, next: &mut usize) {
        match event {
            SchedulerEvent::PromptDone { request, cached_tokens } => {
                let Some(live) = self.live.get_mut(&request) else { return };
                let logprobs = std::mem::take(&mut live.prompt_logprobs);
                let tokens = live.submission.request.prompt.len() as u64;
                self.inbox.metrics().prompt_tokens.fetch_add(tokens, Relaxed);
                let pooled = live.pooled.take();
                self.delivery.send(request, RequestEvent::Prompt { cached_tokens, logprobs, pooled });
            }
            SchedulerEvent::Token { request, choice, seq, token } => {
                // Events come in the order of the draws: the next one is nearly always at hand.
                let behind = result.sampled.iter().skip(*next).position(|sampled| sampled.seq == seq);
                let at = match behind {
                    Some(behind) => Some(*next + behind),
                    None => result.sampled.iter().position(|sampled| sampled.seq == seq),
                };
                *next = at.map_or(*next, |at| at + 1);
                let logprobs = at.and_then(|at| result.sampled[at].logprobs.take());
                self.delivery.send(request, RequestEvent::Token { choice, token, logprobs });
            }
            SchedulerEvent::Finished { request, choice, reason, seq } => {
                // What a step in flight says of it concerns nobody.
                self.owners.remove(&seq);
                let Some(live) = self.live.get_mut(&request) else { return };
                live.unfinished -= 1;
                let over = live.unfinished == 0;
                self.delivery.send(request, RequestEvent::Finished { choice, reason });
                if over {
                    self.forget(request);
                }
            }
        }
    }

    fn fail(&mut self, id: RequestId, error: SampleError) {
        let event = match error {
            SampleError::Grammar(reason) => RequestEvent::DeadEnd(reason.into()),
            SampleError::NotFinite => RequestEvent::Failed(error.to_string().into()),
        };
        // Where even this does not fit, the closed channel says it.
        self.delivery.send(id, event);
        self.cancel(id);
    }

    /// Ends a request that gets no further event.
    fn cancel(&mut self, id: RequestId) {
        self.forget(id);
        self.scheduler.cancel(id, &mut self.events);
    }

    fn forget(&mut self, id: RequestId) {
        if let Some(live) = self.live.remove(&id) {
            self.delivery.close(id);
            for seq in &live.sequences {
                self.owners.remove(seq);
            }
        }
    }

    /// Writes the gauges.
    fn publish(&self) {
        let metrics = self.inbox.metrics();
        let stats = self.scheduler.stats();
        metrics.running.store(stats.running as u64, Relaxed);
        metrics.waiting.store(stats.waiting as u64, Relaxed);
        metrics.blocks_total.store(stats.blocks_total as u64, Relaxed);
        metrics.blocks_used.store(stats.blocks_used as u64, Relaxed);
        metrics.preemptions.store(stats.preemptions, Relaxed);
        metrics.prefix_queries.store(stats.prefix_queried_tokens, Relaxed);
        metrics.prefix_hits.store(stats.prefix_hit_tokens, Relaxed);
    }

    /// Tells every request that is left why it ends, and takes no more.
    fn end_all(&mut self, reason: Arc<str>) {
        self.inbox.set_dead(reason.clone());
        for id in self.live.keys() {
            self.delivery.send(*id, RequestEvent::Failed(reason.clone()));
        }
        self.delivery.flush();
        self.live.clear();
        while let Some(command) = self.inbox.try_next() {
            if let Command::Submit(submission) = command {
                let _ = submission.events.try_send(RequestEvent::Failed(reason.clone()));
            }
        }
    }

    /// Frees the model's memory, and then lets the inbox end, which says so.
    fn leave(self) {
        let Self { runner, inbox, .. } = self;
        drop(runner);
        give_back_freed();
        drop(inbox);
    }
}

fn refuse(submission: &Submission, error: &AdmitError) {
    let _ = submission.events.try_send(RequestEvent::Failed(error.to_string().into()));
}
