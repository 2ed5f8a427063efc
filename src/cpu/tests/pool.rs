//! The pool: every task once, panics reach the caller, and the pool lives on.

use crate::cpu::pool::Pool;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

fn pool(threads: usize) -> Pool {
    Pool::new(NonZeroUsize::new(threads).expect("at least one"))
}

#[test]
fn every_task_runs_once() {
    for threads in [1, 2, 5] {
        let pool = pool(threads);
        for tasks in [0, 1, 2, 7, 100] {
            for _ in 0..200 {
                let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(tasks, &|task, thread| {
                    assert!(thread < pool.threads());
                    counts[task].fetch_add(1, Relaxed);
                });
                assert!(counts.iter().all(|count| count.load(Relaxed) == 1), "{tasks} tasks on {threads} threads");
            }
        }
    }
}

#[test]
fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
    let pool = pool(3);
    for bad in 0..8 {
        let run = || pool.run(8, &|task, _| assert!(task != bad, "task {task} fails"));
        let payload = catch_unwind(AssertUnwindSafe(run)).expect_err("a task has failed");
        let message = payload.downcast_ref::<String>().expect("a message");
        assert_eq!(*message, format!("task {bad} fails"));
        let done = AtomicUsize::new(0);
        pool.run(8, &|_, _| {
            done.fetch_add(1, Relaxed);
        });
        assert_eq!(done.load(Relaxed), 8);
    }
}

#[test]
fn callers_on_several_threads_take_turns() {
    let pool = pool(2);
    let sum = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..100 {
                    pool.run(10, &|task, _| {
                        sum.fetch_add(task, Relaxed);
                    });
                }
            });
        }
    });
    assert_eq!(sum.load(Relaxed), 4 * 100 * 45);
}
