//! Main memory: the most that a process takes while it turns weights into a smaller format is little more than they take
//! afterwards, however large the files are; and a model that has ended leaves none behind.
#![cfg(target_os = "linux")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use lantern::config::{DeviceWish, EngineConfig, WeightFormat};
use lantern::{GenerateRequest, Llm, Prompt};

use crate::real_model::default_model;

/// Where the child finds its model, and which format it turns it into.
const FOLDER: &str = "LANTERN_TEST_MEMORY_FOLDER";
const FORMAT: &str = "LANTERN_TEST_MEMORY_FORMAT";

/// What the process may take besides the weights: program, tokenizer, pieces on their way, buffers of a step, KV cache.
const OTHER_BYTES: u64 = 128 << 20;

const HIDDEN: usize = 1024;
const FFN: usize = 4096;
const LAYERS: usize = 7;
const VOCABULARY: usize = 320;

/// Names and shapes of a small Llama's tensors.
fn tensors() -> Vec<(String, Vec<usize>)> {
    let mut all = vec![
        ("model.embed_tokens.weight".to_owned(), vec![VOCABULARY, HIDDEN]),
        ("lm_head.weight".to_owned(), vec![VOCABULARY, HIDDEN]),
        ("model.norm.weight".to_owned(), vec![HIDDEN]),
    ];
    let square = vec![HIDDEN, HIDDEN];
    for layer in 0..LAYERS {
        let mut add =
            |name: &str, shape: &[usize]| all.push((format!("model.layers.{layer}.{name}.weight"), shape.into()));
        for name in ["q", "k", "v", "o"] {
            add(&format!("self_attn.{name}_proj"), &square);
        }
        add("mlp.gate_proj", &[FFN, HIDDEN]);
        add("mlp.up_proj", &[FFN, HIDDEN]);
        add("mlp.down_proj", &[HIDDEN, FFN]);
        add("input_layernorm", &[HIDDEN]);
        add("post_attention_layernorm", &[HIDDEN]);
    }
    all
}

/// A folder of a model in bf16, and the bytes of its weights.
fn make_folder(folder: &Path) -> u64 {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden/llama2");
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(fixture.join(file), folder.join(file)).expect("a fixture");
    }
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5,
        "hidden_size": HIDDEN, "intermediate_size": FFN, "num_hidden_layers": LAYERS, "num_attention_heads": 16,
        "num_key_value_heads": 16, "head_dim": 64, "vocab_size": VOCABULARY, "max_position_embeddings": 256,
        "rope_theta": 10000.0, "tie_word_embeddings": false, "bos_token_id": 312, "eos_token_id": 314,
    });
    fs::write(folder.join("config.json"), config.to_string()).expect("room on the disk");
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    for (name, shape) in tensors() {
        let (start, elements) = (end, shape.iter().product::<usize>());
        end += 2 * elements;
        let entry = serde_json::json!({ "dtype": "BF16", "shape": shape, "data_offsets": [start, end] });
        header.insert(name, entry);
    }
    let mut head = serde_json::Value::Object(header).to_string();
    head += &" ".repeat(head.len().next_multiple_of(8) - head.len());
    let mut file = (head.len() as u64).to_le_bytes().to_vec();
    file.extend(head.bytes());
    // Numbers of either sign from 2^-7 to 2^-6: any will do.
    file.extend((0..end as u32 / 2).flat_map(|at| {
        let bits = at.wrapping_mul(0x9E37_79B9);
        (0x3C00_u16 | (bits >> 16) as u16 & 0x807F).to_le_bytes()
    }));
    fs::write(folder.join("model.safetensors"), file).expect("room on the disk");
    end as u64
}

/// A number of `/proc/self/status` in bytes.
fn status(name: &str) -> u64 {
    let text = fs::read_to_string("/proc/self/status").expect("a process");
    let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("a line");
    let number = line.trim_start_matches(':').trim().trim_end_matches(" kB");
    number.parse::<u64>().expect("a number") << 10
}

/// Loads the model, and says what it takes and what was taken at most.
fn load(folder: PathBuf, format: &str) {
    let config = EngineConfig {
        device: DeviceWish::Cpu,
        threads: std::num::NonZeroUsize::new(2),
        quantize: Some(format.parse().expect("a format")),
        kv_cache_bytes: Some(8 << 20),
        max_sequences: Some(4),
        max_step_tokens: Some(64),
        ..EngineConfig::default()
    };
    let folder = folder.to_str().expect("text").to_owned();
    let llm = Llm::builder().model(folder).engine_config(config).load_blocking().expect("it loads");
    println!("\nweights {} peak {}", llm.info().weight_bytes, status("VmHWM"));
}

/// The test runs itself as a child, so that nothing else counts.
#[test]
fn quantising_takes_little_more_memory_than_the_smaller_weights() {
    if let (Some(folder), Ok(format)) = (std::env::var_os(FOLDER), std::env::var(FORMAT)) {
        return load(folder.into(), &format);
    }
    let folder = tempfile::tempdir().expect("a folder");
    let stored = make_folder(folder.path());
    assert!(stored > 220 << 20, "{stored}");
    for format in [WeightFormat::Q8_0, WeightFormat::Fp8, WeightFormat::Q4K] {
        let name = format.name();
        let child = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "memory::quantising_takes_little_more_memory_than_the_smaller_weights", "--nocapture"])
            .env(FOLDER, folder.path())
            .env(FORMAT, name)
            .output()
            .expect("it starts");
        let text = String::from_utf8_lossy(&child.stdout);
        assert!(child.status.success(), "{name}: {text}{}", String::from_utf8_lossy(&child.stderr));
        let said = text.lines().find_map(|line| line.strip_prefix("weights ")?.split_once(" peak ")).expect("a line");
        let [weights, peak] = [said.0, said.1].map(|number| number.parse::<u64>().expect("a number"));
        println!("{name}: {stored} bytes in bf16 became {weights}; at most {peak} were taken");
        assert!(weights < stored * 11 / 20, "{name}: {weights} of {stored}");
        assert!(peak > weights, "{name}: {peak} bytes hold {weights}");
        assert!(peak < weights + OTHER_BYTES, "{name}: {peak} bytes for weights of {weights}, of {stored} in the file");
    }
}

/// Says that this is the child that loads and unloads, and how often.
const LOADS: &str = "LANTERN_TEST_MEMORY_LOADS";

/// What a process may have more after many models than after the first two.
const LEFT_BYTES: u64 = 100 << 20;

/// Loads the default model, lets it answer, and ends it.
fn load_and_end() {
    let llm = default_model();
    let prompt = Prompt::Tokens((0..256).map(|at| 1000 + at).collect());
    let generation = llm.generate(GenerateRequest::new(prompt).max_tokens(2)).expect("taken");
    generation.collect_blocking().expect("answered");
    let engine = llm.engine().clone();
    engine.shutdown("unloaded");
    drop(llm);
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(engine.gone());
}

/// Models one after the other, each by a thread of its own that stays, as a server's do: each has a heap then.
fn load_on_threads(loads: usize) {
    let mut threads = Vec::new();
    for _ in 0..loads {
        let (stay, stays) = std::sync::mpsc::channel::<()>();
        let (ended, ends) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            load_and_end();
            ended.send(()).expect("somebody waits");
            stays.recv().expect_err("nothing is sent");
        });
        ends.recv().expect("loaded and ended");
        println!("\nresident {}", status("VmRSS"));
        threads.push((stay, thread));
    }
    for (stay, thread) in threads {
        drop(stay);
        thread.join().expect("no panic");
    }
}

/// The test runs itself as a child, so that nothing else counts.
#[test]
fn a_model_that_has_ended_leaves_no_memory_behind() {
    if let Some(loads) = std::env::var(LOADS).ok().and_then(|loads| loads.parse().ok()) {
        return load_on_threads(loads);
    }
    let child = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "memory::a_model_that_has_ended_leaves_no_memory_behind", "--nocapture"])
        .env(LOADS, "12")
        .output()
        .expect("it starts");
    let text = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success(), "{text}{}", String::from_utf8_lossy(&child.stderr));
    let resident = text.lines().filter_map(|line| line.strip_prefix("resident ")?.parse().ok());
    let resident: Vec<u64> = resident.collect();
    println!("MiB after each model: {:?}", resident.iter().map(|bytes| bytes >> 20).collect::<Vec<_>>());
    let (early, late) = (resident[1], resident[resident.len() - 1]);
    assert!(late < early + LEFT_BYTES, "{early} bytes after the second model, {late} after the last: {resident:?}");
}
