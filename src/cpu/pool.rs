//! The threads that share a kernel's work: the caller and `threads - 1` workers.
//!
//! Knows tasks by number only. A region costs about a microsecond while the workers spin, which they do for a few tens
//! of microseconds after each; then they sleep.

use std::any::Any;
use std::cell::UnsafeCell;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a worker looks for the next region before it sleeps.
const SPIN: Duration = Duration::from_micros(60);

/// A region's work: called with each task's number and the number of the thread that runs it.
type Task<'a> = &'a (dyn Fn(usize, usize) + Sync);

/// Threads that wait for regions of tasks.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held by the caller of [`Pool::run`]: one region at a time.
    region: Mutex<()>,
}

struct Shared {
    /// Odd while a region is open. A worker joins by raising `active`, then reading an odd epoch; the caller closes by
    /// storing an even one, then waiting for `active` to fall to 0. Sequential consistency makes one see the other.
    epoch: AtomicUsize,
    active: AtomicUsize,
    next: AtomicUsize,
    job: UnsafeCell<Job>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    stop: AtomicBool,
    sleepers: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
}

#[derive(Clone, Copy)]
struct Job {
    tasks: usize,
    task: Option<Task<'static>>,
}

// SAFETY: `job` is written only while the region is closed and no worker is active, and read only by active workers
// that saw it open; all else is `Sync` itself.
unsafe impl Sync for Shared {}
// SAFETY: a `Task` is `Sync`, so a reference to it may go to other threads.
unsafe impl Send for Shared {}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// A pool of `threads`, the caller counted. Where the system refuses a thread, there are fewer.
    pub fn new(threads: NonZeroUsize) -> Self {
        let shared = Arc::new(Shared {
            epoch: AtomicUsize::new(0),
            active: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
            job: UnsafeCell::new(Job { tasks: 0, task: None }),
            panic: Mutex::new(None),
            stop: AtomicBool::new(false),
            sleepers: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
        });
        let workers = (1..threads.get())
            .map_while(|number| {
                let shared = shared.clone();
                std::thread::Builder::new().name(format!("cpu-{number}")).spawn(move || shared.work(number)).ok()
            })
            .collect();
        Self { shared, workers, region: Mutex::new(()) }
    }

    /// Threads that run tasks, the caller counted.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task(number, thread)` for each number below `tasks`, on all threads, in no order; returns when all are
    /// done. `thread` is below [`Pool::threads`], and no two calls have the same at one time.
    ///
    /// # Panics
    /// If a task panics, with its payload. A task must not call `run` of its own pool: that would wait for ever.
    pub fn run(&self, tasks: usize, task: Task<'_>) {
        let _region = lock(&self.region);
        if tasks <= 1 || self.workers.is_empty() {
            return (0..tasks).for_each(|number| task(number, 0));
        }
        let shared = &*self.shared;
        // SAFETY: only the lifetime is changed; `close` returns after the last worker has left the region.
        let forever = unsafe { std::mem::transmute::<Task<'_>, Task<'static>>(task) };
        // SAFETY: the region is closed and no worker is active, so nobody reads the job.
        unsafe { *shared.job.get() = Job { tasks, task: Some(forever) } };
        shared.next.store(0, SeqCst);
        shared.epoch.fetch_add(1, SeqCst);
        if shared.sleepers.load(SeqCst) > 0 {
            let _guard = lock(&shared.sleep);
            shared.wake.notify_all();
        }
        let own = catch_unwind(AssertUnwindSafe(|| shared.drain(tasks, task, 0)));
        shared.close();
        let payload = own.err().or_else(|| lock(&shared.panic).take());
        if let Some(payload) = payload {
            resume_unwind(payload);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        {
            let _guard = lock(&self.shared.sleep);
            self.shared.wake.notify_all();
        }
        for worker in self.workers.drain(..) {
            // A worker catches the panics of its tasks, so that there is nothing to pass on here.
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn drain(&self, tasks: usize, task: Task<'_>, thread: usize) {
        loop {
            let number = self.next.fetch_add(1, SeqCst);
            if number >= tasks {
                return;
            }
            task(number, thread);
        }
    }

    /// Ends the open region: no worker joins from here on, and those inside have left.
    fn close(&self) {
        // After a panic of the caller's own task there may be tasks left; nobody shall start them.
        self.next.store(usize::MAX / 2, SeqCst);
        self.epoch.fetch_add(1, SeqCst);
        let mut spins = 0_u32;
        while self.active.load(SeqCst) != 0 {
            spins = spins.wrapping_add(1);
            // A worker that lost its core cannot finish while we hold ours.
            if spins.is_multiple_of(1024) { std::thread::yield_now() } else { std::hint::spin_loop() }
        }
    }

    fn work(&self, thread: usize) {
        let mut seen = 0;
        while let Some(epoch) = self.wait(seen) {
            self.active.fetch_add(1, SeqCst);
            let now = self.epoch.load(SeqCst);
            if !now.is_multiple_of(2) {
                // SAFETY: this worker is active and saw the region open: the job stays until it has left.
                let Job { tasks, task } = unsafe { *self.job.get() };
                let done = catch_unwind(AssertUnwindSafe(|| {
                    if let Some(task) = task {
                        self.drain(tasks, task, thread);
                    }
                }));
                if let Err(payload) = done {
                    lock(&self.panic).get_or_insert(payload);
                }
            }
            self.active.fetch_sub(1, SeqCst);
            seen = epoch.max(now);
        }
    }

    /// The next odd epoch after `seen`, or `None` when the pool ends.
    fn wait(&self, seen: usize) -> Option<usize> {
        let ready = || {
            let epoch = self.epoch.load(SeqCst);
            (!epoch.is_multiple_of(2) && epoch != seen).then_some(epoch)
        };
        let start = Instant::now();
        while start.elapsed() < SPIN {
            for _ in 0..64 {
                if let Some(epoch) = ready() {
                    return Some(epoch);
                }
                std::hint::spin_loop();
            }
        }
        let mut guard = lock(&self.sleep);
        self.sleepers.fetch_add(1, SeqCst);
        let epoch = loop {
            if self.stop.load(SeqCst) {
                break None;
            }
            if let Some(epoch) = ready() {
                break Some(epoch);
            }
            guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
        };
        self.sleepers.fetch_sub(1, SeqCst);
        epoch
    }
}
