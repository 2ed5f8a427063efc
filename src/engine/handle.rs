//! The engine as everybody else sees it: a cheap handle that submits requests and reads their events.
//!
//! Knows no scheduler and no model: a test puts a thread of its own behind the [`EngineInbox`].

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

use crate::request::{MAX_LISTED_TOKENS, MAX_LOGPROBS, Request, RequestEvent, RequestId, Tenant};

use super::metrics::EngineMetrics;

/// Events that one request may have waiting, for each of its choices, before its reader counts as too slow.
pub const EVENT_CAPACITY: usize = 1024;

/// What the engine takes; checked before a request is queued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineLimits {
    /// Prompt and answer together, in tokens.
    pub max_context: u32,
    /// Sequences that one step may hold; also the most choices of one request.
    pub max_sequences: u32,
    /// Requests that may wait besides those that run.
    pub max_waiting: u32,
    /// Tokens in the vocabulary.
    pub vocab_size: u32,
}

/// How the engine is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EngineStatus {
    /// Takes requests.
    Ready,
    /// Finishes what it has and takes no more.
    Draining,
    /// Has stopped for this reason and will not come back.
    Dead(Arc<str>),
}

/// Why a request was not taken.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SubmitError {
    /// The prompt leaves no room for an answer.
    #[error(
        "the prompt has {prompt_tokens} tokens and this model's context holds {max_context}, of which at least one \
         is the answer's; nothing was cut"
    )]
    PromptTooLong {
        /// Tokens in the prompt.
        prompt_tokens: usize,
        /// Tokens in the context.
        max_context: u32,
    },
    /// A parameter is outside what the engine takes.
    #[error("{field}: {problem}")]
    Invalid {
        /// Name of the parameter.
        field: &'static str,
        /// What is wrong with it and what would be right.
        problem: String,
    },
    /// The queue is full.
    #[error(
        "the queue is full: {max_waiting} may wait, and a quarter of that is kept for other users; try again in {retry_after_s} s"
    )]
    Busy {
        /// Length of the queue.
        max_waiting: u32,
        /// When to try again, in seconds.
        retry_after_s: u32,
    },
    /// The server is shutting down.
    #[error("the server is shutting down and takes no new requests")]
    Draining,
    /// The engine has stopped.
    #[error("the engine has stopped: {0}")]
    Dead(Arc<str>),
}

/// A tenant's share of the queue, for one request's whole life.
pub(crate) struct TenantPermit {
    shared: Arc<Shared>,
    tenant: Tenant,
}

impl TenantPermit {
    /// One more request of `tenant`; `None` where it has as many as it may. A quarter of the queue is kept for others.
    fn acquire(shared: &Arc<Shared>, tenant: &Tenant) -> Option<Self> {
        let limits = &shared.limits;
        let most = limits.max_sequences + limits.max_waiting - limits.max_waiting / 4;
        let mut tenants = shared.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        let held = tenants.entry(tenant.clone()).or_insert(0);
        if *held >= most {
            return None;
        }
        *held += 1;
        Some(Self { shared: shared.clone(), tenant: tenant.clone() })
    }
}

impl Drop for TenantPermit {
    fn drop(&mut self) {
        let mut tenants = self.shared.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = tenants.get_mut(&self.tenant) {
            *held -= 1;
            if *held == 0 {
                tenants.remove(&self.tenant);
            }
        }
    }
}

/// What reaches the engine's thread.
pub(crate) enum Command {
    /// A checked request.
    Submit(Box<Submission>),
    /// Make the KV cache larger or smaller.
    ResizeKv(KvResize),
    /// End everything: running requests get this as their failure.
    Shutdown(Arc<str>),
}

/// The wish for a KV cache of another size.
pub(crate) struct KvResize {
    /// Held between what one whole context needs and what was planned.
    pub(crate) blocks: u32,
    /// Bytes of main memory that are free.
    pub(crate) main_bytes: u64,
    /// Hears how many there are then; `None` where requests live, and nothing was done.
    pub(crate) reply: oneshot::Sender<Option<u32>>,
}

/// A checked request on its way to the engine.
pub(crate) struct Submission {
    pub(crate) id: RequestId,
    pub(crate) request: Request,
    pub(crate) events: mpsc::Sender<RequestEvent>,
    /// One flag a choice: its reader wants no more of it (a stop string was found).
    pub(crate) ended: Arc<[AtomicBool]>,
    /// Held for the request's whole life: what bounds the queue.
    pub(crate) _permit: OwnedSemaphorePermit,
    /// Likewise: what keeps one tenant from filling it.
    pub(crate) _share: TenantPermit,
}

struct Shared {
    limits: EngineLimits,
    status: watch::Sender<EngineStatus>,
    metrics: EngineMetrics,
    permits: Arc<Semaphore>,
    /// Requests of each tenant that has any.
    tenants: Mutex<HashMap<Tenant, u32>>,
    next_id: AtomicU64,
}

/// Submits requests; cheap to clone.
#[derive(Clone)]
pub struct EngineHandle {
    commands: mpsc::UnboundedSender<Command>,
    shared: Arc<Shared>,
}

/// The engine's end of the channel.
pub(crate) struct EngineInbox {
    commands: mpsc::UnboundedReceiver<Command>,
    shared: Arc<Shared>,
}

/// A handle and the inbox behind it.
pub(crate) fn channel(limits: EngineLimits) -> (EngineHandle, EngineInbox) {
    // The channel itself need not be bounded: a command needs a permit, and those are.
    let (sender, receiver) = mpsc::unbounded_channel();
    let capacity = limits.max_waiting as usize + limits.max_sequences as usize;
    let shared = Arc::new(Shared {
        permits: Arc::new(Semaphore::new(capacity)),
        status: watch::Sender::new(EngineStatus::Ready),
        metrics: EngineMetrics::default(),
        tenants: Mutex::default(),
        next_id: AtomicU64::new(1),
        limits,
    });
    (EngineHandle { commands: sender, shared: shared.clone() }, EngineInbox { commands: receiver, shared })
}

impl EngineHandle {
    /// Queues a request; its events come through the stream. Dropping the stream cancels the request.
    ///
    /// # Errors
    /// [`SubmitError`]: the request is invalid, the queue is full, or the engine takes no more.
    pub fn submit(&self, request: Request) -> Result<RequestStream, SubmitError> {
        match self.status() {
            EngineStatus::Ready => {}
            EngineStatus::Draining => return Err(SubmitError::Draining),
            EngineStatus::Dead(reason) => return Err(SubmitError::Dead(reason)),
        }
        check(&request, &self.shared.limits)?;
        let busy = || SubmitError::Busy {
            max_waiting: self.shared.limits.max_waiting,
            retry_after_s: self.shared.metrics.retry_after_s(),
        };
        let share = TenantPermit::acquire(&self.shared, &request.tenant).ok_or_else(busy)?;
        let permit = self.shared.permits.clone().try_acquire_owned().map_err(|_| busy())?;
        let id = RequestId(self.shared.next_id.fetch_add(1, Ordering::Relaxed));
        let (sender, events) = mpsc::channel(EVENT_CAPACITY * request.n as usize);
        let ended: Arc<[AtomicBool]> = (0..request.n).map(|_| AtomicBool::new(false)).collect();
        let submission =
            Submission { id, request, events: sender, ended: ended.clone(), _permit: permit, _share: share };
        self.commands
            .send(Command::Submit(Box::new(submission)))
            .map_err(|_| SubmitError::Dead("its thread has ended".into()))?;
        Ok(RequestStream { id, events, ended })
    }

    /// What the engine takes.
    pub fn limits(&self) -> &EngineLimits {
        &self.shared.limits
    }

    /// How the engine is.
    pub fn status(&self) -> EngineStatus {
        self.shared.status.borrow().clone()
    }

    /// Waits until the engine has stopped, for whatever reason; gives the reason. For ever where it never does.
    pub async fn dead(&self) -> Arc<str> {
        let mut status = self.shared.status.subscribe();
        loop {
            if let EngineStatus::Dead(reason) = &*status.borrow_and_update() {
                return reason.clone();
            }
            if status.changed().await.is_err() {
                // Cannot be: this handle holds the sender.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Waits until the engine's thread has ended and what it held, the model's memory above all, is free.
    pub async fn gone(&self) {
        self.commands.closed().await;
    }

    /// Whether both are handles of one engine.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    /// Counters and gauges.
    pub fn metrics(&self) -> &EngineMetrics {
        &self.shared.metrics
    }

    /// Takes no new requests from now on; those it has go on.
    pub fn drain(&self) {
        self.shared.set_status_unless_dead(EngineStatus::Draining);
    }

    /// Waits until no request is left. New ones are kept out by [`Self::drain`].
    pub async fn idle(&self) {
        let all = self.shared.limits.max_waiting + self.shared.limits.max_sequences;
        // The semaphore is never closed, so acquiring fails for nobody.
        let _ = self.shared.permits.acquire_many(all).await;
    }

    /// Makes the KV cache `blocks` large, held between what one whole context needs and what was planned, and as far as there
    /// is memory, of main memory `main_bytes`: how many there are then. `None` where requests live or the engine has stopped,
    /// and nothing was done.
    pub(crate) async fn resize_kv(&self, blocks: u32, main_bytes: u64) -> Option<u32> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::ResizeKv(KvResize { blocks, main_bytes, reply })).ok()?;
        answer.await.ok().flatten()
    }

    /// Ends every request with `reason` and stops the engine's thread.
    pub fn shutdown(&self, reason: &str) {
        let _ = self.commands.send(Command::Shutdown(reason.into()));
    }
}

impl Shared {
    fn set_status_unless_dead(&self, status: EngineStatus) {
        self.status.send_if_modified(|current| {
            let lives = !matches!(current, EngineStatus::Dead(_));
            if lives {
                *current = status;
            }
            lives
        });
    }
}

impl EngineInbox {
    /// The next command, at once or not at all.
    pub(crate) fn try_next(&mut self) -> Option<Command> {
        self.commands.try_recv().ok()
    }

    /// The next command, waiting for it; `None` when every handle is gone.
    pub(crate) fn wait(&mut self) -> Option<Command> {
        self.commands.blocking_recv()
    }

    /// Counters and gauges to write.
    pub(crate) fn metrics(&self) -> &EngineMetrics {
        &self.shared.metrics
    }

    /// From now on nothing is taken, for this reason.
    pub(crate) fn set_dead(&self, reason: Arc<str>) {
        self.shared.set_status_unless_dead(EngineStatus::Dead(reason));
    }
}

/// The events of one request. Dropping it cancels the request within one step.
pub struct RequestStream {
    id: RequestId,
    events: mpsc::Receiver<RequestEvent>,
    ended: Arc<[AtomicBool]>,
}

impl RequestStream {
    /// The request's number.
    pub fn id(&self) -> RequestId {
        self.id
    }

    /// The next event; `None` after the last. An end without a `Finished` for every choice means that the reader
    /// was too slow or the engine stopped.
    pub async fn next(&mut self) -> Option<RequestEvent> {
        self.events.recv().await
    }

    /// As [`Self::next`], for a caller that polls.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<RequestEvent>> {
        self.events.poll_recv(context)
    }

    /// The next event, for callers outside an async runtime.
    ///
    /// # Panics
    /// Inside an async runtime.
    pub fn blocking_next(&mut self) -> Option<RequestEvent> {
        self.events.blocking_recv()
    }

    /// Ends one choice early, as finished by a stop string. It still gets its `Finished` event.
    pub fn end_choice(&self, choice: u32) {
        if let Some(flag) = self.ended.get(choice as usize) {
            flag.store(true, Ordering::Relaxed);
        }
    }
}

fn check(request: &Request, limits: &EngineLimits) -> Result<(), SubmitError> {
    let invalid = |field, problem: String| Err(SubmitError::Invalid { field, problem });
    if request.prompt.is_empty() {
        return invalid("prompt", "it has no tokens; at least one is needed".into());
    }
    if request.prompt.len() >= limits.max_context as usize {
        return Err(SubmitError::PromptTooLong {
            prompt_tokens: request.prompt.len(),
            max_context: limits.max_context,
        });
    }
    if let Some(token) = request.prompt.iter().find(|token| **token >= limits.vocab_size) {
        return invalid("prompt", format!("token id {token} is outside the vocabulary of {}", limits.vocab_size));
    }
    if let Some(token) = request.stop.stop_token_ids.iter().find(|token| **token >= limits.vocab_size) {
        return invalid("stop_token_ids", format!("{token} is outside the vocabulary of {}", limits.vocab_size));
    }
    let (prompt_tokens, min_tokens) = (request.prompt.len(), request.stop.min_tokens);
    if prompt_tokens + min_tokens as usize > limits.max_context as usize {
        let problem = format!(
            "{min_tokens} after the prompt's {prompt_tokens} are more than this model's context of {}",
            limits.max_context
        );
        return invalid("min_tokens", problem);
    }
    if request.n == 0 || request.n > limits.max_sequences {
        return invalid("n", format!("{} is outside 1 to {}", request.n, limits.max_sequences));
    }
    if request.stop.max_tokens == 0 {
        return invalid("max_tokens", "0 asks for nothing; at least 1 is needed".into());
    }
    if request.pooling.is_some() && request.n > 1 {
        return invalid("n", format!("a prompt is pooled once, not {} times", request.n));
    }
    if request.pooling.is_some() && request.sampling.prompt_logprobs.is_some() {
        return invalid("prompt_logprobs", "a prompt that is pooled has none".into());
    }
    let enders = request.stop.eos_token_ids.len() + request.stop.stop_token_ids.len();
    if enders > MAX_LISTED_TOKENS {
        let problem =
            format!("{enders} tokens, the model's own end tokens counted, are more than the {MAX_LISTED_TOKENS} taken");
        return invalid("stop_token_ids", problem);
    }
    check_sampling(request, limits)
}

fn check_sampling(request: &Request, limits: &EngineLimits) -> Result<(), SubmitError> {
    let invalid = |field, problem: String| Err(SubmitError::Invalid { field, problem });
    let sampling = &request.sampling;
    let within = |field, value: f32, low: f32, high: f32| {
        if value.is_finite() && (low..=high).contains(&value) {
            Ok(())
        } else {
            invalid(field, format!("{value} is outside {low} to {high}"))
        }
    };
    within("temperature", sampling.temperature, 0.0, 100.0)?;
    if !(sampling.top_p > 0.0 && sampling.top_p <= 1.0) {
        return invalid("top_p", format!("{} is not above 0 and at most 1", sampling.top_p));
    }
    within("min_p", sampling.min_p, 0.0, 1.0)?;
    within("repetition_penalty", sampling.repetition_penalty, 0.01, 100.0)?;
    within("presence_penalty", sampling.presence_penalty, -2.0, 2.0)?;
    within("frequency_penalty", sampling.frequency_penalty, -2.0, 2.0)?;
    if sampling.top_k == Some(0) {
        return invalid("top_k", "0 keeps no token; leave it out to keep all".into());
    }
    if sampling.logit_bias.len() > MAX_LISTED_TOKENS {
        let count = sampling.logit_bias.len();
        return invalid("logit_bias", format!("{count} tokens are more than the {MAX_LISTED_TOKENS} taken"));
    }
    for (token, bias) in &sampling.logit_bias {
        within("logit_bias", *bias, -100.0, 100.0)?;
        if *token >= limits.vocab_size {
            return invalid(
                "logit_bias",
                format!("token id {token} is outside the vocabulary of {}", limits.vocab_size),
            );
        }
    }
    if sampling.prompt_logprobs.is_some() && request.n > 1 {
        return invalid("prompt_logprobs", format!("they are the same for all {} choices; ask with n = 1", request.n));
    }
    for (field, count) in [("logprobs", sampling.logprobs), ("prompt_logprobs", sampling.prompt_logprobs)] {
        if count.is_some_and(|count| count > MAX_LOGPROBS) {
            return invalid(field, format!("at most {MAX_LOGPROBS} alternatives are given"));
        }
    }
    Ok(())
}
