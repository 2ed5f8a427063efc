//! Lantern beside candle-transformers' own Llama on the default model: the same file, the same threads, in turn.
//!
//! `cargo bench --bench peer`. Random ids with a fixed seed, greedy, end tokens ignored; medians of five after a
//! warm-up. The model must have been fetched: `lantern pull smollm2:135m`.

use std::time::Instant;

use candle_core::quantized::gguf_file;
use candle_core::{Device, Tensor};
use candle_transformers::models::quantized_llama::ModelWeights;
use lantern::config::{HubConfig, environment};
use lantern::hub::{self, Catalog, HubOptions, ModelName, Store};
use lantern::{DEFAULT_MODEL, GenerateRequest, Llm, Prompt};

const RUNS: usize = 5;
const PROMPT: u32 = 512;
const GENERATE: u32 = 64;

fn main() -> anyhow::Result<()> {
    let name = ModelName::parse(DEFAULT_MODEL, &Catalog::embedded())?;
    let options = HubOptions { offline: true, ..HubOptions::from_lookup(environment) };
    let file = hub::resolve(&name, &Store::open(HubConfig::from_environment(&environment)?.models_dir)?, &options)?;
    let llm = Llm::builder().model(file.kind.path().to_string_lossy()).load_blocking()?;
    let mut reader = std::fs::File::open(file.kind.path())?;
    let content = gguf_file::Content::read(&mut reader)?;
    let mut peer = ModelWeights::from_gguf(content, &mut reader, &Device::Cpu)?;

    let (mut ours, mut theirs) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    for run in 0..=RUNS as u32 {
        let figures = [lantern(&llm, run, PROMPT, 1)?, lantern(&llm, run, 1, GENERATE + 1)?];
        let peers = [candle(&mut peer, run, PROMPT, 1)?, candle(&mut peer, run, 1, GENERATE + 1)?];
        if run > 0 {
            (0..2).for_each(|test| ours[test].push(figures[test]));
            (0..2).for_each(|test| theirs[test].push(peers[test]));
        }
    }
    println!("{}, {}", llm.info().name, llm.info().device);
    println!("{:<6} {:>10} {:>20} {:>7}", "TEST", "LANTERN", "CANDLE-TRANSFORMERS", "RATIO");
    for (test, name) in [format!("pp{PROMPT}"), format!("tg{GENERATE}")].iter().enumerate() {
        let (ours, theirs) = (median(&mut ours[test]), median(&mut theirs[test]));
        println!("{name:<6} {ours:>10.1} {theirs:>20.1} {:>7.2}", ours / theirs);
    }
    Ok(())
}

fn ids(seed: u32, count: u32) -> Vec<u32> {
    (0..count).map(|i| (i.wrapping_mul(7919) ^ seed.wrapping_mul(104_729)) % 49_000).collect()
}

/// Tokens a second: the prompt's where one token is generated, else those after the first.
fn rate(prompt: u32, generate: u32, seconds: f64) -> f64 {
    f64::from(if generate == 1 { prompt } else { generate - 1 }) / seconds
}

fn lantern(llm: &Llm, seed: u32, prompt: u32, generate: u32) -> anyhow::Result<f64> {
    let mut request = GenerateRequest::new(Prompt::Tokens(ids(seed, prompt))).max_tokens(generate).temperature(0.0);
    request.ignore_eos = true;
    let started = Instant::now();
    llm.generate(request)?.collect_blocking()?;
    Ok(rate(prompt, generate, started.elapsed().as_secs_f64()))
}

fn candle(model: &mut ModelWeights, seed: u32, prompt: u32, generate: u32) -> anyhow::Result<f64> {
    model.clear_kv_cache();
    let started = Instant::now();
    let (mut input, mut position) = (ids(seed, prompt), 0);
    for _ in 0..generate {
        let logits = model.forward(&Tensor::new(input.as_slice(), &Device::Cpu)?.unsqueeze(0)?, position)?;
        position += input.len();
        input = vec![logits.squeeze(0)?.argmax(0)?.to_scalar()?];
    }
    Ok(rate(prompt, generate, started.elapsed().as_secs_f64()))
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
