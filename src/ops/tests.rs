//! The operations over tensors: checks, start offsets, aliasing.

#[cfg(feature = "cuda")]
mod cuda;

use super::on_cpu::{
    KvLayer, TokenSlots, add_rms_norm, add_rms_norm_rows, attention, copy_blocks, embed, linear, rms_norm,
    rope_and_cache, silu_mul,
};
use super::*;
use crate::config::KvDType;
use crate::cpu::Cpu;
use candle_core::{DType, Device, Error, Tensor};

fn compute() -> Cpu {
    Cpu::new(NonZeroUsize::new(2))
}

fn tensor(rows: usize, columns: usize) -> Tensor {
    let values: Vec<f32> = (0..rows * columns).map(|i| ((i * 37) % 101) as f32 / 50.0 - 1.0).collect();
    Tensor::from_vec(values, (rows, columns), &Device::Cpu).expect("shape fits")
}

fn zeros(rows: usize, columns: usize) -> Tensor {
    Tensor::zeros((rows, columns), DType::F32, &Device::Cpu).expect("small")
}

fn values(tensor: &Tensor) -> Vec<Vec<f32>> {
    tensor.to_vec2().expect("two dimensions")
}

fn weights(rows: usize, columns: usize) -> Matrix {
    let values = values(&tensor(rows, columns)).concat();
    Matrix::from_f32(rows, columns, &values).expect("shape fits")
}

#[test]
fn linear_writes_into_the_rows_it_is_given() -> Result<()> {
    let (x, matrix) = (tensor(3, 40), weights(5, 40));
    let bias = tensor(1, 5).reshape(5)?;
    let whole = zeros(9, 5);
    linear(&compute(), &x, &[matrix], Some(&bias), &whole.narrow(0, 2, 3)?)?;
    let expected = x.matmul(&tensor(5, 40).t()?)?.broadcast_add(&bias)?;
    let found = values(&whole);
    for (found, expected) in found[2..5].iter().zip(values(&expected)) {
        assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-4), "{found:?} {expected:?}");
    }
    assert!(
        found.iter().enumerate().all(|(i, row)| (2..5).contains(&i) || *row == [0.0; 5]),
        "other rows are untouched"
    );
    Ok(())
}

#[test]
fn wrong_inputs_are_errors() -> Result<()> {
    let compute = compute();
    let (x, matrix) = (tensor(3, 8), weights(5, 8));
    let message = |result: Result<()>| result.expect_err("must be refused").to_string();
    assert!(
        message(linear(&compute, &x, std::slice::from_ref(&matrix), None, &zeros(3, 4)))
            .contains("linear: the destination")
    );
    assert!(message(linear(&compute, &x.t()?, &[weights(5, 3)], None, &zeros(8, 5))).contains("not contiguous"));
    assert!(
        message(linear(&compute, &tensor(3, 9), std::slice::from_ref(&matrix), None, &zeros(3, 5))).contains("columns")
    );
    let halves = x.to_dtype(DType::F64)?;
    assert!(message(linear(&compute, &halves, std::slice::from_ref(&matrix), None, &zeros(3, 5))).contains("not F32"));
    assert!(message(silu_mul(&compute, &x, &x.narrow(0, 0, 3)?)).contains("gate_up"));
    let norm = tensor(1, 8).reshape(8)?;
    let rows = add_rms_norm_rows(&compute, &x, &tensor(3, 8), &[0, 3], &norm, 1e-5, &zeros(2, 8));
    assert!(message(rows).contains("row 3"));
    assert!(message(embed(&compute, &matrix, &[5], &zeros(1, 8))).contains("token id 5"));
    assert!(message(rms_norm(&compute, &x, &norm, 1e-5, &x)).contains("shares its storage"));
    Ok(())
}

#[test]
fn rows_are_embedded() -> Result<()> {
    let embedded = zeros(3, 7);
    embed(&compute(), &weights(6, 7), &[4, 0, 4], &embedded)?;
    let rows = values(&tensor(6, 7));
    assert_eq!(values(&embedded), [rows[4].clone(), rows[0].clone(), rows[4].clone()]);
    Ok(())
}

#[test]
fn chosen_rows_are_added_and_normed() -> Result<()> {
    let (residual, x, some) = (tensor(6, 8), tensor(6, 8), zeros(2, 8));
    let weight = tensor(1, 8).reshape(8)?;
    let (same, all) = (tensor(6, 8), zeros(6, 8));
    add_rms_norm(&compute(), &same, &x, &weight, 1e-5, &all)?;
    add_rms_norm_rows(&compute(), &residual, &x, &[4, 1], &weight, 1e-5, &some)?;
    assert_eq!(values(&some), [values(&all)[4].clone(), values(&all)[1].clone()]);
    Ok(())
}

#[test]
fn the_residual_is_added_in_place() -> Result<()> {
    let (residual, x, dst) = (tensor(2, 8), tensor(2, 8), zeros(2, 8));
    let sum = (&residual + &x)?;
    let weight = tensor(1, 8).reshape(8)?;
    add_rms_norm(&compute(), &residual, &x, &weight, 1e-5, &dst)?;
    assert_eq!(values(&residual), values(&sum));
    let normed = zeros(2, 8);
    rms_norm(&compute(), &sum, &weight, 1e-5, &normed)?;
    assert_eq!(values(&dst), values(&normed));
    Ok(())
}

#[test]
fn a_token_that_sees_itself_alone_gets_its_own_value() -> Result<()> {
    let compute = compute();
    let heads = HeadShape { q_heads: 2, kv_heads: 1, head_dim: 8 };
    let kv = KvLayer::zeros(KvLayout { kv_heads: 1, head_dim: 8, dtype: KvDType::F32, planes: Default::default() }, 3)?;
    let rope = RopeTable::new(RopeLayout::Halves, 8, vec![1.0; 4], vec![0.0; 4]).map_err(Error::wrap)?;
    let (qkv, dst) = (tensor(1, heads.row_len()), zeros(1, 16));
    let v = values(&qkv)[0][24..].to_vec();
    rope_and_cache(&compute, &qkv, None, heads, TokenSlots { positions: &[0], slots: &[20] }, &rope, None, &kv)?;
    copy_blocks(&compute, &kv, &[(1, 2)])?;
    for block in [1, 2] {
        let inputs = AttentionRef {
            cu_seqlens_q: &[0, 1],
            context_lens: &[1],
            block_tables: &[block],
            block_table_offsets: &[0, 1],
        };
        attention(&compute, &qkv, heads, &kv, inputs, 1.0, None, &dst)?;
        // The token was written at place 4 of its block, so that place 0, which the context begins with, is still zero.
        assert_eq!(values(&dst)[0], [0.0; 16], "block {block}");
    }
    rope_and_cache(&compute, &qkv, None, heads, TokenSlots { positions: &[0], slots: &[0] }, &rope, None, &kv)?;
    let inputs =
        AttentionRef { cu_seqlens_q: &[0, 1], context_lens: &[1], block_tables: &[0], block_table_offsets: &[0, 1] };
    attention(&compute, &qkv, heads, &kv, inputs, 1.0, None, &dst)?;
    assert_eq!(values(&dst)[0], [v.clone(), v].concat());
    let outside = TokenSlots { positions: &[0], slots: &[48] };
    assert!(rope_and_cache(&compute, &qkv, None, heads, outside, &rope, None, &kv).is_err());
    assert!(copy_blocks(&compute, &kv, &[(0, 3)]).is_err());
    Ok(())
}

#[test]
fn a_matrix_must_fill_its_range() {
    let bytes: Bytes = Arc::new(vec![0_u8; 10]);
    assert!(matches!(Matrix::new(Format::F16, 1, 4, bytes.clone(), 4..12), Err(MatrixError::Range { len: 10, .. })));
    assert!(matches!(Matrix::new(Format::F16, 1, 4, bytes, 4..10), Err(MatrixError::Shape(_))));
}

/// Blocks of random bits in every format, and what ggml's own Python reader makes of them.
#[test]
fn every_format_is_what_the_reference_reads() -> Result<()> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/quants/quants.safetensors");
    let reference = candle_core::safetensors::load(path, &Device::Cpu)?;
    let floats = |name: &str| reference[name].flatten_all()?.to_vec1::<f32>();
    let compute = Cpu::new(None);
    let known = Format::ALL.into_iter().filter(|format| reference.contains_key(&format!("{format}.raw")));
    let formats: Vec<Format> = known.collect();
    assert_eq!(formats.len(), 13, "every format of GGUF files");
    for format in formats {
        let bytes = reference[&format!("{format}.raw")].flatten_all()?.to_vec1::<u8>()?;
        let range = 0..bytes.len();
        let matrix = Matrix::new(format, 4, 512, Arc::new(bytes), range).expect("the fixture's shape");
        let wanted = floats(&format!("{format}.values"))?;
        for (index, (found, wanted)) in matrix.dequantize().iter().zip(&wanted).enumerate() {
            // A format's products are exact; an offset is added with one rounding, here as there.
            let close = (found - wanted).abs() <= 1e-6 * wanted.abs();
            assert!(close, "{format} at {index}: {found} is not {wanted}");
        }
        let out = Tensor::zeros((3, 4), DType::F32, &Device::Cpu)?;
        linear(&compute, &reference["x"], &[matrix], None, &out)?;
        let (found, wanted) = (out.flatten_all()?.to_vec1::<f32>()?, floats(&format!("{format}.product"))?);
        let scale = wanted.iter().fold(0.0_f32, |max, value| max.max(value.abs()));
        for (found, wanted) in found.iter().zip(&wanted) {
            assert!((found - wanted).abs() <= 1e-5 * scale, "{format}: {found} is not {wanted}");
        }
    }
    Ok(())
}
