//! How models leave: for others that need their memory, after their time, or because they were removed from this machine or
//! replaced there.
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
            let why = if leaving.removed { "it was removed or replaced" } else { "nobody has used it (keep_alive)" };
            unload(leaving, why).await;
            self.freed.store(true, Ordering::Relaxed);
        }
    }

    /// Finds out which loaded models, or which of their names, were removed from this machine or replaced there, by whomever:
    /// from then on they are not found.
    pub(super) async fn look_for_removed(&self) {
        let Some(source) = self.source.clone() else { return };
        let names = |loaded: &Loaded| {
            let digest = loaded.digest.clone();
            loaded.stored_names.clone().into_iter().map(move |name| (name, digest.clone()))
        };
        let names: Vec<_> = self.lock().iter().flat_map(names).collect();
        if names.is_empty() {
            return;
        }
        let is_gone = move |(name, digest): &(String, Option<String>)| {
            !source.has(name)
                || source.digest(name).is_some_and(|found| digest.as_ref().is_some_and(|own| *own != found))
        };
        let look = move || names.into_iter().filter(is_gone).map(|(name, _)| name).collect::<Vec<_>>();
        let gone = tokio::task::spawn_blocking(look).await.unwrap_or_default();
        for loaded in self.lock().iter_mut() {
            let stored_names = loaded.stored_names.len();
            loaded.stored_names.retain(|name| !gone.contains(name));
            if loaded.stored_names.len() == stored_names {
                continue;
            }
            loaded.aliases.retain(|alias| !gone.contains(alias));
            if gone.iter().any(|name| name == loaded.name()) {
                tracing::info!(
                    model = loaded.name(),
                    "was removed or replaced: it leaves when its last request has ended"
                );
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
