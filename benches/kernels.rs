//! The CPU kernels against what the machine can do: a loop of multiply-adds, and a loop that reads memory.
//!
//! `cargo bench --bench kernels -- [--json] [--threads N] [--simd LEVEL] [--only TEXT]`; fixed seeds, medians with the
//! extremes beside them. The shapes are SmolLM2-135M's (a prompt of 512 tokens, and one token) and one layer of an 8B
//! model. With `--formats` the formats of GGUF files are held against Q4_1 instead, in turns.

#[allow(dead_code, unused_imports)] // what the kernels' room names of the settings
#[path = "../src/config/kv_dtype.rs"]
mod kv_dtype;
mod config {
    pub use super::kv_dtype::KvDType;
}

#[allow(dead_code, unused_imports)] // the kernels' room as it is, without the library around it
#[path = "../src/cpu/mod.rs"]
mod cpu;

#[path = "kernels/formats.rs"] // beside this file it would be a bench of its own
mod formats;

use config::KvDType;
use cpu::{
    AttentionRef, Cpu, Format, HeadShape, KvLayerMut, KvLayerRef, KvLayout, KvPlanes, MatrixRef, RopeLayout, RopeTable,
    SimdLevel,
};
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

/// One line of the table.
struct Line {
    name: String,
    median_us: f64,
    min_us: f64,
    max_us: f64,
    /// In `unit`, at the median.
    rate: f64,
    unit: &'static str,
    /// Of the peak.
    share: f64,
}

struct Bench {
    cpu: Cpu,
    only: Option<String>,
    peak_gflops: f64,
    peak_gbs: f64,
    lines: Vec<Line>,
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let value = |name: &str| arguments.iter().position(|a| a == name).and_then(|i| arguments.get(i + 1)).cloned();
    let threads = value("--threads").and_then(|n| n.parse::<NonZeroUsize>().ok());
    let simd = value("--simd").map_or_else(SimdLevel::detect, |name| {
        let levels = SimdLevel::available();
        levels
            .into_iter()
            .find(|level| level.name().eq_ignore_ascii_case(&name))
            .expect("--simd is a level of this machine")
    });
    let cpu = Cpu::with_simd(threads, simd).expect("the level is available");
    if arguments.iter().any(|argument| argument == "--formats") {
        let entries = formats::measure(&cpu);
        let json = arguments.iter().any(|argument| argument == "--json");
        return if json { formats::print_json(&cpu, &entries) } else { formats::print_table(&cpu, &entries) };
    }
    let mut bench = Bench { cpu, only: value("--only"), peak_gflops: 0.0, peak_gbs: 0.0, lines: Vec::new() };
    bench.measure_peaks();
    bench.matrix_products();
    bench.attention();
    bench.rows();
    if arguments.iter().any(|a| a == "--json") { bench.print_json() } else { bench.print_table() }
}

/// Times of `work`: a warm-up, then runs for about 0.4 s, at least five. Microseconds, sorted.
fn times(mut work: impl FnMut()) -> Vec<f64> {
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(50) {
        work();
    }
    let mut times = Vec::new();
    let start = Instant::now();
    while times.len() < 5 || start.elapsed() < Duration::from_millis(400) {
        let start = Instant::now();
        work();
        times.push(start.elapsed().as_secs_f64() * 1e6);
    }
    times.sort_by(f64::total_cmp);
    times
}

/// SplitMix64 with a fixed seed.
fn random(len: usize) -> Vec<f32> {
    let mut state = 1_u64;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        ((z ^ (z >> 27)) >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// Random bytes of a matrix, from 32 to 63: read as half precision that is 0.008 to 1.9.
fn weights(format: Format, rows: usize, columns: usize) -> Vec<u8> {
    let size = format.row_bytes(columns).expect("whole blocks") * rows;
    let bytes = random(size).into_iter().map(|x| 32 + (x.abs() * 31.9) as u8);
    bytes.collect()
}

impl Bench {
    fn measure_peaks(&mut self) {
        let threads = self.cpu.threads();
        let operations = self.cpu.peak_multiply_adds(threads);
        let best = times(|| {
            std::hint::black_box(self.cpu.peak_multiply_adds(threads));
        })[0];
        self.peak_gflops = operations / best / 1e3;
        let data = random(1 << 26);
        let best = times(|| {
            std::hint::black_box(self.cpu.peak_read(&data));
        })[0];
        self.peak_gbs = (data.len() * 4) as f64 / best / 1e3;
    }

    fn line(&mut self, name: String, amount: f64, unit: &'static str, mut work: impl FnMut(&Cpu)) {
        if self.only.as_ref().is_some_and(|only| !name.contains(only)) {
            return;
        }
        let times = times(|| work(&self.cpu));
        let median_us = times[times.len() / 2];
        let rate = amount / median_us / 1e3;
        let peak = if unit == "GFLOP/s" { self.peak_gflops } else { self.peak_gbs };
        let (min_us, max_us) = (times[0], times[times.len() - 1]);
        self.lines.push(Line { name, median_us, min_us, max_us, rate, unit, share: rate / peak });
    }

    fn matrix_products(&mut self) {
        let layers =
            [("qkv", 960, 576), ("o", 576, 576), ("gate_up", 3072, 576), ("down", 576, 1536), ("8b_up", 14336, 4096)];
        for (name, outputs, columns) in layers {
            for rows in [1, 2, 4, 16, 512] {
                self.product(name, Format::Q4_1, rows, outputs, columns);
            }
        }
        self.product("head", Format::Q8_0, 1, 49152, 576);
        self.product("head", Format::Q4_1, 1, 49152, 576);
        self.product("head", Format::Q4_1, 16, 49152, 576);
        for format in Format::ALL {
            for rows in [1, 16, 512] {
                self.product("square", format, rows, 2048, 2048);
            }
        }
    }

    fn product(&mut self, name: &str, format: Format, rows: usize, outputs: usize, columns: usize) {
        // Enough copies that the weights of one row come from memory, as in a model.
        let bytes = format.row_bytes(columns).expect("whole blocks") * outputs;
        let copies = if rows == 1 { (64_usize << 20).div_ceil(bytes) } else { 1 };
        let data: Vec<u8> = weights(format, outputs, columns).repeat(copies);
        let parts: Vec<MatrixRef<'_>> = data
            .chunks_exact(bytes)
            .map(|data| MatrixRef::new(format, outputs, columns, data).expect("bytes fit"))
            .collect();
        let x = random(rows * columns);
        let mut out = vec![0.0; rows * outputs];
        let (amount, unit) =
            if rows == 1 { (bytes as f64, "GB/s") } else { (2.0 * (rows * outputs * columns) as f64, "GFLOP/s") };
        let mut next = 0;
        self.line(format!("{name} {format} {rows}x{outputs}x{columns}"), amount, unit, |cpu| {
            cpu.matmul(&x, columns, &parts[next..=next], None, &mut out);
            next = (next + 1) % copies;
        });
    }

    fn attention(&mut self) {
        let heads = HeadShape { q_heads: 9, kv_heads: 3, head_dim: 64 };
        for (name, sequences, new, context) in
            [("prompt", 1, 512, 512), ("decode", 1, 1, 512), ("decode", 16, 1, 512), ("decode", 1, 1, 8192)]
        {
            let layout = KvLayout { kv_heads: 3, head_dim: 64, dtype: KvDType::F32, planes: KvPlanes::KeysAndValues };
            let blocks = context / KvLayout::BLOCK_SIZE * sequences;
            let plane = || -> Vec<u8> {
                random(blocks * layout.block_bytes() / 4).iter().flat_map(|value| value.to_le_bytes()).collect()
            };
            let (keys, values) = (plane(), plane());
            let kv = KvLayerRef { layout, keys: &keys, values: &values };
            let qkv = random(sequences * new * heads.row_len());
            let mut out = vec![0.0; sequences * new * heads.q_heads * heads.head_dim];
            let block_tables: Vec<u32> = (0..blocks as u32).collect();
            let steps = |step: usize| (0..=sequences).map(|i| (i * step) as u32).collect::<Vec<_>>();
            let (cu_seqlens_q, offsets) = (steps(new), steps(context / KvLayout::BLOCK_SIZE));
            let context_lens = vec![context as u32; sequences];
            let inputs = AttentionRef {
                cu_seqlens_q: &cu_seqlens_q,
                context_lens: &context_lens,
                block_tables: &block_tables,
                block_table_offsets: &offsets,
            };
            let seen = new * (context - new) + new * (new + 1) / 2;
            let (amount, unit) = if new > 1 {
                ((4 * seen * heads.q_heads * heads.head_dim) as f64, "GFLOP/s")
            } else {
                ((sequences * context * 2 * 3 * 64 * 4) as f64, "GB/s")
            };
            self.line(format!("attention {name} {sequences}x{new} of {context}"), amount, unit, |cpu| {
                cpu.attention(&qkv, heads, kv, inputs, 0.125, None, &mut out);
            });
        }
    }

    fn rows(&mut self) {
        for rows in [1, 16, 512] {
            let bytes = |floats: usize| (rows * floats * 4) as f64;
            let (x, weight) = (random(rows * 576), random(576));
            let (mut residual, mut out) = (x.clone(), x.clone());
            self.line(format!("add_rms_norm {rows}x576"), bytes(4 * 576), "GB/s", |cpu| {
                cpu.add_rms_norm(&mut residual, &x, &weight, 1e-5, &mut out);
            });
            let gate_up = random(rows * 3072);
            let mut out = vec![0.0; rows * 1536];
            self.line(format!("silu_mul {rows}x1536"), bytes(3 * 1536), "GB/s", |cpu| {
                cpu.silu_mul(&gate_up, 1536, &mut out);
            });
            let heads = HeadShape { q_heads: 9, kv_heads: 3, head_dim: 64 };
            let layout = KvLayout { kv_heads: 3, head_dim: 64, dtype: KvDType::F32, planes: KvPlanes::KeysAndValues };
            let (mut keys, mut values) = (vec![0; 32 * layout.block_bytes()], vec![0; 32 * layout.block_bytes()]);
            let rope = RopeTable::new(RopeLayout::Halves, 64, vec![0.6; 32 * 512], vec![0.8; 32 * 512]).expect("fits");
            let mut qkv = random(rows * heads.row_len());
            let numbers: Vec<u32> = (0..rows as u32).collect();
            self.line(format!("rope_and_cache {rows}x960"), bytes(15 * 64 * 2 + 6 * 64), "GB/s", |cpu| {
                let kv = KvLayerMut { layout, keys: &mut keys, values: &mut values };
                cpu.rope_and_cache(&mut qkv, heads, &numbers, &numbers, &rope, None, kv);
            });
        }
    }

    fn print_table(&self) {
        let (threads, simd) = (self.cpu.threads(), self.cpu.simd());
        println!("{threads} threads, {simd}: {:.1} GFLOP/s, {:.1} GB/s read", self.peak_gflops, self.peak_gbs);
        println!("{:<36} {:>10} {:>10} {:>10} {:>9}         {:>7}", "", "median us", "min", "max", "", "of peak");
        for line in &self.lines {
            let Line { name, median_us, min_us, max_us, rate, unit, share } = line;
            let share = share * 100.0;
            println!("{name:<36} {median_us:>10.1} {min_us:>10.1} {max_us:>10.1} {rate:>9.2} {unit:<7} {share:>6.1}%");
        }
    }

    fn print_json(&self) {
        let lines: Vec<String> = self
            .lines
            .iter()
            .map(|line| {
                let Line { name, median_us, min_us, max_us, rate, unit, share } = line;
                format!(
                    "    {{\"name\": \"{name}\", \"median_us\": {median_us:.2}, \"min_us\": {min_us:.2}, \
                     \"max_us\": {max_us:.2}, \"rate\": {rate:.3}, \"unit\": \"{unit}\", \"share_of_peak\": {share:.4}}}"
                )
            })
            .collect();
        println!(
            "{{\n  \"threads\": {}, \"simd\": \"{}\", \"peak_gflops\": {:.2}, \"peak_read_gb_s\": {:.2},\n  \"kernels\": [\n{}\n  ]\n}}",
            self.cpu.threads(),
            self.cpu.simd(),
            self.peak_gflops,
            self.peak_gbs,
            lines.join(",\n")
        );
    }
}
