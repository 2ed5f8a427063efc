//! What was measured, as a table and as JSON.
//!
//! Measures nothing.

use serde::Serialize;

use super::floor::Floor;
use crate::cli::table::{Align, Table};
use crate::config::ByteSize;
use crate::device::{Ceilings, Device, Hardware};
use crate::llm::Llm;

/// Median, least and most of some measurements.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Spread {
    /// The middle one; of an even number, the mean of the two in the middle.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The most.
    pub max: f64,
}

impl Spread {
    /// The spread of at least one value; zeros for none.
    pub fn of(values: &[f64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (Some(min), Some(max)) = (sorted.first(), sorted.last()) else {
            return Self { median: 0.0, min: 0.0, max: 0.0 };
        };
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 };
        Self { median, min: *min, max: *max }
    }
}

/// One measured figure.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// `pp512` or `tg64`: what is computed and how many tokens of it.
    pub name: String,
    /// Sequences at once.
    pub sequences: u32,
    /// Tokens of all sequences together.
    pub tokens_per_second: Spread,
    /// Share of the engine's steps that is not the model's forward pass.
    pub outside_model_percent: Option<f64>,
}

/// One figure of the workload that servers are compared by.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ServingRow {
    /// What is asked: `512+256` is a prompt of 512 tokens and an answer of 256.
    pub name: String,
    /// Requests at once.
    pub sequences: u32,
    /// Tokens of all requests over wall time: of answers, or of prompts where one token is asked for.
    pub tokens_per_second: Spread,
    /// Milliseconds to a request's first token: the median of each run's median.
    pub first_token_ms: f64,
    /// Milliseconds between the tokens of a request: median, 99th percentile, most.
    pub gap_ms: [f64; 3],
    /// Microseconds of a step in which the GPU was not waited for.
    pub host_us_per_step: f64,
    /// Share of the fastest that the machine could be, where that is known.
    pub percent_of_floor: Option<f64>,
    /// Whether the time of prompts is in that floor: without it the share is so much at least.
    pub floor_has_prompts: bool,
    #[serde(skip)]
    pub(super) floor: Option<Floor>,
    #[serde(skip)]
    pub(super) rates: Vec<f64>,
    #[serde(skip)]
    pub(super) first: Vec<f64>,
    #[serde(skip)]
    pub(super) gaps: Vec<f64>,
}

/// All of it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    lantern: &'static str,
    machine: Machine,
    model: Model,
    results: Vec<Row>,
    serving: Vec<ServingRow>,
    /// How the requests of `serving` came.
    over: &'static str,
    /// What floors are worked out from, where it is known.
    ceilings: Ceilings,
    /// Seconds from the first look at the model to its being ready.
    start_seconds: f64,
    /// Whether the GPU's driver ran before that, to measure the card.
    driver_was_started: bool,
    memory: Option<MemoryUse>,
}

#[derive(Clone, Debug, Serialize)]
struct Machine {
    processor: Option<String>,
    cores: usize,
    simd: Vec<&'static str>,
    memory_bytes: Option<u64>,
}

#[derive(Clone, Debug, Serialize)]
struct Model {
    name: String,
    format: String,
    parameters: u64,
    device: String,
    device_reason: String,
    on_gpu: bool,
    weight_bytes: u64,
    kv_bytes: u64,
}

#[derive(Clone, Debug, Serialize)]
struct MemoryUse {
    resident_bytes: u64,
    resident_peak_bytes: u64,
    /// What the peak holds besides weights and the KV cache; negative where they are not all touched. `None` where both
    /// are on a GPU.
    beyond_weights_and_kv_bytes: Option<i64>,
}

impl Report {
    /// A report of these rows; `resident` is memory now and at most, in bytes.
    pub fn new(llm: &Llm, hardware: &Hardware, measured: Measured, resident: Option<(u64, u64)>) -> Self {
        let info = llm.info();
        let planned = info.weight_bytes.saturating_add(info.kv_bytes);
        let on_gpu = info.runs_on != Device::Cpu;
        Self {
            lantern: env!("CARGO_PKG_VERSION"),
            machine: Machine {
                processor: hardware.processor.clone(),
                cores: hardware.cores,
                simd: hardware.simd.clone(),
                memory_bytes: hardware.memory.map(|memory| memory.total_bytes),
            },
            model: Model {
                name: info.name.clone(),
                format: info.format.clone(),
                parameters: info.parameters,
                device: info.device.clone(),
                device_reason: info.device_reason.clone(),
                on_gpu,
                weight_bytes: info.weight_bytes,
                kv_bytes: info.kv_bytes,
            },
            results: measured.results,
            serving: measured.serving,
            over: measured.over,
            ceilings: measured.ceilings,
            start_seconds: measured.start_seconds,
            driver_was_started: measured.driver_was_started,
            memory: resident.map(|(now, peak)| MemoryUse {
                resident_bytes: now,
                resident_peak_bytes: peak,
                beyond_weights_and_kv_bytes: (!on_gpu).then_some(peak as i64 - planned as i64),
            }),
        }
    }

    /// The report as indented JSON.
    ///
    /// # Panics
    /// Never: it is plain data with text for keys.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("plain data") + "\n"
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{}, {}", self.model.name, self.model.format)?;
        if self.model.on_gpu {
            writeln!(f, "{}", self.model.device)?;
        } else {
            let processor = self.machine.processor.as_deref().unwrap_or("unknown processor");
            writeln!(f, "{}, {processor}", self.model.device)?;
        }
        writeln!(f, "because {}", self.model.device_reason)?;
        let warm = if self.driver_was_started { ", on a driver that was started before" } else { "" };
        writeln!(f, "ready after {:.1} s{warm}\n", self.start_seconds)?;
        if !self.results.is_empty() {
            write!(f, "{}", results_table(&self.results))?;
        }
        if !self.serving.is_empty() {
            writeln!(f, "requests {}", self.over)?;
            write!(f, "{}", floor_line(&self.ceilings))?;
            write!(f, "{}", serving_table(&self.serving))?;
        }
        if let Some(memory) = &self.memory {
            let size = |bytes| ByteSize(bytes).to_string();
            let (weights, kv) = (size(self.model.weight_bytes), size(self.model.kv_bytes));
            let peak = size(memory.resident_peak_bytes);
            if self.model.on_gpu {
                writeln!(f, "\nresident memory at most {peak}; weights of {weights} on the GPU")?;
            } else {
                writeln!(f, "\nresident memory at most {peak}; weights {weights}, KV cache {kv} as it is used")?;
            }
        }
        Ok(())
    }
}

/// What was measured.
pub struct Measured {
    /// Prompts and answers by themselves.
    pub results: Vec<Row>,
    /// Requests as servers get them.
    pub serving: Vec<ServingRow>,
    /// How those came: `in process` or `over HTTP`.
    pub over: &'static str,
    /// What floors are worked out from, where it is known.
    pub ceilings: Ceilings,
    /// Seconds from the first look at the model to its being ready.
    pub start_seconds: f64,
    /// Whether the GPU's driver ran before that, to measure the card.
    pub driver_was_started: bool,
}

/// What the floors are worked out from.
fn floor_line(ceilings: &Ceilings) -> String {
    let copies = ceilings.copy_bytes_per_second.map(|rate| format!("copies of {:.0} GB/s", rate / 1e9));
    let products = ceilings.flops_per_second.map(|rate| format!("matrix products of {:.0} TFLOP/s", rate / 1e12));
    match (copies, products) {
        (Some(copies), Some(products)) => format!("floors from {copies} and {products}\n"),
        (Some(copies), None) => format!("floors from {copies} alone, so that answers reach more of the true one\n"),
        (None, Some(products)) => format!("floors from {products}, of prompts alone\n"),
        (None, None) => String::new(),
    }
}

fn serving_table(rows: &[ServingRow]) -> Table<11> {
    let mut table = Table::new([
        ("REQUESTS", Align::Left),
        ("AT ONCE", Align::Right),
        ("TOKENS/S", Align::Right),
        ("MIN", Align::Right),
        ("MAX", Align::Right),
        ("TTFT MS", Align::Right),
        ("ITL P50", Align::Right),
        ("P99", Align::Right),
        ("MAX MS", Align::Right),
        ("HOST US/STEP", Align::Right),
        ("OF FLOOR", Align::Right),
    ]);
    for row in rows {
        let Spread { median, min, max } = row.tokens_per_second;
        let [p50, p99, most] = row.gap_ms.map(|gap| format!("{gap:.2}"));
        table.push([
            row.name.clone(),
            row.sequences.to_string(),
            format!("{median:.1}"),
            format!("{min:.1}"),
            format!("{max:.1}"),
            format!("{:.1}", row.first_token_ms),
            p50,
            p99,
            most,
            format!("{:.0}", row.host_us_per_step),
            match row.percent_of_floor {
                None => "?".to_owned(),
                Some(percent) if row.floor_has_prompts => format!("{percent:.0} %"),
                Some(percent) => format!(">{percent:.0} %"),
            },
        ]);
    }
    table
}

fn results_table(rows: &[Row]) -> Table<6> {
    let mut table = Table::new([
        ("TEST", Align::Left),
        ("SEQUENCES", Align::Right),
        ("TOKENS/S", Align::Right),
        ("MIN", Align::Right),
        ("MAX", Align::Right),
        ("OUTSIDE MODEL", Align::Right),
    ]);
    for row in rows {
        let Spread { median, min, max } = row.tokens_per_second;
        table.push([
            row.name.clone(),
            row.sequences.to_string(),
            format!("{median:.1}"),
            format!("{min:.1}"),
            format!("{max:.1}"),
            row.outside_model_percent.map_or_else(|| "?".to_owned(), |percent| format!("{percent:.1} %")),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(Spread::of(&[3.0, 1.0, 2.0]), Spread { median: 2.0, min: 1.0, max: 3.0 });
        assert_eq!(Spread::of(&[4.0, 1.0, 2.0, 3.0]).median, 2.5);
        assert_eq!(Spread::of(&[7.0]), Spread { median: 7.0, min: 7.0, max: 7.0 });
    }

    #[test]
    fn a_floor_without_prompts_is_told_as_one() {
        let row = |percent_of_floor, floor_has_prompts| ServingRow {
            name: "512+256".into(),
            percent_of_floor,
            floor_has_prompts,
            ..ServingRow::default()
        };
        let table = serving_table(&[row(Some(74.6), true), row(Some(74.6), false), row(None, false)]).to_string();
        let ends: Vec<&str> = table.lines().skip(1).map(|line| &line[line.len() - 6..]).collect();
        assert_eq!(ends, ["  75 %", " >75 %", "     ?"]);
        let ceilings = Ceilings { copy_bytes_per_second: Some(2979e9), flops_per_second: None };
        assert!(floor_line(&ceilings).starts_with("floors from copies of 2979 GB/s alone"));
        assert_eq!(floor_line(&Ceilings::default()), "");
    }

    #[test]
    fn results_line_up() {
        let spread = Spread { median: 1234.56, min: 1200.0, max: 1300.0 };
        let rows = [
            Row { name: "pp512".into(), sequences: 1, tokens_per_second: spread, outside_model_percent: Some(1.25) },
            Row { name: "tg64".into(), sequences: 16, tokens_per_second: spread, outside_model_percent: None },
        ];
        let expected = "TEST   SEQUENCES  TOKENS/S     MIN     MAX  OUTSIDE MODEL\n\
                        pp512          1    1234.6  1200.0  1300.0          1.2 %\n\
                        tg64          16    1234.6  1200.0  1300.0              ?\n";
        assert_eq!(results_table(&rows).to_string(), expected);
    }
}
