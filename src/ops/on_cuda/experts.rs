//! Mixtures of experts on a GPU.

use candle_core::{Error, bail};

use super::GpuCompute;
use crate::cuda::{
    BlockMatrix, CudaError, DType, DeviceTensor, ExpertBlocks, ExpertCall, ExpertGroups, ExpertMatrices, ExpertRange,
    RouteShape, Unpacking,
};
use crate::ops::stack::expert_blocks;
use crate::ops::{Matrix, RouteGroups, RouteParams, Scoring, Tensor};

/// Pairs of an expert, on the average, from which weights in block formats are made dense: that takes as long as what it
/// saves, measured on one H100 with experts of 768 and 1408 elements in Q4_K.
const UNPACKED_PAIRS: usize = 64;

type Result<T, E = Error> = std::result::Result<T, E>;

/// Which experts each token of a step goes to, `[tokens, top_k]` u32, and with what weight, f32.
#[derive(Clone, Debug)]
pub struct GpuRoutes {
    ids: DeviceTensor,
    weights: DeviceTensor,
}

/// The weights of one layer's experts.
#[derive(Clone, Debug)]
pub struct GpuExperts {
    count: usize,
    stored: Stored,
}

/// How they are stored, one expert below the other.
#[derive(Clone, Debug)]
enum Stored {
    /// Of the model's type: gate above up `[count * 2 f, h]`, and down `[count * h, f]`.
    Dense { gate_up: DeviceTensor, down: DeviceTensor },
    /// In block formats: gate and up `[count * f, h]`, and down `[count * h, f]`.
    Blocks { gate: BlockMatrix, up: BlockMatrix, down: BlockMatrix },
}

impl GpuCompute {
    /// Room for the routes of `tokens` tokens.
    pub(in crate::ops) fn routes(&self, tokens: usize, top_k: usize) -> Result<GpuRoutes> {
        let zeros = |dtype| self.gpu.zeros(tokens, top_k, dtype, "the step's buffers").map_err(Error::wrap);
        Ok(GpuRoutes { ids: zeros(DType::U32)?, weights: zeros(DType::F32)? })
    }

    /// Gate `[f, h]`, up `[f, h]` and down `[h, f]` of each expert.
    pub(in crate::ops) fn upload_experts(&self, experts: &[[Matrix; 3]]) -> Result<GpuExperts> {
        let Some([gate, _, _]) = experts.first() else { bail!("a mixture of no experts") };
        let (count, f, h) = (experts.len(), gate.rows(), gate.columns());
        let formats: Vec<_> = experts.iter().map(|own| own.each_ref().map(Matrix::format)).collect();
        // Each expert has an order of its own, and these kernels read inputs as they lie: where columns were sorted, weights
        // are made dense.
        let in_order = experts.iter().flatten().all(|matrix| matrix.input_order().is_none());
        if in_order && let Some([gate, down]) = expert_blocks(&formats, h, f) {
            let matrices = [(gate, f, h), (gate, f, h), (down, h, f)];
            let [gate, up, down] = matrices.map(|(format, rows, k)| self.empty_blocks(format, count * rows, k));
            let matrices = [gate?, up?, down?];
            let staging = self.staging(experts.iter().flatten())?;
            for (index, own) in experts.iter().enumerate() {
                for (matrix, target) in own.iter().zip(&matrices) {
                    self.upload_blocks(matrix, &target.slice(index * matrix.rows(), matrix.rows()), &staging)?;
                }
            }
            // The staging goes.
            self.gpu.synchronize().map_err(Error::wrap)?;
            let [gate, up, down] = matrices;
            return Ok(GpuExperts { count, stored: Stored::Blocks { gate, up, down } });
        }
        let empty = |rows, columns| self.gpu.empty(rows, columns, self.dtype, "the weights").map_err(Error::wrap);
        let (gate_up, down) = (empty(count * 2 * f, h)?, empty(count * h, f)?);
        for (index, [gate, up, own_down]) in experts.iter().enumerate() {
            self.upload_matrix(gate, &gate_up.slice(2 * index * f, f))?;
            self.upload_matrix(up, &gate_up.slice((2 * index + 1) * f, f))?;
            self.upload_matrix(own_down, &down.slice(index * h, h))?;
        }
        Ok(GpuExperts { count, stored: Stored::Dense { gate_up, down } })
    }

    pub(in crate::ops) fn route(
        &self,
        logits: &Tensor,
        correction: Option<&Tensor>,
        params: &RouteParams,
        routes: &GpuRoutes,
    ) -> Result<()> {
        let groups = |RouteGroups { groups, top_groups, best }: RouteGroups| ExpertGroups {
            count: groups,
            chosen: top_groups,
            by_best_two: best == 2,
        };
        let shape = RouteShape {
            top_k: params.top_k,
            sigmoid: matches!(params.scoring, Scoring::Sigmoid),
            normalize: params.normalize,
            scale: params.scale,
            groups: params.groups.map(groups),
            even: params.even,
        };
        let logits = logits.gpu()?;
        let correction = correction.map(Tensor::gpu).transpose()?;
        let (ids, weights) = (routes.ids.slice(0, logits.rows()), routes.weights.slice(0, logits.rows()));
        self.route.route(&self.gpu, logits, correction, shape, &ids, &weights).map_err(Error::wrap)
    }

    pub(in crate::ops) fn experts(
        &self,
        x: &Tensor,
        experts: &GpuExperts,
        routes: &GpuRoutes,
        dst: &Tensor,
    ) -> Result<()> {
        let Some(buffers) = &self.expert_buffers else { bail!("no room was made for experts") };
        let (x, dst, count) = (x.gpu()?, dst.gpu()?, experts.count);
        let (ids, weights) = (&routes.ids.slice(0, x.rows()), &routes.weights.slice(0, x.rows()));
        let call = ExpertCall { x, ids, weights, buffers, dst };
        match &experts.stored {
            Stored::Dense { gate_up, down } => {
                self.experts.experts(&self.gpu, call, ExpertMatrices { count, gate_up, down })
            }
            Stored::Blocks { gate, up, down } if ids.rows() * ids.columns() >= UNPACKED_PAIRS * count => {
                let parts = ExpertBlocks { count, gate, up, down };
                return self.experts_unpacked(call, parts).map_err(Error::wrap);
            }
            Stored::Blocks { gate, up, down } => {
                self.expert_blocks.experts(&self.gpu, call, ExpertBlocks { count, gate, up, down })
            }
        }
        .map_err(Error::wrap)
    }

    /// The same with weights in block formats, made dense some experts at a time where dense weights have their room.
    fn experts_unpacked(&self, call: ExpertCall<'_>, experts: ExpertBlocks<'_>) -> Result<(), CudaError> {
        let ExpertBlocks { count, gate, up, down } = experts;
        let (h, f, room) = (gate.columns(), down.columns(), self.dense.bytes() / self.dtype.size());
        let [gate_up_fit, down_fit] = [room / (2 * f * h), room / (f * h)];
        let mut unpack_gate_up = |ExpertRange { first, count }: ExpertRange| {
            let dense = self.dense.reshape(2 * count * f, h, self.dtype);
            for (part, matrix) in [gate, up].into_iter().enumerate() {
                let below = dense.slice(part * f, (2 * count - part) * f);
                self.quant.unpack_folded(&self.gpu, &matrix.slice(first * f, count * f), &below, f)?;
            }
            Ok(dense)
        };
        let mut unpack_down = |ExpertRange { first, count }: ExpertRange| {
            let dense = self.dense.reshape(count * h, f, self.dtype);
            self.quant.unpack(&self.gpu, &down.slice(first * h, count * h), &dense)?;
            Ok(dense)
        };
        let gate_up = Unpacking { at_once: gate_up_fit, unpack: &mut unpack_gate_up };
        let down = Unpacking { at_once: down_fit, unpack: &mut unpack_down };
        self.experts.experts_unpacked(&self.gpu, call, count, f, [gate_up, down])
    }

    pub(in crate::ops) fn scale_by_sigmoid(&self, x: &Tensor, gates: &Tensor) -> Result<()> {
        self.elementwise.scale_by_sigmoid(&self.gpu, x.gpu()?, gates.gpu()?).map_err(Error::wrap)
    }

    pub(in crate::ops) fn clear(&self, x: &Tensor) -> Result<()> {
        self.elementwise.clear(&self.gpu, x.gpu()?).map_err(Error::wrap)
    }
}
