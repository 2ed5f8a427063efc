//! Gated MLPs of chosen experts whose weights stay in block formats: `kernels/include/experts_blocks.cuh`, checked and
//! launched.

use super::blocks::{BlockMatrix, Code, TILE_ROWS};
use super::check::{Typed, require};
use super::experts::{ExpertCall, ExpertKernels, MOST_UNSORTED_TOKENS, OP, Sizes};
use super::quant::{self, SHARED_BYTES, Shape, plain, warp_bytes};
use super::{Arguments, CudaError, DType, DeviceTensor, Gpu, Grid};

/// Pairs of an expert, on the average, up to which eight are taken at a time.
const MOST_FEW_PAIRS: usize = 8;

/// The experts of a layer in block formats, one below the other.
#[derive(Clone, Copy, Debug)]
pub struct ExpertBlocks<'a> {
    /// How many.
    pub count: usize,
    /// `[count * f, h]`, f a multiple of 16.
    pub gate: &'a BlockMatrix,
    /// The same of the same format.
    pub up: &'a BlockMatrix,
    /// `[count * h, f]`, h a multiple of 32.
    pub down: &'a BlockMatrix,
}

/// How the experts of a step are computed. All give the same result but for rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpertBlocksWay {
    /// Each pair by itself.
    Pairs,
    /// By expert, eight of its pairs at a time.
    Few,
    /// By expert, 32 of its pairs at a time.
    Many,
}

impl ExpertBlocksWay {
    /// All ways.
    #[cfg(test)]
    pub const ALL: [Self; 3] = [Self::Pairs, Self::Few, Self::Many];

    /// The one for so many tokens, pairs and experts.
    pub fn choose(tokens: usize, pairs: usize, experts: usize) -> Self {
        match pairs / experts {
            _ if tokens <= MOST_UNSORTED_TOKENS => Self::Pairs,
            each if each <= MOST_FEW_PAIRS => Self::Few,
            _ => Self::Many,
        }
    }
}

/// The two products in one form.
#[derive(Clone, Copy)]
struct Form {
    gate_up: Typed,
    down: Typed,
}

/// How they are cut, as `experts_blocks.cuh` does: tiles of a warp, and teams that have gate and up.
const FEW_GATE_UP: Shape = Shape { tiles: 1, rows: 8, teams: 2, warps: (8, 16) };
const FEW_DOWN: Shape = Shape { tiles: 1, rows: 8, teams: 1, warps: (8, 16) };
const MANY: Shape = Shape { tiles: 2, rows: 32, teams: 1, warps: (8, 8) };

/// The kernels of `experts_k.cu` and `experts_plain.cu`.
#[derive(Clone)]
pub struct ExpertBlockKernels {
    /// Few and many of each code.
    forms: Vec<(Code, [Form; 2])>,
    shared: ExpertKernels,
}

impl ExpertBlockKernels {
    /// Looks the kernels up; `shared` lists pairs and sums them.
    ///
    /// # Errors
    /// [`CudaError::NoKernel`].
    pub fn load(gpu: &Gpu, shared: ExpertKernels) -> Result<Self, CudaError> {
        let load = |code: Code, form: &str| -> Result<Form, CudaError> {
            let module = if code.is_plain() { "experts_plain" } else { "experts_k" };
            let product = |name: &str| {
                let kernel = Typed::load(gpu, module, &format!("experts_{name}_{form}_{code:?}"))?;
                for dtype in [DType::Bf16, DType::F16] {
                    gpu.allow_shared_memory(kernel.of(OP, dtype)?, SHARED_BYTES)?;
                }
                Ok::<_, CudaError>(kernel)
            };
            Ok(Form { gate_up: product("gate_up")?, down: product("down")? })
        };
        let forms = Code::ALL.into_iter().map(|code| Ok((code, [load(code, "few")?, load(code, "many")?])));
        Ok(Self { forms: forms.collect::<Result<_, CudaError>>()?, shared })
    }

    fn form(&self, matrix: &BlockMatrix, is_many: bool) -> Form {
        let code = matrix.format().row().code;
        let (_, forms) = self.forms.iter().find(|(other, _)| *other == code).expect("all were loaded");
        forms[usize::from(is_many)]
    }

    /// As [`ExpertKernels::experts`], with weights in block formats, and a pair's result rounded before a token's are summed.
    ///
    /// # Errors
    /// If shapes, formats or dtypes do not fit, or the buffers are too small.
    pub fn experts(&self, gpu: &Gpu, call: ExpertCall<'_>, experts: ExpertBlocks<'_>) -> Result<(), CudaError> {
        let pairs = call.ids.rows() * call.ids.columns();
        let way = ExpertBlocksWay::choose(call.x.rows(), pairs, experts.count.max(1));
        self.experts_by(way, gpu, call, experts)
    }

    /// As [`ExpertBlockKernels::experts`], by `way`.
    ///
    /// # Errors
    /// As [`ExpertBlockKernels::experts`].
    pub fn experts_by(
        &self,
        way: ExpertBlocksWay,
        gpu: &Gpu,
        call: ExpertCall<'_>,
        experts: ExpertBlocks<'_>,
    ) -> Result<(), CudaError> {
        let sizes = check(call, experts)?;
        if sizes.pairs == 0 {
            return Ok(());
        }
        let listed = way != ExpertBlocksWay::Pairs;
        if listed {
            self.shared.list_pairs(gpu, call, experts.count)?;
        }
        let is_many = way == ExpertBlocksWay::Many;
        let launch = Launch { gpu, sizes, call, count: experts.count, is_many, listed };
        launch.gate_up(self.form(experts.gate, is_many), experts)?;
        launch.down(self.form(experts.down, is_many), experts.down)?;
        self.shared.sum_pairs(gpu, sizes, call)
    }
}

/// One call by one way.
struct Launch<'a> {
    gpu: &'a Gpu,
    sizes: Sizes,
    call: ExpertCall<'a>,
    count: usize,
    is_many: bool,
    /// Whether a unit of work is an expert, not a pair.
    listed: bool,
}

impl Launch<'_> {
    fn gate_up(&self, form: Form, experts: ExpertBlocks<'_>) -> Result<(), CudaError> {
        let ExpertCall { x, weights, buffers, .. } = self.call;
        let Sizes { top_k, inner, hidden, .. } = self.sizes;
        let shape = if self.is_many { MANY } else { FEW_GATE_UP };
        let (grid, warp_bytes) = self.grid(shape, 2 * inner, experts.gate);
        let arguments = Arguments::new().tensor(&buffers.act).tensor(x).tensor(experts.gate.tiles());
        let arguments = self.pairs(arguments.tensor(experts.up.tiles()).tensor(weights)).size(top_k);
        let arguments = plain(arguments.size(inner).size(hidden), experts.gate.format()).size(warp_bytes);
        // SAFETY: `check` holds sizes, formats, dtypes and alignment; ids below the number of experts are the caller's
        // promise, and the kernel keeps what it lists of them within `sorted`.
        unsafe { self.gpu.launch(form.gate_up.of(OP, x.dtype())?, grid, arguments) }
    }

    fn down(&self, form: Form, w: &BlockMatrix) -> Result<(), CudaError> {
        let buffers = self.call.buffers;
        let Sizes { inner, hidden, .. } = self.sizes;
        let (grid, warp_bytes) = self.grid(if self.is_many { MANY } else { FEW_DOWN }, hidden, w);
        let arguments = self.pairs(Arguments::new().tensor(&buffers.out).tensor(&buffers.act).tensor(w.tiles()));
        let arguments = plain(arguments.size(hidden).size(inner), w.format()).size(warp_bytes);
        // SAFETY: as above.
        unsafe { self.gpu.launch(form.down.of(OP, self.call.dtype())?, grid, arguments) }
    }

    fn pairs(&self, arguments: Arguments) -> Arguments {
        let ExpertCall { ids, buffers, .. } = self.call;
        let listed = |tensor: &'_ DeviceTensor| self.listed.then(|| tensor.clone());
        let (sorted, offsets) = (listed(&buffers.sorted), listed(&buffers.offsets));
        arguments.tensor(ids).optional(sorted.as_ref()).optional(offsets.as_ref())
    }

    /// A block for each unit of work and `shape` of an expert's `outputs` rows, and the shared memory of each warp. A pair's
    /// sums are in the same order however many there are.
    fn grid(&self, shape: Shape, outputs: usize, w: &BlockMatrix) -> (Grid, usize) {
        let (units, busy) = if self.listed { (self.count, self.count) } else { (self.sizes.pairs, self.sizes.top_k) };
        let bytes = warp_bytes(shape, w.format());
        let records = w.format().records(w.columns());
        let warps = quant::warps(self.gpu.limits().multiprocessors, shape, outputs * busy, records, bytes);
        let grid = Grid {
            blocks: [units as u32, (outputs / (shape.tiles * shape.teams * TILE_ROWS)) as u32, 1],
            threads: [32 * warps as u32, 1, 1],
            shared_bytes: (warps * bytes) as u32,
        };
        (grid, bytes)
    }
}

fn check(call: ExpertCall<'_>, experts: ExpertBlocks<'_>) -> Result<Sizes, CudaError> {
    let ExpertBlocks { count, gate, up, down } = experts;
    let (hidden, inner) = (call.x.columns(), down.columns());
    let fits = (gate.rows(), gate.columns()) == (count * inner, hidden)
        && (up.format(), up.rows(), up.columns()) == (gate.format(), gate.rows(), gate.columns())
        && down.rows() == count * hidden;
    require(OP, fits, || format!("{:?} by {experts:?}", call.x))?;
    let whole = hidden.is_multiple_of(2 * TILE_ROWS) && inner.is_multiple_of(2 * TILE_ROWS);
    require(OP, whole, || format!("experts of {hidden} and {inner} are not whole tiles"))?;
    let aligned = call.buffers.act.pointer().is_multiple_of(16);
    require(OP, aligned, || format!("{:?} begins between 16 bytes", call.buffers.act))?;
    call.sizes(count, inner)
}
