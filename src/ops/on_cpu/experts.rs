//! Mixtures of experts over Candle's tensors.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::tensors::{Source, expect_shape, shape2, write_f32};
use crate::cpu::{Cpu, ExpertBuffers, ExpertRef, RouteParams};
use crate::ops::Matrix;
use candle_core::{Result, Tensor, bail};

/// Which experts each token goes to, and with what weight: `ids` and `weights` `[t, top_k]`. Cloning shares them.
#[derive(Clone, Debug)]
pub struct Routes {
    top_k: usize,
    chosen: Arc<Mutex<Chosen>>,
}

#[derive(Debug, Default)]
struct Chosen {
    ids: Vec<u32>,
    weights: Vec<f32>,
}

impl Routes {
    /// Room for `tokens` tokens.
    pub fn new(tokens: usize, top_k: usize) -> Self {
        let count = tokens * top_k;
        let chosen = Chosen { ids: Vec::with_capacity(count), weights: Vec::with_capacity(count) };
        Self { top_k, chosen: Arc::new(Mutex::new(chosen)) }
    }

    fn lock(&self) -> MutexGuard<'_, Chosen> {
        self.chosen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The weights of one layer's experts.
#[derive(Clone, Debug)]
pub struct Experts {
    /// Gate `[f, h]`, up `[f, h]` and down `[h, f]` of each.
    pub experts: Vec<[Matrix; 3]>,
}

/// Where experts compute, for up to `t` tokens each.
#[derive(Clone, Copy)]
pub struct ExpertTensors<'a> {
    /// `[t, h]`: the rows that one expert works on.
    pub x: &'a Tensor,
    /// `[t, 2 f]`.
    pub gate_up: &'a Tensor,
    /// `[t, f]`.
    pub product: &'a Tensor,
    /// `[t, h]`.
    pub down: &'a Tensor,
}

/// Chooses the experts of each token of `logits [t, experts]`; `correction [experts]`.
///
/// # Errors
/// If shapes do not fit.
pub fn route(
    cpu: &Cpu,
    logits: &Tensor,
    correction: Option<&Tensor>,
    params: &RouteParams,
    routes: &Routes,
) -> Result<()> {
    const OP: &str = "route";
    let (tokens, experts) = shape2(logits, OP, "logits")?;
    if params.top_k != routes.top_k || params.top_k > experts {
        bail!("{OP}: {params:?} with room for {} of {experts}", routes.top_k);
    }
    if let Some(correction) = correction {
        expect_shape(correction, OP, "the correction", &[experts])?;
    }
    let correction = correction.map(|correction| Source::new(correction, OP, "the correction")).transpose()?;
    let mut chosen = routes.lock();
    let Chosen { ids, weights } = &mut *chosen;
    ids.resize(tokens * params.top_k, 0);
    weights.resize(tokens * params.top_k, 0.0);
    cpu.route(&Source::new(logits, OP, "logits")?, experts, correction.as_deref(), params, ids, weights);
    Ok(())
}

/// Adds what the experts make of `x [t, h]` to `dst [t, h]`.
///
/// # Errors
/// If shapes do not fit, or the routes are those of another step.
pub fn experts(
    cpu: &Cpu,
    x: &Tensor,
    experts: &Experts,
    routes: &Routes,
    buffers: ExpertTensors<'_>,
    dst: &Tensor,
) -> Result<()> {
    const OP: &str = "experts";
    let (tokens, hidden) = shape2(x, OP, "x")?;
    let Some([gate, _, _]) = experts.experts.first() else { bail!("{OP}: there are none") };
    let f = gate.rows();
    expect_shape(dst, OP, "the destination", &[tokens, hidden])?;
    for (buffer, columns) in
        [(buffers.x, hidden), (buffers.gate_up, 2 * f), (buffers.product, f), (buffers.down, hidden)]
    {
        expect_shape(buffer, OP, "a buffer", &[tokens, columns])?;
    }
    let fits = |[gate, up, down]: &[Matrix; 3]| {
        [gate, up].iter().all(|one| (one.rows(), one.columns()) == (f, hidden))
            && (down.rows(), down.columns()) == (hidden, f)
    };
    let chosen = routes.lock();
    // Of a hundred experts a token asks for a few: the others are not looked at.
    let all_fit = chosen.ids.iter().all(|id| experts.experts.get(*id as usize).is_some_and(fits));
    if !all_fit || chosen.ids.len() != tokens * routes.top_k {
        bail!("{OP}: {} routes of {tokens} tokens to experts of {hidden} and {f}", chosen.ids.len());
    }
    let expert = |id: u32| {
        let [gate, up, down] = experts.experts[id as usize].each_ref().map(Matrix::as_matrix_ref);
        ExpertRef { gate, up, down }
    };
    let write = |tensor: &Tensor, write: &mut dyn FnMut(&mut [f32]) -> Result<()>| write_f32(tensor, OP, &[x], write);
    write(dst, &mut |out| {
        write(buffers.x, &mut |gathered| {
            write(buffers.gate_up, &mut |gate_up| {
                write(buffers.product, &mut |product| {
                    write(buffers.down, &mut |down| {
                        let buffers = ExpertBuffers { x: gathered, gate_up, product, down };
                        let x = Source::new(x, OP, "x")?;
                        cpu.experts(&x, expert, routes.top_k, &chosen.ids, &chosen.weights, buffers, out);
                        Ok(())
                    })
                })
            })
        })
    })
}

/// `x[t] *= sigmoid(gates[t])`: `x [t, h]`, `gates [t, 1]`.
///
/// # Errors
/// If shapes do not fit.
pub fn scale_by_sigmoid(cpu: &Cpu, x: &Tensor, gates: &Tensor) -> Result<()> {
    const OP: &str = "scale_by_sigmoid";
    let (tokens, _) = shape2(x, OP, "x")?;
    expect_shape(gates, OP, "the gates", &[tokens, 1])?;
    write_f32(x, OP, &[gates], |x| {
        cpu.scale_by_sigmoid(x, &Source::new(gates, OP, "the gates")?);
        Ok(())
    })
}

/// Sets `x` to zero.
///
/// # Errors
/// If it is not f32 on the CPU.
pub fn clear(x: &Tensor) -> Result<()> {
    write_f32(x, "clear", &[], |x| {
        x.fill(0.0);
        Ok(())
    })
}
