//! Counts what is allocated on a GPU, by what it is for, and holds it under a limit.
//!
//! Calls no driver.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A driver's page: what is at least half as large has pages of its own.
const PAGE_BYTES: u64 = 2 << 20;

/// Where smaller allocations begin inside a page.
const ALIGNMENT: u64 = 512;

/// Bytes that the driver takes for an allocation of `bytes`.
fn taken(bytes: usize) -> u64 {
    let bytes = bytes.max(1) as u64;
    bytes.next_multiple_of(if bytes >= PAGE_BYTES / 2 { PAGE_BYTES } else { ALIGNMENT })
}

/// The bytes that are allocated in a context.
#[derive(Debug, Default)]
pub(super) struct Allocations {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    bytes: u64,
    limit_bytes: Option<u64>,
    by_use: BTreeMap<String, u64>,
}

impl Allocations {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses what would go beyond `bytes` from now on.
    pub(super) fn limit(&self, bytes: u64) {
        self.state().limit_bytes = Some(bytes);
    }

    /// Counts an allocation for `what`.
    ///
    /// # Errors
    /// What the limit leaves, where that is less.
    pub(super) fn take(&self, what: &str, bytes: usize) -> Result<(), usize> {
        let mut state = self.state();
        let left = state.limit_bytes.map_or(u64::MAX, |limit| limit.saturating_sub(state.bytes));
        if taken(bytes) > left {
            return Err(left as usize);
        }
        state.bytes += taken(bytes);
        *state.by_use.entry(what.to_owned()).or_default() += taken(bytes);
        Ok(())
    }

    /// Counts it no longer.
    pub(super) fn give_back(&self, what: &str, bytes: usize) {
        let mut state = self.state();
        state.bytes -= taken(bytes);
        if let Some(of_use) = state.by_use.get_mut(what) {
            *of_use -= taken(bytes);
        }
    }

    /// Bytes in all, and of each use.
    pub(super) fn read(&self) -> (u64, Vec<(String, u64)>) {
        let state = self.state();
        (state.bytes, state.by_use.iter().map(|(what, bytes)| (what.clone(), *bytes)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_and_given_back_is_counted_in_pages_and_held_under_the_limit() {
        let allocations = Allocations::default();
        allocations.take("weights", 3 << 20).expect("no limit");
        allocations.take("weights", 100).expect("no limit");
        allocations.take("scratch", 2 << 20).expect("no limit");
        assert_eq!(
            allocations.read(),
            ((6 << 20) + 512, vec![("scratch".into(), 2 << 20), ("weights".into(), (4 << 20) + 512)])
        );
        allocations.limit(8 << 20);
        assert_eq!(allocations.take("scratch", 2 << 20), Err((2 << 20) - 512));
        allocations.give_back("weights", 100);
        allocations.take("scratch", 2 << 20).expect("as much is left");
        assert_eq!(allocations.read().0, 8 << 20);
    }
}
