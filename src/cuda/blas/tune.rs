//! Timing cuBLASLt's candidates on the real matrices: its own advice is up to a fifth off on shapes of decoding.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use super::plan::{Operands, Plan, Shape, algorithms, refused};
use super::{Blas, CudaError, DeviceTensor, Gpu};

/// Algorithms that are timed at most.
const CANDIDATES: usize = 12;

/// Microseconds that the timed calls of one candidate take about.
const SAMPLE_MICROSECONDS: f64 = 400.0;

/// What tuning found for one shape.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tuned {
    /// Microseconds of the algorithm that cuBLASLt advises.
    pub advised_microseconds: f64,
    /// Microseconds of the fastest.
    pub microseconds: f64,
    /// Algorithms that were timed.
    pub candidates: usize,
}

impl Blas {
    /// Times algorithms for x `[M, K]`, weights `[N, K]` and y `[M, N]`, and keeps the fastest for M and, unless they
    /// are tuned themselves, for row counts down to half of it. Overwrites y. `weights` are matrices of one shape
    /// (those of several layers) that are taken in turn, so that the L2 cache does not flatter. Ends after `budget`
    /// with what it has by then; a candidate takes about 2 ms.
    ///
    /// # Errors
    /// As [`Blas::multiply`].
    pub fn tune(
        &self,
        gpu: &Gpu,
        x: &DeviceTensor,
        weights: &[DeviceTensor],
        y: &DeviceTensor,
        budget: Duration,
    ) -> Result<Tuned, CudaError> {
        let mut products = Vec::new();
        for w in weights {
            products.push((self.shape(x, w, y)?, self.operands(gpu, x, w, y)));
        }
        self.tune_products(gpu, &products, budget)
    }

    /// The same of e4m3 numbers, each row of which has a scale.
    ///
    /// # Errors
    /// As [`Blas::multiply_fp8`].
    pub fn tune_fp8(
        &self,
        gpu: &Gpu,
        x: (&DeviceTensor, &DeviceTensor),
        weights: &[(&DeviceTensor, &DeviceTensor)],
        y: &DeviceTensor,
        budget: Duration,
    ) -> Result<Tuned, CudaError> {
        let products = weights.iter().map(|w| self.fp8_product(gpu, x, *w, y)).collect::<Result<Vec<_>, _>>()?;
        self.tune_products(gpu, &products, budget)
    }

    fn tune_products(&self, gpu: &Gpu, products: &[(Shape, Operands)], budget: Duration) -> Result<Tuned, CudaError> {
        let start = Instant::now();
        let (shape, _) = *products.first().ok_or_else(|| CudaError::argument("tune", "no weights"))?;
        if products.iter().any(|(other, _)| *other != shape) {
            return Err(CudaError::argument("tune", "weights of several shapes"));
        }
        let mut best: Option<(f64, Plan)> = None;
        let (mut advised_microseconds, mut candidates) = (f64::NAN, 0);
        for algorithm in algorithms(self.handle, &shape, self.workspace.bytes(), CANDIDATES)? {
            if best.is_some() && start.elapsed() > budget {
                break;
            }
            let mut plan = Plan::new(&shape, algorithm)?;
            let Ok(microseconds) = self.sample(gpu, &mut plan, products) else {
                gpu.synchronize()?; // an algorithm that refuses is no harm; a broken GPU is
                continue;
            };
            candidates += 1;
            if advised_microseconds.is_nan() {
                advised_microseconds = microseconds;
            }
            if best.as_ref().is_none_or(|(fastest, _)| microseconds < *fastest) {
                best = Some((microseconds, plan));
            }
        }
        let Some((microseconds, mut plan)) = best else {
            return Err(CudaError::argument("tune", format!("no algorithm runs for {shape:?}")));
        };
        plan.tuned = true;
        self.keep(shape, plan);
        Ok(Tuned { advised_microseconds, microseconds, candidates })
    }

    /// Files the plan, and forgets what was only advised for the same weights: it may now borrow this one.
    fn keep(&self, shape: Shape, plan: Plan) {
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        plans.retain(|known, plan| plan.tuned || !known.same_weights(&shape));
        plans.insert(shape, plan);
    }

    fn sample(&self, gpu: &Gpu, plan: &mut Plan, products: &[(Shape, Operands)]) -> Result<f64, CudaError> {
        let mut turn = products.iter().cycle();
        let mut once = |_: &Gpu| {
            let (_, operands) = turn.next().expect("a cycle of at least one");
            // SAFETY: who made the operands has checked the matrices.
            unsafe { plan.run(self.handle, *operands) }.map_err(refused("a matrix product"))
        };
        let rough = gpu.time(products.len().min(4), &mut once)?;
        let repeats = (SAMPLE_MICROSECONDS / rough.max(1.0)) as usize;
        if repeats <= products.len().min(4) { Ok(rough) } else { gpu.time(repeats.min(64), &mut once) }
    }
}
