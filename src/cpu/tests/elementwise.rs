//! Norms, the gated activation, the exponential function, rotary positions and the way into the cache.

use super::{Random, assert_close, assert_same_bits, cpus, floats};
use crate::config::KvDType;
use crate::cpu::exp::exp_one;
use crate::cpu::simd::{Kernel, Lanes, dispatch};
use crate::cpu::{HeadShape, KvLayerMut, KvLayout, QkNorms, RopeLayout, RopeTable, SimdLevel};

const EPS: f32 = 1e-5;

fn norm(x: &[f32], weight: &[f32]) -> Vec<f64> {
    x.chunks_exact(weight.len())
        .flat_map(|x| {
            let mean = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / x.len() as f64;
            let factor = 1.0 / (mean + f64::from(EPS)).sqrt();
            x.iter().zip(weight).map(|(x, w)| f64::from(*x) * factor * f64::from(*w)).collect::<Vec<_>>()
        })
        .collect()
}

#[test]
fn norms_match_the_reference_alone_and_in_a_batch() {
    let mut random = Random(10);
    for width in [1, 5, 8, 33, 64, 576, 1000] {
        let rows = 40;
        let (x, residual) = (random.floats(rows * width), random.floats(rows * width));
        let weight = random.floats(width);
        let sum: Vec<f32> = residual.iter().zip(&x).map(|(a, b)| a + b).collect();
        for cpu in cpus(3) {
            let what = format!("{} width {width}", cpu.simd());
            let mut whole = vec![0.0; rows * width];
            cpu.rms_norm(&x, &weight, EPS, &mut whole);
            assert_close(&what, &whole, &norm(&x, &weight), 1e-6);
            let mut alone = vec![0.0; width];
            cpu.rms_norm(&x[7 * width..8 * width], &weight, EPS, &mut alone);
            assert_same_bits(&what, &alone, &whole[7 * width..8 * width]);
            let mut added = residual.clone();
            cpu.add_rms_norm(&mut added, &x, &weight, EPS, &mut whole);
            assert_same_bits(&what, &added, &sum);
            assert_close(&what, &whole, &norm(&sum, &weight), 1e-6);
        }
    }
}

#[test]
fn silu_mul_matches_the_reference() {
    let mut random = Random(11);
    for width in [1, 9, 64, 1536] {
        let rows = 21;
        let gate_up: Vec<f32> = random.floats(rows * 2 * width).iter().map(|x| x * 20.0).collect();
        let expected: Vec<f64> = gate_up
            .chunks_exact(2 * width)
            .flat_map(|row| {
                let (gate, up) = row.split_at(width);
                let one =
                    |(gate, up): (&f32, &f32)| f64::from(*gate) / (1.0 + (-f64::from(*gate)).exp()) * f64::from(*up);
                gate.iter().zip(up).map(one).collect::<Vec<_>>()
            })
            .collect();
        for cpu in cpus(2) {
            let mut out = vec![0.0; rows * width];
            cpu.silu_mul(&gate_up, width, &mut out);
            assert_close(&format!("{} width {width}", cpu.simd()), &out, &expected, 1e-6);
            let mut alone = vec![0.0; width];
            cpu.silu_mul(&gate_up[6 * width..8 * width], width, &mut alone);
            assert_same_bits("alone", &alone, &out[3 * width..4 * width]);
        }
    }
}

struct Exp<'a>(&'a [f32], &'a mut Vec<f32>);

impl Kernel for Exp<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        // SAFETY: as the caller's: the machine has the instructions.
        self.1.extend(self.0.iter().map(|&x| unsafe { exp_one::<L>(x) }));
    }
}

#[test]
fn exp_is_within_two_units_in_the_last_place() {
    let inputs: Vec<f32> = (-87_300..=88_000).map(|i| i as f32 / 1000.0).collect();
    for level in SimdLevel::available() {
        let mut out = Vec::new();
        dispatch(level, Exp(&inputs, &mut out));
        for (&x, &found) in inputs.iter().zip(&out) {
            let expected = f64::from(x).exp();
            let unit = f64::from(f32::EPSILON) * 2_f64.powi(expected.log2().floor() as i32);
            assert!((f64::from(found) - expected).abs() <= 2.0 * unit, "{level}: exp({x}) is {found}, not {expected}");
        }
        let mut edges = Vec::new();
        dispatch(level, Exp(&[f32::NEG_INFINITY, -1e30, -200.0, 0.0, 100.0, f32::INFINITY, f32::NAN], &mut edges));
        assert_eq!(edges[..6], [0.0, 0.0, 0.0, 1.0, f32::INFINITY, f32::INFINITY], "{level}");
        assert!(edges[6].is_nan(), "{level}");
    }
}

fn table(layout: RopeLayout, rotary_dim: usize, positions: usize) -> RopeTable {
    let angle = |i: usize| {
        let (position, pair) = (i / (rotary_dim / 2), i % (rotary_dim / 2));
        position as f32 * 10_000_f32.powf(-2.0 * pair as f32 / rotary_dim as f32)
    };
    let angles: Vec<f32> = (0..positions * rotary_dim / 2).map(angle).collect();
    let (cos, sin) = (angles.iter().map(|a| a.cos()).collect(), angles.iter().map(|a| a.sin()).collect());
    RopeTable::new(layout, rotary_dim, cos, sin).expect("tables fit")
}

#[test]
fn new_tokens_are_normed_rotated_and_written_to_their_slots() {
    let mut random = Random(12);
    let heads = HeadShape { q_heads: 6, kv_heads: 2, head_dim: 24 };
    let (d, row) = (heads.head_dim, heads.row_len());
    let layout = KvLayout { kv_heads: 2, head_dim: d, dtype: KvDType::F32, planes: Default::default() };
    for (rope, normed, tokens) in [(RopeLayout::Halves, true, 40), (RopeLayout::Interleaved, false, 5)] {
        let rope = table(rope, 16, 64);
        let qkv = random.floats(tokens * row);
        let (q_norm, k_norm) = (random.floats(d), random.floats(d));
        let norms = normed.then_some(QkNorms { q: &q_norm, k: &k_norm, eps: EPS });
        let positions: Vec<u32> = (0..tokens as u32).map(|t| t * 7 % 64).collect();
        let slots: Vec<u32> = (0..tokens as u32).map(|t| (t * 5 + 3) % 48).collect();
        for cpu in cpus(2) {
            let mut rows = qkv.clone();
            let (mut keys, mut values) = (vec![0; 3 * layout.block_bytes()], vec![0; 3 * layout.block_bytes()]);
            let kv = KvLayerMut { layout, keys: &mut keys, values: &mut values };
            cpu.rope_and_cache(&mut rows, heads, &positions, &slots, &rope, norms, kv);
            let (keys, values) = (floats(&keys), floats(&values));
            for t in 0..tokens {
                for head in 0..8 {
                    let x = &qkv[t * row + head * d..][..d];
                    let x = if normed {
                        norm(x, if head < 6 { &q_norm } else { &k_norm })
                    } else {
                        x.iter().map(|x| f64::from(*x)).collect()
                    };
                    let found = &rows[t * row + head * d..][..d];
                    assert_close("a rotated head", found, &rotated(&x, positions[t], rope.layout()), 1e-5);
                }
                let (block, place) = (slots[t] as usize / 16, slots[t] as usize % 16);
                for head in 0..2 {
                    let start = layout.head_start(block, head) / 4;
                    let k: Vec<f32> = (0..d).map(|i| keys[start + i * 16 + place]).collect();
                    assert_same_bits("k", &k, &rows[t * row + (6 + head) * d..][..d]);
                    assert_same_bits("v", &values[start + place * d..][..d], &qkv[t * row + (8 + head) * d..][..d]);
                }
            }
        }
    }
}

fn rotated(x: &[f64], position: u32, layout: RopeLayout) -> Vec<f64> {
    let mut out = x.to_vec();
    for pair in 0..8 {
        let angle = f64::from(position) * 10_000_f64.powf(-2.0 * pair as f64 / 16.0);
        let (a, b) = match layout {
            RopeLayout::Halves => (pair, pair + 8),
            RopeLayout::Interleaved => (2 * pair, 2 * pair + 1),
        };
        out[a] = x[a] * angle.cos() - x[b] * angle.sin();
        out[b] = x[b] * angle.cos() + x[a] * angle.sin();
    }
    out
}

#[test]
fn copied_blocks_hold_the_same() {
    let layout = KvLayout { kv_heads: 2, head_dim: 8, dtype: KvDType::Int8, planes: Default::default() };
    let len = layout.block_bytes();
    assert_eq!(len, 2 * (8 * 16 + 16 * 4));
    let mut random = Random(13);
    let mut bytes = || (0..4 * len).map(|_| random.next() as u8).collect::<Vec<u8>>();
    let (mut keys, mut values) = (bytes(), bytes());
    let (old_keys, old_values) = (keys.clone(), values.clone());
    for cpu in cpus(1) {
        cpu.copy_blocks(KvLayerMut { layout, keys: &mut keys, values: &mut values }, &[(1, 3)]);
        assert_eq!(keys[3 * len..], old_keys[len..2 * len]);
        assert_eq!(values[3 * len..], old_values[len..2 * len]);
        assert_eq!(keys[..3 * len], old_keys[..3 * len]);
    }
}
