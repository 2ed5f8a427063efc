//! What the machine can do at most: the yardstick that `benches/kernels.rs` holds the kernels against.
#![allow(dead_code)] // the bench includes this room; the library itself does not measure

use std::time::Instant;

use super::simd::{Kernel, Lanes, dispatch};
use super::{Cpu, SharedMut};

/// Independent chains of additions: enough to hide the latency of each.
const CHAINS: usize = 12;

/// What is read to measure how fast that is: more than most processors' caches.
const READ_BYTES: usize = 256 << 20;

/// How often.
const READINGS: usize = 4;

/// Steps of one task.
const STEPS: usize = 1 << 16;

impl Cpu {
    /// Does `tasks` runs of multiply-adds in registers; returns the floating-point operations that were done.
    pub fn peak_multiply_adds(&self, tasks: usize) -> f64 {
        let mut out = vec![0.0; tasks];
        let mut lanes = 0;
        dispatch(self.simd, Width(&mut lanes));
        let out = SharedMut::new(&mut out);
        self.pool.run(tasks, &|task, _| dispatch(self.simd, MultiplyAdds { task, out }));
        2.0 * (tasks * STEPS * CHAINS * lanes) as f64
    }

    /// Reads `data` once, on all threads; returns a sum, so that no read is left out.
    pub fn peak_read(&self, data: &[f32]) -> f32 {
        const CHUNK: usize = 1 << 18;
        let tasks = data.len().div_ceil(CHUNK);
        let mut sums = vec![0.0; tasks];
        let out = SharedMut::new(&mut sums);
        self.pool.run(tasks, &|task, _| {
            let data = &data[task * CHUNK..data.len().min((task + 1) * CHUNK)];
            dispatch(self.simd, Read { data, task, out });
        });
        sums.iter().sum()
    }
}

impl Cpu {
    /// Bytes that all threads together read from memory each second: the best of some readings of what no cache holds, which
    /// take a fraction of a second.
    pub fn read_bytes_per_second(&self) -> f64 {
        // Not zeros: pages that nobody has written may all be one.
        let data = vec![1.0_f32; READ_BYTES / size_of::<f32>()];
        let seconds = (0..READINGS).map(|_| {
            let started = Instant::now();
            std::hint::black_box(self.peak_read(&data));
            started.elapsed().as_secs_f64()
        });
        READ_BYTES as f64 / seconds.fold(f64::INFINITY, f64::min)
    }
}

struct Width<'a>(&'a mut usize);

impl Kernel for Width<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        *self.0 = L::N;
    }
}

struct MultiplyAdds<'a> {
    task: usize,
    out: SharedMut<'a>,
}

impl Kernel for MultiplyAdds<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        // SAFETY: each task writes its own element.
        unsafe {
            let (factor, addend) = (L::splat(0.999), L::splat(std::hint::black_box(0.001)));
            let mut chains = [addend; CHAINS];
            for _ in 0..STEPS {
                for chain in &mut chains {
                    *chain = L::fma(*chain, factor, addend);
                }
            }
            let sum = chains.into_iter().fold(L::splat(0.0), |sum, chain| L::add(sum, chain));
            self.out.write(self.task, L::sum(sum));
        }
    }
}

struct Read<'a> {
    data: &'a [f32],
    task: usize,
    out: SharedMut<'a>,
}

impl Kernel for Read<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        // SAFETY: whole vectors of the chunk; each task writes its own element.
        unsafe {
            let mut sums = [L::splat(0.0); 4];
            for block in self.data.chunks_exact(4 * L::N) {
                for (j, sum) in sums.iter_mut().enumerate() {
                    *sum = L::add(*sum, L::load(block.as_ptr().add(j * L::N)));
                }
            }
            self.out.write(self.task, L::sum(L::add(L::add(sums[0], sums[1]), L::add(sums[2], sums[3]))));
        }
    }
}
