//! Who uses a model: it stays for as long as anybody does.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::config::KeepAlive;
use crate::llm::Llm;
use crate::server::metrics::Metrics;

/// How a loaded model is used.
pub(super) struct Uses {
    state: Mutex<State>,
    returned: Arc<Notify>,
}

struct State {
    /// Requests that hold it.
    active: u32,
    /// When it was last given back.
    last: Instant,
    keep_alive: KeepAlive,
}

impl Uses {
    pub(super) fn new(keep_alive: KeepAlive, returned: Arc<Notify>) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(State { active: 0, last: Instant::now(), keep_alive }), returned })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Since when nobody uses it.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        let state = self.lock();
        (state.active == 0).then_some(state.last)
    }

    /// Whether it has been idle for as long as it is kept.
    pub(super) fn is_expired(&self) -> bool {
        self.idle_since().is_some() && self.left() == Some(Duration::ZERO)
    }

    /// How long it stays if nobody uses it from now on; `None`: for ever.
    pub(super) fn left(&self) -> Option<Duration> {
        let state = self.lock();
        match state.keep_alive {
            KeepAlive::For(kept) if state.active == 0 => Some(kept.saturating_sub(state.last.elapsed())),
            KeepAlive::For(kept) => Some(kept),
            KeepAlive::Forever => None,
        }
    }
}

/// A loaded model in somebody's hands.
pub(in crate::server) struct Served {
    pub(in crate::server) llm: Llm,
    pub(in crate::server) metrics: Arc<Metrics>,
    uses: Arc<Uses>,
}

impl Served {
    pub(super) fn new(llm: Llm, metrics: Arc<Metrics>, uses: Arc<Uses>) -> Self {
        uses.lock().active += 1;
        Self { llm, metrics, uses }
    }

    /// Keeps the model for this long after its last request, from now on.
    pub(in crate::server) fn keep_alive(&self, keep_alive: KeepAlive) {
        self.uses.lock().keep_alive = keep_alive;
    }
}

impl Clone for Served {
    fn clone(&self) -> Self {
        Self::new(self.llm.clone(), self.metrics.clone(), self.uses.clone())
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let mut state = self.uses.lock();
        state.active -= 1;
        state.last = Instant::now();
        drop(state);
        self.uses.returned.notify_waiters();
    }
}
