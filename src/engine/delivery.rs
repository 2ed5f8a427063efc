//! How events reach their readers.
//!
//! Handing an event over may wake a sleeping thread, which takes microseconds; for hundreds of readers a step that is
//! time the engine's thread does not have while a GPU waits for its next step. There a thread of its own hands the events
//! of a whole step over, and finds the readers too: what it writes there would else be fetched from its processor for each
//! token. Order is kept for each reader. Nobody here waits for a reader: one that is too slow is lost.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc;

use tokio::sync::mpsc as channel;
use tokio::sync::mpsc::error::TrySendError;

use crate::request::{RequestEvent, RequestId};

/// Who reads the events of a request.
pub(super) struct Reader {
    request: RequestId,
    events: channel::Sender<RequestEvent>,
    too_slow: AtomicBool,
}

impl Reader {
    pub(super) fn new(request: RequestId, events: channel::Sender<RequestEvent>) -> Arc<Self> {
        Arc::new(Self { request, events, too_slow: AtomicBool::new(false) })
    }

    /// Whether it reads no more, or too slowly.
    pub(super) fn is_lost(&self) -> bool {
        self.events.is_closed() || self.too_slow.load(Relaxed)
    }

    fn give(&self, event: RequestEvent) {
        // After an event was left out, those behind it would read as if nothing had happened.
        if self.too_slow.load(Relaxed) {
            return;
        }
        if let Err(TrySendError::Full(_)) = self.events.try_send(event) {
            tracing::warn!(request = self.request.0, "its reader is too slow; the request is ended");
            self.too_slow.store(true, Relaxed);
        }
    }
}

/// What is on its way.
pub(super) enum Parcel {
    /// Events of a request go to this reader from now on.
    Open(Arc<Reader>),
    Event(RequestId, RequestEvent),
    /// No more events of a request come.
    Close(RequestId),
}

/// Who reads which request.
#[derive(Default)]
pub(super) struct Readers(HashMap<RequestId, Arc<Reader>>);

impl Readers {
    fn take(&mut self, parcel: Parcel) {
        match parcel {
            Parcel::Open(reader) => {
                self.0.insert(reader.request, reader);
            }
            Parcel::Event(request, event) => {
                if let Some(reader) = self.0.get(&request) {
                    reader.give(event);
                }
            }
            Parcel::Close(request) => {
                self.0.remove(&request);
            }
        }
    }
}

/// Steps whose events may wait for the thread; the engine waits with the next, so that they do not pile up.
const MAX_STEPS: usize = 4;

/// Hands events over, at once or by a thread.
pub(super) enum Delivery {
    /// At once.
    Direct(Readers),
    /// By a thread, those of a step together.
    Thread {
        /// Of the step so far.
        filling: Vec<Parcel>,
        /// To the thread, which ends when this is dropped and all is delivered.
        outbox: mpsc::SyncSender<Vec<Parcel>>,
    },
}

impl Delivery {
    /// A delivery at once.
    pub(super) fn direct() -> Self {
        Self::Direct(Readers::default())
    }

    /// A delivery by a thread.
    ///
    /// # Errors
    /// If the operating system refuses the thread.
    pub(super) fn by_thread() -> std::io::Result<Self> {
        let (outbox, inbox) = mpsc::sync_channel::<Vec<Parcel>>(MAX_STEPS);
        std::thread::Builder::new().name("lantern-delivery".into()).spawn(move || {
            let mut readers = Readers::default();
            inbox.into_iter().flatten().for_each(|parcel| readers.take(parcel));
        })?;
        Ok(Self::Thread { filling: Vec::new(), outbox })
    }

    /// Events of the reader's request go to it from now on.
    pub(super) fn open(&mut self, reader: &Arc<Reader>) {
        self.add(Parcel::Open(reader.clone()));
    }

    /// Sends `event` to who reads `request`, by a thread with the next [`Self::flush`]; to nobody where that was not opened, or
    /// was closed.
    pub(super) fn send(&mut self, request: RequestId, event: RequestEvent) {
        self.add(Parcel::Event(request, event));
    }

    /// Lets go of who reads `request`, once it has what was sent.
    pub(super) fn close(&mut self, request: RequestId) {
        self.add(Parcel::Close(request));
    }

    fn add(&mut self, parcel: Parcel) {
        match self {
            Self::Direct(readers) => readers.take(parcel),
            Self::Thread { filling, .. } => filling.push(parcel),
        }
    }

    /// Sends what is waiting.
    pub(super) fn flush(&mut self) {
        if let Self::Thread { filling, outbox } = self
            && !filling.is_empty()
        {
            let capacity = filling.len();
            // The thread ends only after this value.
            let _ = outbox.send(std::mem::replace(filling, Vec::with_capacity(capacity)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::FinishReason;

    fn finished(choice: u32) -> RequestEvent {
        RequestEvent::Finished { choice, reason: FinishReason::Stop }
    }

    fn receive_all(mut receiver: channel::Receiver<RequestEvent>) -> Vec<u32> {
        let mut found = Vec::new();
        while let Some(event) = receiver.blocking_recv() {
            if let RequestEvent::Finished { choice, .. } = event {
                found.push(choice);
            }
        }
        found
    }

    #[test]
    fn a_thread_delivers_in_order_and_everything_before_the_end() {
        let mut delivery = Delivery::by_thread().expect("a thread");
        let (sender, receiver) = channel::channel(64);
        let id = RequestId(1);
        delivery.send(id, finished(99));
        delivery.open(&Reader::new(id, sender));
        for choice in 0..20 {
            delivery.send(id, finished(choice));
            delivery.send(RequestId(2), finished(98));
            if choice % 7 == 0 {
                delivery.flush();
            }
        }
        delivery.close(id);
        delivery.send(id, finished(97));
        delivery.flush();
        // Its end is the end of the last who could send to it: the thread need not have ended.
        assert_eq!(receive_all(receiver), (0..20).collect::<Vec<_>>());
    }

    #[test]
    fn a_reader_that_is_too_slow_is_lost_and_gets_nothing_after_the_gap() {
        let (sender, receiver) = channel::channel(2);
        let reader = Reader::new(RequestId(1), sender);
        let mut delivery = Delivery::direct();
        delivery.open(&reader);
        (0..3).for_each(|choice| delivery.send(RequestId(1), finished(choice)));
        assert!(reader.is_lost());
        drop((delivery, reader));
        assert_eq!(receive_all(receiver), [0, 1]);
        let (sender, receiver) = channel::channel(2);
        drop(receiver);
        assert!(Reader::new(RequestId(2), sender).is_lost());
    }
}
