//! Formats against [`BASE`], in turns: GB of weights a second at one row, products a second at many.
//!
//! Each round measures every format once, by the middle of some products, and a ratio is taken within its round: what slows
//! the machine for a while slows both sides of it.

use super::cpu::{Cpu, Format, MatrixRef};
use super::{random, weights};
use std::time::{Duration, Instant};

/// What the others are held against.
const BASE: Format = Format::Q4_1;

/// Outputs and inputs of the matrix: whole blocks of every format.
const SIDE: usize = 2048;

/// How often each format has its turn, and how long that is: at least some products, so that there is a middle one.
const ROUNDS: usize = 15;
const TURN: Duration = Duration::from_millis(30);
const PRODUCTS: usize = 3;

/// Copies of the matrix are more than most processors' caches, so that one row reads weights from memory as a model does.
const BYTES: usize = 64 << 20;

/// Rows of activations: a decoded token, a batch, a prompt.
const ROWS: [usize; 3] = [1, 16, 512];

/// One format's matrix, and its rates in the rounds of each of [`ROWS`].
pub struct Entry {
    format: Format,
    bytes: usize,
    data: Vec<u8>,
    rates: [Vec<f64>; ROWS.len()],
}

/// A middle and what lies around it.
struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

impl Spread {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        Self { median: values[values.len() / 2], min: values[0], max: values[values.len() - 1] }
    }
}

/// Every format of GGUF files, [`BASE`] first.
pub fn measure(cpu: &Cpu) -> Vec<Entry> {
    let mut formats: Vec<Format> = Format::ALL.into_iter().filter(|f| f.name().starts_with('Q')).collect();
    formats.sort_by_key(|&format| format != BASE);
    let mut entries: Vec<Entry> = formats.into_iter().map(Entry::new).collect();
    for (index, rows) in ROWS.into_iter().enumerate() {
        let x = random(rows * SIDE);
        let mut out = vec![0.0; rows * SIDE];
        for _ in 0..ROUNDS {
            for entry in &mut entries {
                let rate = entry.turn(cpu, rows, &x, &mut out);
                entry.rates[index].push(rate);
            }
        }
    }
    entries
}

impl Entry {
    fn new(format: Format) -> Self {
        let bytes = format.row_bytes(SIDE).expect("whole blocks") * SIDE;
        let data = weights(format, SIDE, SIDE).repeat(BYTES.div_ceil(bytes));
        Self { format, bytes, data, rates: std::array::from_fn(|_| Vec::new()) }
    }

    /// The rate of the middle product of a turn: GB of weights a second at one row, GFLOP/s at more.
    fn turn(&self, cpu: &Cpu, rows: usize, x: &[f32], out: &mut [f32]) -> f64 {
        let (mut times, turn) = (Vec::new(), Instant::now());
        // One copy after the other, none twice in a row.
        for data in self.data.chunks_exact(self.bytes).cycle() {
            let part = MatrixRef::new(self.format, SIDE, SIDE, data).expect("bytes fit");
            let start = Instant::now();
            cpu.matmul(x, SIDE, &[part], None, out);
            times.push(start.elapsed().as_secs_f64());
            if times.len() >= PRODUCTS && turn.elapsed() >= TURN {
                break;
            }
        }
        let amount = if rows == 1 { self.bytes } else { 2 * rows * SIDE * SIDE };
        amount as f64 / Spread::of(times.into_iter()).median / 1e9
    }

    /// Its rates at `ROWS[index]`, and what they are of those of `base`.
    fn spreads(&self, index: usize, base: &Self) -> (Spread, Spread) {
        let ratios = self.rates[index].iter().zip(&base.rates[index]).map(|(rate, base)| rate / base);
        (Spread::of(self.rates[index].iter().copied()), Spread::of(ratios))
    }
}

fn unit(rows: usize) -> &'static str {
    if rows == 1 { "GB/s" } else { "GFLOP/s" }
}

pub fn print_table(cpu: &Cpu, entries: &[Entry]) {
    let (threads, simd) = (cpu.threads(), cpu.simd());
    println!("{threads} threads, {simd}, weights {SIDE}x{SIDE}; of {ROUNDS} rounds in turns the median (min to max)");
    for (index, rows) in ROWS.into_iter().enumerate() {
        println!("\n{rows:>4} rows {:>9} {:>24} {:>13}", unit(rows), "", format!("of {BASE}'s"));
        for entry in entries {
            let (rate, ratio) = entry.spreads(index, &entries[0]);
            let Spread { median, min, max } = rate;
            print!("{:<9} {median:>9.2} ({min:>8.2} to {max:>8.2})", entry.format.name());
            let Spread { median, min, max } = ratio;
            println!(" {median:>12.2} ({min:>5.2} to {max:>5.2})");
        }
    }
}

pub fn print_json(cpu: &Cpu, entries: &[Entry]) {
    let lines = ROWS.into_iter().enumerate().flat_map(|(index, rows)| {
        entries.iter().map(move |entry| {
            let (rate, ratio) = entry.spreads(index, &entries[0]);
            let (format, unit) = (entry.format, unit(rows));
            let part = |Spread { median, min, max }: Spread| {
                format!("{{\"median\": {median:.3}, \"min\": {min:.3}, \"max\": {max:.3}}}")
            };
            let (rate, ratio) = (part(rate), part(ratio));
            format!(
                "    {{\"rows\": {rows}, \"format\": \"{format}\", \"unit\": \"{unit}\", \"rate\": {rate}, \"of_base\": {ratio}}}"
            )
        })
    });
    println!(
        "{{\n  \"threads\": {}, \"simd\": \"{}\", \"base\": \"{BASE}\",\n  \"formats\": [\n{}\n  ]\n}}",
        cpu.threads(),
        cpu.simd(),
        lines.collect::<Vec<_>>().join(",\n")
    );
}
