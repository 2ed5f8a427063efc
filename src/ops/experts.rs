//! Mixtures of experts where the step computes.

use candle_core::{Result, bail};

#[cfg(feature = "cuda")]
use super::on_cuda::{GpuExperts, GpuRoutes};
use super::{Compute, Kind, Matrix, RouteParams, Tensor, on_cpu};

/// Which experts each token of a step goes to, and with what weight.
#[derive(Clone, Debug)]
pub enum Routes {
    /// In host memory.
    Cpu(on_cpu::Routes),
    /// In GPU memory.
    #[cfg(feature = "cuda")]
    Gpu(GpuRoutes),
}

impl Routes {
    /// Room for `tokens` tokens of `top_k` experts each.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn new(compute: &Compute, tokens: usize, top_k: usize) -> Result<Self> {
        match compute {
            Compute::Cpu(_) => Ok(Self::Cpu(on_cpu::Routes::new(tokens, top_k))),
            #[cfg(feature = "cuda")]
            Compute::Gpu(gpu) => gpu.routes(tokens, top_k).map(Self::Gpu),
        }
    }
}

/// The weights of one layer's experts.
#[derive(Clone, Debug)]
pub enum Experts {
    /// As stored, mapped.
    Cpu(on_cpu::Experts),
    /// In GPU memory, dense.
    #[cfg(feature = "cuda")]
    Gpu(GpuExperts),
}

impl Experts {
    /// Brings the experts, gate `[f, h]`, up `[f, h]` and down `[h, f]` of each, to where `compute` computes.
    ///
    /// # Errors
    /// If there are none, their shapes differ, or the device has no room.
    pub fn load(compute: &Compute, experts: Vec<[Matrix; 3]>) -> Result<Self> {
        let Some([gate, _, _]) = experts.first() else { bail!("a mixture of no experts") };
        let (f, h) = (gate.rows(), gate.columns());
        let fits = |[gate, up, down]: &[Matrix; 3]| {
            [(gate.rows(), gate.columns()), (up.rows(), up.columns())] == [(f, h); 2]
                && (down.rows(), down.columns()) == (h, f)
        };
        if let Some(other) = experts.iter().find(|expert| !fits(expert)) {
            bail!("experts of different shapes: {other:?} beside [{f}, {h}]");
        }
        match compute {
            Compute::Cpu(_) => Ok(Self::Cpu(on_cpu::Experts { experts })),
            #[cfg(feature = "cuda")]
            Compute::Gpu(gpu) => gpu.upload_experts(&experts).map(Self::Gpu),
        }
    }
}

/// Where the experts of a layer compute. What is there afterwards is undefined.
#[derive(Clone, Debug)]
pub enum ExpertTensors {
    /// In host memory: `t` rows each.
    Cpu {
        /// `[t, h]`.
        x: Tensor,
        /// `[t, 2 f]`.
        gate_up: Tensor,
        /// `[t, f]`.
        product: Tensor,
        /// `[t, h]`.
        down: Tensor,
    },
    /// On a GPU, which keeps room of its own for them.
    #[cfg(feature = "cuda")]
    Gpu,
}

impl ExpertTensors {
    /// Room for `tokens` tokens.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn new(compute: &Compute, tokens: usize, hidden: usize, ffn: usize) -> Result<Self> {
        let zeros = |columns| Tensor::zeros(compute, tokens, columns, Kind::Activation);
        match compute {
            Compute::Cpu(_) => Ok(Self::Cpu {
                x: zeros(hidden)?,
                gate_up: zeros(2 * ffn)?,
                product: zeros(ffn)?,
                down: zeros(hidden)?,
            }),
            #[cfg(feature = "cuda")]
            Compute::Gpu(_) => Ok(Self::Gpu),
        }
    }

    /// That of a step of `count` tokens.
    ///
    /// # Errors
    /// If there is room for fewer.
    pub fn first_rows(&self, count: usize) -> Result<Self> {
        match self {
            Self::Cpu { x, gate_up, product, down } => Ok(Self::Cpu {
                x: x.first_rows(count)?,
                gate_up: gate_up.first_rows(count)?,
                product: product.first_rows(count)?,
                down: down.first_rows(count)?,
            }),
            #[cfg(feature = "cuda")]
            Self::Gpu => Ok(Self::Gpu),
        }
    }
}

/// Chooses the experts of each token of `logits [t, experts]`, f32: see [`RouteParams`]. `correction [experts]` is added
/// to scores for the choice alone.
///
/// # Errors
/// If shapes do not fit.
pub fn route(
    compute: &Compute,
    logits: &Tensor,
    correction: Option<&Tensor>,
    params: &RouteParams,
    routes: &Routes,
) -> Result<()> {
    match (compute, routes) {
        (Compute::Cpu(cpu), Routes::Cpu(routes)) => {
            let correction = correction.map(Tensor::cpu).transpose()?;
            on_cpu::route(cpu, logits.cpu()?, correction, params, routes)
        }
        #[cfg(feature = "cuda")]
        (Compute::Gpu(gpu), Routes::Gpu(routes)) => gpu.route(logits, correction, params, routes),
        #[cfg(feature = "cuda")]
        _ => super::tensor::elsewhere("route"),
    }
}

/// `dst[t] += sum over the token's experts of weight * down(silu(gate x[t]) * up x[t])`: `x` and `dst` `[t, h]`.
///
/// # Errors
/// If shapes do not fit, or the routes are those of another step.
pub fn experts(
    compute: &Compute,
    x: &Tensor,
    experts: &Experts,
    routes: &Routes,
    buffers: &ExpertTensors,
    dst: &Tensor,
) -> Result<()> {
    match (compute, experts, routes, buffers) {
        (
            Compute::Cpu(cpu),
            Experts::Cpu(experts),
            Routes::Cpu(routes),
            ExpertTensors::Cpu { x: gathered, gate_up, product, down },
        ) => {
            let (x_of_one, gate_up) = (gathered.cpu()?, gate_up.cpu()?);
            let buffers = on_cpu::ExpertTensors { x: x_of_one, gate_up, product: product.cpu()?, down: down.cpu()? };
            on_cpu::experts(cpu, x.cpu()?, experts, routes, buffers, dst.cpu()?)
        }
        #[cfg(feature = "cuda")]
        (Compute::Gpu(gpu), Experts::Gpu(experts), Routes::Gpu(routes), ExpertTensors::Gpu) => {
            gpu.experts(x, experts, routes, dst)
        }
        #[cfg(feature = "cuda")]
        _ => super::tensor::elsewhere("experts"),
    }
}

/// `x[t] *= sigmoid(gates[t])`: `x [t, h]`, `gates [t, 1]`.
///
/// # Errors
/// If shapes do not fit.
pub fn scale_by_sigmoid(compute: &Compute, x: &Tensor, gates: &Tensor) -> Result<()> {
    match compute {
        Compute::Cpu(cpu) => on_cpu::scale_by_sigmoid(cpu, x.cpu()?, gates.cpu()?),
        #[cfg(feature = "cuda")]
        Compute::Gpu(gpu) => gpu.scale_by_sigmoid(x, gates),
    }
}

/// Sets `x` to zero.
///
/// # Errors
/// If it lies elsewhere.
pub fn clear(compute: &Compute, x: &Tensor) -> Result<()> {
    match compute {
        Compute::Cpu(_) => on_cpu::clear(x.cpu()?),
        #[cfg(feature = "cuda")]
        Compute::Gpu(gpu) => gpu.clear(x),
    }
}
