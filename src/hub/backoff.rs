//! Repeats what failed for a passing reason: exponential waits with jitter, a server's own wait honoured.
//! Does not know HTTP: the caller says which failures pass.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use super::error::HubError;

/// No single wait of our own is longer than this.
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);
/// A server that asks for a longer wait than this is told to the person instead of waited for.
pub(super) const LONGEST_ASKED_WAIT: Duration = Duration::from_secs(120);

/// How one attempt failed.
pub(super) enum Failure {
    /// Another attempt would fail the same way.
    Final(HubError),
    /// Another attempt may succeed; the server may have said after how long.
    Passing(HubError, Option<Duration>),
    /// The attempt broke off, and something came of it: the count of attempts starts afresh.
    Progressed(HubError),
}

/// How often and how patiently something is repeated.
pub(super) struct Backoff {
    /// Repetitions in a row without progress.
    pub(super) retries: u32,
    /// The first wait.
    pub(super) base: Duration,
    /// How to wait; tests listen here.
    pub(super) sleep: Box<dyn Fn(Duration)>,
}

impl Backoff {
    /// Runs `attempt` until it succeeds, fails for good, or has failed `retries` more times in a row.
    pub(super) fn run<T>(&self, mut attempt: impl FnMut() -> Result<T, Failure>) -> Result<T, HubError> {
        let mut failed: u32 = 0;
        loop {
            let (error, asked) = match attempt() {
                Ok(value) => return Ok(value),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Progressed(error)) => {
                    failed = 0;
                    (error, None)
                }
                Err(Failure::Passing(error, asked)) => (error, asked),
            };
            if failed == self.retries || asked.is_some_and(|wait| wait > LONGEST_ASKED_WAIT) {
                return Err(error);
            }
            let wait = asked.unwrap_or_else(|| self.wait(failed));
            tracing::info!(wait_ms = wait.as_millis() as u64, attempt = failed + 1, "{error}; trying again");
            (self.sleep)(wait);
            failed += 1;
        }
    }

    /// Base x 2^failed, capped, of which a random half is taken off, so that many clients do not come back at once.
    fn wait(&self, failed: u32) -> Duration {
        let whole = self.base.saturating_mul(2_u32.saturating_pow(failed)).min(LONGEST_BACKOFF);
        // The keys of a new `RandomState` are random: jitter needs no better generator.
        let random = RandomState::new().hash_one(failed) as f64 / u64::MAX as f64;
        whole.mul_f64(0.5 + 0.5 * random.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::{Cell, RefCell};
    use std::rc::Rc;

    fn failing() -> HubError {
        HubError::Status { status: 503, what: "a file".into() }
    }

    fn listening(retries: u32) -> (Backoff, Rc<RefCell<Vec<Duration>>>) {
        let waits = Rc::new(RefCell::new(Vec::new()));
        let heard = Rc::clone(&waits);
        let sleep = Box::new(move |wait| heard.borrow_mut().push(wait));
        (Backoff { retries, base: Duration::from_secs(1), sleep }, waits)
    }

    #[test]
    fn waits_double_within_their_jitter_and_are_capped() {
        let (backoff, waits) = listening(8);
        let outcome: Result<(), _> = backoff.run(|| Err(Failure::Passing(failing(), None)));
        assert!(matches!(outcome, Err(HubError::Status { status: 503, .. })));
        let waits = waits.borrow();
        assert_eq!(waits.len(), 8);
        for (n, wait) in waits.iter().enumerate() {
            let whole = Duration::from_secs(1 << n).min(LONGEST_BACKOFF);
            assert!(*wait >= whole / 2 && *wait <= whole, "wait {n} was {wait:?}");
        }
    }

    #[test]
    fn the_servers_own_wait_is_kept_and_an_absurd_one_refused() {
        let (backoff, waits) = listening(3);
        let tries = Cell::new(0);
        let outcome = backoff.run(|| {
            tries.set(tries.get() + 1);
            if tries.get() == 1 {
                Err(Failure::Passing(failing(), Some(Duration::from_secs(7))))
            } else {
                Ok(tries.get())
            }
        });
        assert_eq!(outcome.ok(), Some(2));
        assert_eq!(*waits.borrow(), [Duration::from_secs(7)]);

        let (backoff, waits) = listening(3);
        let outcome: Result<(), _> =
            backoff.run(|| Err(Failure::Passing(failing(), Some(LONGEST_ASKED_WAIT + Duration::from_secs(1)))));
        assert!(outcome.is_err());
        assert!(waits.borrow().is_empty());
    }

    #[test]
    fn progress_starts_the_count_afresh() {
        let (backoff, waits) = listening(1);
        let tries = Cell::new(0);
        let outcome = backoff.run(|| {
            tries.set(tries.get() + 1);
            if tries.get() < 10 { Err(Failure::Progressed(failing())) } else { Ok(()) }
        });
        assert!(outcome.is_ok());
        assert_eq!(waits.borrow().len(), 9);
    }
}
