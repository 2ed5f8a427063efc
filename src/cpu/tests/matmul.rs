//! Matrix products and embeddings in every format.

use super::{Random, assert_close, assert_same_bits, cpus, matrix};
use crate::cpu::{Cpu, CpuError, Format, MatrixRef};

/// The weights of a matrix as the kernels decode them.
fn decoded(cpu: &Cpu, weights: MatrixRef<'_>) -> Vec<f32> {
    let ids: Vec<u32> = (0..weights.rows() as u32).collect();
    let mut out = vec![0.0; weights.rows() * weights.columns()];
    cpu.embed(weights, &ids, &mut out).expect("ids are rows");
    out
}

fn product(cpu: &Cpu, x: &[f32], columns: usize, parts: &[MatrixRef<'_>], bias: Option<&[f32]>) -> Vec<f32> {
    let outputs: usize = parts.iter().map(MatrixRef::rows).sum();
    let mut out = vec![f32::NAN; x.len() / columns * outputs];
    cpu.matmul(x, columns, parts, bias, &mut out);
    out
}

fn reference(x: &[f32], columns: usize, weights: &[f32], bias: Option<&[f32]>) -> Vec<f64> {
    let dot = |x: &[f32], w: &[f32]| x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum::<f64>();
    let rows = x.chunks_exact(columns);
    rows.flat_map(|x| {
        let bias = |n: usize| bias.map_or(0.0, |bias| f64::from(bias[n]));
        weights.chunks_exact(columns).enumerate().map(|(n, w)| dot(x, w) + bias(n)).collect::<Vec<_>>()
    })
    .collect()
}

/// Columns to try: not whole vectors for dense formats, more than a panel for all.
fn columns(format: Format) -> Vec<usize> {
    match format.block_len() {
        1 => vec![1, 7, 31, 33, 64, 100, 1025, 2100],
        32 => vec![32, 96, 576, 1536],
        64 => vec![64, 1088],
        128 => vec![128, 1152],
        _ => vec![256, 1280],
    }
}

#[test]
fn products_match_the_reference_and_do_not_depend_on_the_batch() {
    let mut random = Random(1);
    for format in Format::ALL {
        for columns in columns(format) {
            for (outputs, with_bias) in [(1, false), (3, true), (13, false), (61, true)] {
                let data = random.matrix(format, outputs, columns);
                let weights = matrix(format, outputs, columns, &data);
                let bias = with_bias.then(|| random.floats(outputs));
                let x = random.floats(17 * columns);
                for cpu in cpus(2) {
                    let what = format!("{} {format} {outputs} x {columns}", cpu.simd());
                    let expected = reference(&x, columns, &decoded(&cpu, weights), bias.as_deref());
                    let whole = product(&cpu, &x, columns, &[weights], bias.as_deref());
                    assert_close(&what, &whole, &expected, 2e-6);
                    for rows in 1..=9 {
                        let part = product(&cpu, &x[..rows * columns], columns, &[weights], bias.as_deref());
                        assert_same_bits(&format!("{what}, {rows} rows"), &part, &whole[..rows * outputs]);
                    }
                    let last = product(&cpu, &x[16 * columns..], columns, &[weights], bias.as_deref());
                    assert_same_bits(&format!("{what}, last row"), &last, &whole[16 * outputs..]);
                }
            }
        }
    }
}

#[test]
fn stacked_parts_are_the_parts_side_by_side() {
    let mut random = Random(2);
    let columns = 256;
    let shapes = [(Format::Q4_1, 52), (Format::Q8_0, 5), (Format::Q6K, 49), (Format::F16, 1)];
    let data: Vec<Vec<u8>> = shapes.iter().map(|&(format, rows)| random.matrix(format, rows, columns)).collect();
    let parts: Vec<MatrixRef<'_>> =
        shapes.iter().zip(&data).map(|(&(format, rows), data)| matrix(format, rows, columns, data)).collect();
    for rows in [1, 2, 14] {
        let x = random.floats(rows * columns);
        for cpu in cpus(2) {
            let stacked = product(&cpu, &x, columns, &parts, None);
            let alone: Vec<Vec<f32>> = parts.iter().map(|&part| product(&cpu, &x, columns, &[part], None)).collect();
            let joined: Vec<f32> = (0..rows)
                .flat_map(|t| {
                    alone.iter().zip(&parts).flat_map(move |(out, part)| out[t * part.rows()..][..part.rows()].to_vec())
                })
                .collect();
            assert_same_bits(&format!("{}", cpu.simd()), &stacked, &joined);
        }
    }
}

#[test]
fn products_do_not_depend_on_the_threads() {
    let mut random = Random(3);
    let (columns, outputs) = (1536, 300);
    let data = random.matrix(Format::Q4_1, outputs, columns);
    let weights = matrix(Format::Q4_1, outputs, columns, &data);
    for rows in [1, 3, 150, 300] {
        let x = random.floats(rows * columns);
        let of =
            |threads| cpus(threads).iter().map(|cpu| product(cpu, &x, columns, &[weights], None)).collect::<Vec<_>>();
        let one = of(1);
        for threads in [2, 5] {
            for (one, many) in one.iter().zip(of(threads)) {
                assert_same_bits(&format!("{rows} rows on {threads} threads"), one, &many);
            }
        }
    }
}

#[test]
fn no_rows_give_no_outputs() {
    let data = Random(4).matrix(Format::F32, 3, 8);
    for cpu in cpus(1) {
        assert!(product(&cpu, &[], 8, &[matrix(Format::F32, 3, 8, &data)], None).is_empty());
    }
}

#[test]
fn blocks_decode_as_ggml_defines_them() {
    // One block each, written by hand: scale 0.5 (f16 0x3800), offset -2 (0xc000) where there is one.
    let value = |format: Format, bytes: Vec<u8>, at: usize| {
        let columns = format.block_len();
        cpus(1).iter().map(|cpu| decoded(cpu, matrix(format, 1, columns, &bytes))[at]).collect::<Vec<_>>()
    };
    let same = |found: Vec<f32>, expected: f32| assert!(found.iter().all(|&x| x == expected), "{found:?} {expected}");
    let mut q4_0 = vec![0x00, 0x38];
    q4_0.extend([0xf3; 16]);
    same(value(Format::Q4_0, q4_0.clone(), 0), 0.5 * (3.0 - 8.0));
    same(value(Format::Q4_0, q4_0, 31), 0.5 * (15.0 - 8.0));
    let mut q4_1 = vec![0x00, 0x38, 0x00, 0xc0];
    q4_1.extend([0x2b; 16]);
    same(value(Format::Q4_1, q4_1.clone(), 15), 0.5 * 11.0 - 2.0);
    same(value(Format::Q4_1, q4_1, 16), 0.5 * 2.0 - 2.0);
    let mut q5_0 = vec![0x00, 0x38, 0x02, 0x00, 0x00, 0x80];
    q5_0.extend([0x71; 16]);
    same(value(Format::Q5_0, q5_0.clone(), 0), 0.5 * (1.0 - 16.0));
    same(value(Format::Q5_0, q5_0.clone(), 1), 0.5 * (17.0 - 16.0));
    same(value(Format::Q5_0, q5_0, 31), 0.5 * (23.0 - 16.0));
    let mut q8_0 = vec![0x00, 0x38];
    q8_0.extend([0x80; 32]);
    same(value(Format::Q8_0, q8_0, 7), -64.0);
}

#[test]
fn every_level_decodes_the_same_weights() {
    // What they are is held against ggml's own reader where matrices are made (`ops`), at one level.
    let mut random = Random(7);
    for format in Format::ALL {
        let columns = 3 * format.block_len().max(32);
        let data = random.matrix(format, 5, columns);
        let [portable, others @ ..] = &cpus(1)[..] else { panic!("there is always a level") };
        let expected = decoded(portable, matrix(format, 5, columns, &data));
        for cpu in others {
            let found = decoded(cpu, matrix(format, 5, columns, &data));
            // Products are exact, so that fused or not an offset is added with one rounding. Zeros may differ in sign.
            let same = found.iter().zip(&expected).all(|(found, expected)| found == expected);
            assert!(same, "{} {format}", cpu.simd());
        }
    }
}

/// What a byte means as e4m3fn, by its definition.
fn e4m3(byte: u8) -> f32 {
    let (exponent, fraction) = (i32::from(byte >> 3 & 15), f32::from(byte & 7) / 8.0);
    let magnitude = if exponent == 0 { fraction / 64.0 } else { (1.0 + fraction) * 2.0_f32.powi(exponent - 7) };
    if byte >= 0x80 { -magnitude } else { magnitude }
}

#[test]
fn groups_decode_as_they_are_defined() {
    let mut random = Random(6);
    for format in Format::ALL.into_iter().filter(|format| format.name().contains('x')) {
        let len = format.block_len();
        let data = random.matrix(format, 3, 2 * len);
        let f16 = |at: &[u8]| half::f16::from_le_bytes([at[0], at[1]]).to_f32();
        let expected = data.chunks_exact(format.block_bytes()).flat_map(|block| {
            let (head, body) = block.split_at(4);
            (0..len).map(move |i| {
                let nibble = body[(i / 32 * 16 + i % 16) % body.len()] >> (i / 16 % 2 * 4) & 15;
                match format.name().as_bytes()[3] {
                    b'4' => (f32::from(nibble) - f16(&head[2..])) * f16(head),
                    b'8' if format.name().starts_with("INT") => (f32::from(body[i]) - f16(&head[2..])) * f16(head),
                    _ => e4m3(body[i]) * f32::from_le_bytes([head[0], head[1], head[2], head[3]]),
                }
            })
        });
        let expected: Vec<f32> = expected.collect();
        for cpu in cpus(1) {
            let found = decoded(&cpu, matrix(format, 3, 2 * len, &data));
            let same = found.iter().zip(&expected).all(|(found, expected)| found == expected);
            assert!(same, "{} {format}: {found:?} is not {expected:?}", cpu.simd());
        }
    }
}

#[test]
fn every_float_of_8_bits_is_what_it_means() {
    for half in [0_u8, 128] {
        let data: Vec<u8> = 1.0_f32.to_le_bytes().into_iter().chain((0..128).map(|low| half + low)).collect();
        for cpu in cpus(1) {
            let found = decoded(&cpu, matrix(Format::Fp8x128, 1, 128, &data));
            // The last of each half is no number, and is refused where weights are read.
            for low in 0..127 {
                let expected = e4m3(half + low);
                assert_eq!(found[usize::from(low)].to_bits(), expected.to_bits(), "{}: {low}", cpu.simd());
            }
        }
    }
    assert_eq!((e4m3(0x7e), e4m3(0x01), e4m3(0x38)), (448.0, 1.0 / 512.0, 1.0));
}

#[test]
fn an_id_without_a_row_is_an_error() {
    let data = Random(5).matrix(Format::F16, 4, 8);
    for cpu in cpus(1) {
        let mut out = [0.0; 16];
        let error = cpu.embed(matrix(Format::F16, 4, 8, &data), &[3, 4], &mut out);
        assert_eq!(error, Err(CpuError::TokenId { id: 4, rows: 4 }));
    }
}

#[test]
fn bytes_that_do_not_fit_are_refused() {
    assert!(matches!(MatrixRef::new(Format::Q4_0, 2, 33, &[]), Err(CpuError::MatrixShape { .. })));
    assert!(matches!(MatrixRef::new(Format::Q4K, usize::MAX, 256, &[]), Err(CpuError::MatrixShape { .. })));
    assert!(matches!(MatrixRef::new(Format::F32, 2, 2, &[0; 15]), Err(CpuError::MatrixBytes { expected: 16, .. })));
}
