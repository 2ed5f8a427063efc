//! The way of tokens to experts: `kernels/experts/route.cu`, checked and launched.

use super::check::{expect, expect_at_least, require};
use super::{Arguments, CudaError, DType, DeviceTensor, Gpu, Grid, Kernel};

/// The most experts of a layer.
pub const MAX_EXPERTS: usize = 512;

/// The most experts of a token.
pub const MAX_TOP_K: usize = 16;

/// The most groups of experts.
const MAX_EXPERT_GROUPS: usize = 32;

/// Tokens of a block, as in `route.cu`.
const TOKENS_PER_BLOCK: usize = 4;

/// How experts are chosen among groups of neighbours first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertGroups {
    /// How many groups there are, a divisor of the experts, at most 32.
    pub count: usize,
    /// How many of them a token may use.
    pub chosen: usize,
    /// Whether a group's score is the sum of its two best experts', rather than its best one's.
    pub by_best_two: bool,
}

/// How a token's experts are chosen and weighted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RouteShape {
    /// Experts of a token, at most [`MAX_TOP_K`].
    pub top_k: usize,
    /// Whether scores are sigmoids, rather than a softmax over all experts.
    pub sigmoid: bool,
    /// Whether a token's weights are made to sum to 1.
    pub normalize: bool,
    /// What weights are multiplied with.
    pub scale: f32,
    /// Groups that experts are chosen from.
    pub groups: Option<ExpertGroups>,
    /// Whether tokens take the experts in turn, whatever their logits: for benchmarks, whose random weights would choose
    /// the same few.
    pub even: bool,
}

/// The kernels of `route.cu`, looked up once.
#[derive(Clone, Copy, Debug)]
pub struct RouteKernels {
    route: Kernel,
    group_pairs: Kernel,
}

impl RouteKernels {
    /// Looks the kernels up.
    ///
    /// # Errors
    /// [`CudaError::NoKernel`].
    pub fn load(gpu: &Gpu) -> Result<Self, CudaError> {
        Ok(Self { route: gpu.kernel("route", "route")?, group_pairs: gpu.kernel("route", "group_pairs")? })
    }

    /// For each row of `logits [t, E]` f32: the `top_k` experts with the best score + bias, of equal ones the lower, best
    /// first to `ids [t, top_k]` u32, and their scores without bias to `weights [t, top_k]` f32. `bias [1, E]` f32. The
    /// same logits give the same choice in any batch.
    ///
    /// Source: DeepSeek-AI, "DeepSeek-V3 Technical Report", 2024, section 2.1.2, for bias and groups.
    ///
    /// # Errors
    /// If shapes or dtypes do not fit, or there are more experts, groups or choices than the kernel takes.
    pub fn route(
        &self,
        gpu: &Gpu,
        logits: &DeviceTensor,
        bias: Option<&DeviceTensor>,
        shape: RouteShape,
        ids: &DeviceTensor,
        weights: &DeviceTensor,
    ) -> Result<(), CudaError> {
        const OP: &str = "route";
        let (tokens, experts, top_k) = (logits.rows(), logits.columns(), shape.top_k);
        let groups = shape.groups.unwrap_or(ExpertGroups { count: 1, chosen: 1, by_best_two: false });
        let fits = (1..=MAX_EXPERTS).contains(&experts)
            && (1..=MAX_TOP_K.min(experts)).contains(&top_k)
            && (1..=MAX_EXPERT_GROUPS).contains(&groups.count)
            && experts.is_multiple_of(groups.count)
            && (1..=groups.count).contains(&groups.chosen)
            && top_k <= groups.chosen * (experts / groups.count);
        require(OP, fits, || format!("{shape:?} of {experts} experts"))?;
        expect(OP, "logits", logits, DType::F32, tokens, experts)?;
        expect(OP, "ids", ids, DType::U32, tokens, top_k)?;
        expect(OP, "weights", weights, DType::F32, tokens, top_k)?;
        if let Some(bias) = bias {
            expect_at_least(OP, "bias", bias, DType::F32, experts)?;
        }
        let arguments = Arguments::new().tensor(ids).tensor(weights).tensor(logits).optional(bias).size(tokens);
        let arguments = arguments.size(experts).size(top_k).size(usize::from(shape.sigmoid));
        let arguments = arguments.size(usize::from(shape.normalize)).f32(shape.scale).size(groups.count);
        let arguments =
            arguments.size(groups.chosen).size(usize::from(groups.by_best_two)).size(usize::from(shape.even));
        let grid = Grid::linear(tokens.div_ceil(TOKENS_PER_BLOCK), 32 * TOKENS_PER_BLOCK as u32);
        // SAFETY: shapes and dtypes are checked above.
        unsafe { gpu.launch(self.route, grid, arguments) }
    }

    /// Lists the pairs of token and chosen expert by expert: of `ids` u32, each below `experts`, to `sorted`, as many u32,
    /// and `offsets`, `experts + 1` u32, where each expert's begin. An expert's pairs rise.
    ///
    /// # Errors
    /// If shapes or dtypes do not fit.
    pub(super) fn group_pairs(
        &self,
        gpu: &Gpu,
        ids: &DeviceTensor,
        experts: usize,
        sorted: &DeviceTensor,
        offsets: &DeviceTensor,
    ) -> Result<(), CudaError> {
        const OP: &str = "group_pairs";
        let pairs = ids.rows() * ids.columns();
        expect_at_least(OP, "ids", ids, DType::U32, pairs)?;
        expect_at_least(OP, "sorted", sorted, DType::U32, pairs)?;
        expect_at_least(OP, "offsets", offsets, DType::U32, experts + 1)?;
        let arguments = Arguments::new().tensor(sorted).tensor(offsets).tensor(ids).size(pairs);
        // SAFETY: sizes are checked above; the kernel writes within `sorted` whatever the ids are.
        unsafe { gpu.launch(self.group_pairs, Grid::linear(experts, 512), arguments) }
    }
}
