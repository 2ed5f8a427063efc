//! How models leave: for others that need their memory, after their time, or because they were removed from this machine.
//!
//! Invariant: whoever unloads holds `loading`, so that nobody plans with memory that is on its way back.

use std::sync::atomic::Ordering;

use super::{Loaded, Models};

impl Models {
    /// Unloads the model that nobody has used for the longest time; whether there was one.
    pub(super) async fn unload_longest_idle(&self) -> bool {
        let idle = |loaded: &Loaded| loaded.uses.idle_since().filter(|_| loaded.may_leave());
        let leaving = {
            let mut loaded = self.lock();
            let longest = loaded.iter().enumerate().filter_map(|(at, loaded)| Some((idle(loaded)?, at))).min();
            longest.map(|(_, at)| loaded.remove(at))
        };
        match leaving {
            Some(leaving) => {
                unload(leaving, "another model needs its memory").await;
                true
            }
            None => false,
        }
    }

    /// Unloads what has been idle for as long as it is kept, and what is here no more once its last request has ended; the
    /// others may have its memory. While a model is being loaded nothing leaves but what that needs: this is called again.
    pub(in crate::server) async fn unload_expired(&self) {
        self.look_for_removed().await;
        let Ok(_turn) = self.loading.try_lock() else { return };
        loop {
            let leaving = {
                let mut loaded = self.lock();
                let is_idle_and_removed = |loaded: &Loaded| loaded.removed && loaded.uses.idle_since().is_some();
                let is_expired = |loaded: &Loaded| loaded.may_leave() && loaded.uses.is_expired();
                let at = loaded.iter().position(|loaded| is_idle_and_removed(loaded) || is_expired(loaded));
                at.map(|at| loaded.remove(at))
            };
            let Some(leaving) = leaving else { return self.grow_caches().await };
            let why = if leaving.removed { "it was removed" } else { "nobody has used it (keep_alive)" };
            unload(leaving, why).await;
            self.freed.store(true, Ordering::Relaxed);
        }
    }

    /// Finds out which loaded models were removed from this machine, by whomever, or some of their names: from then on they are
    /// not found.
    pub(super) async fn look_for_removed(&self) {
        let Some(source) = self.source.clone() else { return };
        let mut names: Vec<String> = self.lock().iter().flat_map(|loaded| loaded.stored_names.clone()).collect();
        if names.is_empty() {
            return;
        }
        let look = move || {
            names.retain(|name| !source.has(name));
            names
        };
        let gone = tokio::task::spawn_blocking(look).await.unwrap_or_default();
        for loaded in self.lock().iter_mut() {
            let stored_names = loaded.stored_names.len();
            loaded.stored_names.retain(|name| !gone.contains(name));
            if loaded.stored_names.len() == stored_names {
                continue;
            }
            loaded.aliases.retain(|alias| !gone.contains(alias));
            if gone.iter().any(|name| name == loaded.name()) {
                tracing::info!(model = loaded.name(), "was removed: it leaves when its last request has ended");
                loaded.removed = true;
                loaded.stored_names.clear();
            }
        }
    }

    /// Where memory came free, KV caches that had become smaller take of it what they may, the last used model's first.
    /// Nobody loads a model meanwhile.
    async fn grow_caches(&self) {
        if !self.freed.swap(false, Ordering::Relaxed) {
            return;
        }
        let mut shrunk: Vec<_> = {
            let loaded = self.lock();
            let shrunk = loaded.iter().filter(|loaded| loaded.llm.kv_given_back_bytes() > 0);
            shrunk.map(|loaded| (loaded.uses.idle_since(), loaded.llm.clone())).collect()
        };
        shrunk.sort_by_key(|(since, _)| std::cmp::Reverse(*since));
        let mut in_use = false;
        for (_, llm) in shrunk {
            let Some(bytes) = llm.grow_kv(self.beside(0).reserved_bytes).await else {
                in_use = true;
                continue;
            };
            tracing::info!(model = llm.info().name, bytes, "its KV cache has grown again");
            if llm.kv_given_back_bytes() > 0 {
                // There is no more. Asked again and again, it would take what plans leave to others.
                return;
            }
        }
        if in_use {
            self.freed.store(true, Ordering::Relaxed);
        }
    }
}

/// Stops a model's engine and waits until its memory is free.
async fn unload(leaving: Loaded, why: &str) {
    let name = leaving.name().to_owned();
    let engine = leaving.llm.engine().clone();
    drop(leaving);
    engine.drain();
    engine.shutdown("the model was unloaded");
    engine.gone().await;
    tracing::info!(model = name, why, "unloaded");
}
