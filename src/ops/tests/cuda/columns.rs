//! Columns in another order: the kernels beside the host, and products with matrices whose columns were sorted beside the
//! CPU's operations.

use std::sync::Arc;

use candle_core::Device;

use super::gemm::{floats, random, relative_error, rounded, tensor};
use super::{gpu, open_gpu, quant};
use crate::cuda::{
    AttentionScratch, AttentionShape, Blas, BlockFormat, ColumnKernels, CudaError, DType, DeviceTensor, Gemm,
};
use crate::ops::on_cuda::{GpuCompute, GpuWeight};
use crate::ops::{self, Compute, Format, Matrix, Tensor, Weight, gpu_order_room};

fn kernels() -> ColumnKernels {
    ColumnKernels::load(gpu()).expect("our kernels are in this build")
}

/// The numbers below `count` in some order.
fn shuffled(count: usize, seed: u64) -> Vec<u32> {
    let keys = random(count, seed);
    let mut order: Vec<u32> = (0..count as u32).collect();
    order.sort_by(|a, b| keys[*a as usize].total_cmp(&keys[*b as usize]));
    order
}

fn order_on_gpu(order: &[u32]) -> DeviceTensor {
    let bytes: Vec<u8> = order.iter().flat_map(|place| place.to_ne_bytes()).collect();
    tensor(1, order.len(), DType::U32, &bytes)
}

/// Two bytes each, no two neighbours alike.
fn pairs(count: usize) -> Vec<[u8; 2]> {
    (0..count as u32).map(|at| ((at.wrapping_mul(40_503) >> 3) as u16).to_ne_bytes()).collect()
}

/// Rows of few and of many, and widths of a pack, of odd packs, of what shared memory holds at most, and beyond.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_columns_are_gathered_and_scattered_as_on_the_host() -> Result<(), CudaError> {
    for columns in [8, 32, 96, 2056, 4096, 11_008, 50_688, 53_248] {
        let order = shuffled(columns, columns as u64);
        let places = order_on_gpu(&order);
        for rows in [1, 3, 8, 9, 33] {
            let values = pairs(rows * columns);
            let src = tensor(rows, columns, DType::Bf16, values.as_flattened());
            // A row before and one behind, which stay as they are.
            let guarded = tensor(rows + 2, columns, DType::Bf16, &vec![0xA5; 2 * (rows + 2) * columns]);
            let (dst, name) = (guarded.slice(1, rows), format!("{rows} rows of {columns}"));
            kernels().gather(gpu(), &src, &places, &dst)?;
            let wanted: Vec<[u8; 2]> =
                values.chunks(columns).flat_map(|row| order.iter().map(|place| row[*place as usize])).collect();
            assert!(gpu().download(&dst)? == wanted.as_flattened(), "gathered: {name}");
            if ColumnKernels::scatters(columns) {
                // Puts back what was gathered.
                kernels().scatter(gpu(), &dst, &places)?;
                assert!(gpu().download(&dst)? == values.as_flattened(), "scattered: {name}");
            } else {
                assert!(kernels().scatter(gpu(), &dst, &places).is_err(), "{name}");
            }
            for outside in [guarded.slice(0, 1), guarded.slice(rows + 1, 1)] {
                assert!(gpu().download(&outside)?.iter().all(|byte| *byte == 0xA5), "{name}: writes outside");
            }
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_columns_of_other_shapes_are_errors() -> Result<(), CudaError> {
    let of = |rows, columns, dtype| gpu().zeros(rows, columns, dtype, "a test");
    let (x, dst, order) = (of(2, 64, DType::Bf16)?, of(2, 64, DType::Bf16)?, order_on_gpu(&shuffled(64, 1)));
    for (x, order, dst) in [
        (&x, &order, &of(3, 64, DType::Bf16)?),
        (&x, &order, &of(2, 64, DType::F16)?),
        (&x, &order_on_gpu(&shuffled(72, 1)), &dst),
        (&of(2, 64, DType::F32)?, &order, &of(2, 64, DType::F32)?),
        (&of(2, 60, DType::Bf16)?, &order_on_gpu(&shuffled(60, 1)), &of(2, 60, DType::Bf16)?),
    ] {
        assert!(kernels().gather(gpu(), x, order, dst).is_err(), "{x:?} by {order:?} -> {dst:?}");
    }
    assert!(kernels().scatter(gpu(), &x, &order_on_gpu(&shuffled(72, 1))).is_err());
    Ok(())
}

/// Operations on the GPU in `dtype`, with so much room for dense weights.
fn compute(dtype: DType, dense_bytes: usize) -> Result<Compute, CudaError> {
    let shape = AttentionShape { q_heads: 1, kv_heads: 1, head_dim: 64, scale: 1.0, sliding_window: None };
    let scratch = AttentionScratch::new(gpu(), 1, 1, &shape)?;
    let gemm = Gemm::load(gpu(), Blas::open(gpu(), &[]))?;
    Ok(Compute::Gpu(Arc::new(GpuCompute::new(open_gpu(), dtype, gemm, scratch, dense_bytes, None)?)))
}

/// A stack: the rows of each matrix, and which order its columns have; the block matrices that it becomes.
type Stack = (&'static [(usize, Option<u64>)], usize);

/// Of one order, of several, beside a matrix whose columns lie as they are, with tiles that are not whole.
const STACKS: [Stack; 6] = [
    (&[(64, Some(1)), (16, Some(1)), (16, Some(1))], 1),
    (&[(64, Some(1)), (16, Some(2)), (32, Some(1))], 3),
    (&[(64, None), (16, Some(2)), (16, None)], 3),
    (&[(40, Some(1)), (40, Some(1))], 2),
    (&[(130, Some(3))], 1),
    (&[(17, Some(3)), (17, Some(4))], 2),
];

const FORMATS: [(Format, usize); 3] = [(Format::Int4x32, 13), (Format::Int4x128, 3), (Format::Int8x64, 35)];

fn matrices(stack: &[(usize, Option<u64>)], format: Format, columns: usize) -> Vec<Matrix> {
    let one = |(index, (rows, order)): (usize, &(usize, Option<u64>))| {
        let matrix = quant::blocks(format, &[0], *rows, columns, 11 * index as u64 + 5);
        match order {
            Some(seed) => matrix.with_input_order(shuffled(columns, *seed)).expect("each once"),
            None => matrix,
        }
    };
    stack.iter().enumerate().map(one).collect()
}

/// Rows of x, on the GPU and on the CPU.
fn inputs(rows: usize, columns: usize, dtype: DType) -> (Tensor, Tensor) {
    let (bytes, values) = rounded(&random(rows * columns, 3), dtype);
    let on_cpu = candle_core::Tensor::from_vec(values, (rows, columns), &Device::Cpu).expect("as many");
    (Tensor::Gpu(tensor(rows, columns, dtype, &bytes)), Tensor::Cpu(on_cpu))
}

fn on_cpu(rows: usize, columns: usize) -> Tensor {
    let zeros = candle_core::Tensor::zeros((rows, columns), candle_core::DType::F32, &Device::Cpu);
    Tensor::Cpu(zeros.expect("memory"))
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.source("a test", "a product").expect("on the CPU").to_vec()
}

/// How far off a product may be: where weights are made dense each is rounded once more.
fn allowed(dtype: DType) -> f64 {
    if dtype == DType::Bf16 { 6e-3 } else { 1e-3 }
}

/// What the operation gives in `dtype` for so many rows, beside the CPU: "" or what is wrong.
fn compare(name: &str, found: &DeviceTensor, guard: &DeviceTensor, wanted: &Tensor) -> Result<String, CudaError> {
    let dtype = found.dtype();
    let error = relative_error(&floats(&gpu().download(found)?, dtype), &values(wanted));
    if gpu().download(guard)?.iter().any(|byte| *byte != 0xFF) {
        return Ok(format!("{name}: writes past y\n"));
    }
    let limit = if dtype == DType::F32 { allowed(DType::Bf16) } else { allowed(dtype) };
    Ok(if error < limit { String::new() } else { format!("{name}: off by {error:.2e}\n") })
}

/// With few rows, with as many as blocks take, with weights made dense; and where there is no room for that, in pieces.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_products_with_sorted_columns_are_those_of_the_cpu() -> Result<(), Box<dyn std::error::Error>> {
    let (cpu, mut wrong) = (Compute::cpu(None), String::new());
    for dtype in [DType::Bf16, DType::F16] {
        for (format, blocks) in FORMATS {
            let columns = blocks * format.block_len();
            let computes = [1 << 22, gpu_order_room(columns) as usize].map(|room| (room, compute(dtype, room)));
            for (stack, count) in STACKS {
                let parts = matrices(stack, format, columns);
                let outputs = parts.iter().map(Matrix::rows).sum();
                let on_host = Weight::load(&cpu, parts.clone())?;
                for (room, compute) in &computes {
                    let compute = compute.as_ref().map_err(ToString::to_string)?;
                    let weight = Weight::load(compute, parts.clone())?;
                    let runs = match weight.gpu()? {
                        GpuWeight::Blocks(runs) => runs.len(),
                        other => panic!("{other:?} is not in blocks"),
                    };
                    assert_eq!(runs, count, "{format} {stack:?}");
                    for (rows, output) in
                        [(1, dtype), (8, dtype), (8, DType::F32), (33, dtype), (96, dtype), (200, dtype)]
                    {
                        let name = format!("{format} {stack:?} {rows} rows of {dtype:?} -> {output:?} in {room}");
                        let (x, on_host_x) = inputs(rows, columns, dtype);
                        let y = tensor(rows + 1, outputs, output, &vec![0xFF; (rows + 1) * outputs * output.size()]);
                        let wanted = on_cpu(rows, outputs);
                        ops::linear(&cpu, &on_host_x, &on_host, None, &wanted)?;
                        ops::linear(compute, &x, &weight, None, &Tensor::Gpu(y.slice(0, rows)))?;
                        wrong += &compare(&name, &y.slice(0, rows), &y.slice(rows, 1), &wanted)?;
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    Ok(())
}

/// Gate and up of one order are one kernel for few rows; of two they are not.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_gated_products_with_sorted_columns_are_those_of_the_cpu() -> Result<(), Box<dyn std::error::Error>> {
    let (cpu, mut wrong) = (Compute::cpu(None), String::new());
    let stacks: [[(usize, Option<u64>); 2]; 4] = [
        [(48, Some(1)), (48, Some(1))],
        [(48, Some(1)), (48, Some(2))],
        [(40, Some(1)), (40, Some(1))],
        [(48, None), (48, Some(2))],
    ];
    for dtype in [DType::Bf16, DType::F16] {
        let compute = compute(dtype, 1 << 22)?;
        for (stack, (format, blocks)) in stacks.iter().flat_map(|stack| FORMATS.map(|format| (stack, format))) {
            let (columns, width) = (blocks * format.block_len(), stack[0].0);
            let parts = matrices(stack, format, columns);
            let (on_host, weight) = (Weight::load(&cpu, parts.clone())?, Weight::load(&compute, parts)?);
            for rows in [1, 3, 8, 33, 200] {
                let name = format!("{format} {stack:?} {rows} rows of {dtype:?}");
                let (x, on_host_x) = inputs(rows, columns, dtype);
                let y = tensor(rows + 1, width, dtype, &vec![0xFF; 2 * (rows + 1) * width]);
                let between = Tensor::Gpu(gpu().zeros(rows, 2 * width, dtype, "a test")?);
                let wanted = on_cpu(rows, width);
                ops::linear_silu(&cpu, &on_host_x, &on_host, None, &on_cpu(rows, 2 * width), &wanted)?;
                ops::linear_silu(&compute, &x, &weight, None, &between, &Tensor::Gpu(y.slice(0, rows)))?;
                wrong += &compare(&name, &y.slice(0, rows), &y.slice(rows, 1), &wanted)?;
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    Ok(())
}

/// Shapes of a 7B Llama: microseconds of what sorted columns cost.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn cuda_bench_columns() -> Result<(), CudaError> {
    let quant = quant::kernels();
    for (outputs, inputs) in [(12_288, 4096), (22_016, 4096), (4096, 11_008)] {
        let order = order_on_gpu(&shuffled(inputs, 1));
        let mut line = format!("{outputs:>6} x {inputs:<6}");
        for rows in [1, 8, 32, 96] {
            let (x, y) =
                (gpu().zeros(rows, inputs, DType::Bf16, "a test")?, gpu().zeros(rows, inputs, DType::Bf16, "a test")?);
            let us = gpu().time(32, |gpu| kernels().gather(gpu, &x, &order, &y))?;
            line += &format!("  {rows}: {us:.1} us");
        }
        let weights =
            quant::upload(&quant::blocks(Format::Int4x128, &[0], outputs, inputs, 1), BlockFormat::Int4(128))?;
        let dense = gpu().empty(outputs, inputs, DType::Bf16, "a test")?;
        let unpack = gpu().time(16, |gpu| quant.unpack(gpu, &weights, &dense))?;
        let scatter = gpu().time(16, |gpu| kernels().scatter(gpu, &dense, &order))?;
        println!("{line}  dense: {unpack:.1} us, in order: {scatter:.1} us");
    }
    Ok(())
}
