//! What `serve` prints when it is ready: a pure function from facts to text.
//!
//! Knows no terminal and no machine.

use serde_json::json;

use crate::config::{Address, ByteSize};
use crate::llm::ModelInfo;

/// The facts.
#[derive(Clone, Debug)]
pub struct Startup<'a> {
    /// What is loaded; at least one.
    pub models: &'a [&'a ModelInfo],
    /// Where the server listens.
    pub address: &'a Address,
    /// Name of the largest model of the catalog that would run in the same place, if it is another, and where:
    /// `in memory` or `on the GPU`.
    pub largest: Option<(String, &'static str)>,
}

impl std::fmt::Display for Startup<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "Lantern {} is ready.", env!("CARGO_PKG_VERSION"))?;
        let mut told = None;
        for model in self.models {
            let parameters = count(model.parameters);
            let size = ByteSize(model.weight_bytes);
            writeln!(f, "  model    {} ({parameters} parameters, {}, {size})", model.name, model.format)?;
            // Of several on one device it is said once.
            if told.replace((&model.device, &model.device_reason)) != Some((&model.device, &model.device_reason)) {
                writeln!(f, "  device   {}", model.device)?;
                writeln!(f, "           because {}", model.device_reason)?;
            }
            if let Some(offload) = &model.offload {
                writeln!(f, "  layers   {offload}")?;
                writeln!(f, "           (--gpu-layers sets how many; --no-offload refuses what does not fit the GPU)")?;
            }
            writeln!(f, "  room     {}", room(model))?;
        }
        if let Some((largest, place)) = &self.largest {
            writeln!(f, "  largest  {largest} would fit {place}, too: lantern serve {largest}")?;
        }
        writeln!(f, "  address  http://{}{}", self.address.to_connect(), reach(self.address))?;
        let Some(first) = self.models.first() else { return Ok(()) };
        writeln!(f, "\nAsk it something:\n{}", curl(&self.address.to_connect(), &first.name))
    }
}

/// How many users with how much context.
fn room(model: &ModelInfo) -> String {
    let users = if model.full_contexts == 1 { "user" } else { "users" };
    let kv = ByteSize(model.kv_bytes);
    format!("{} {users} with {} tokens of context each ({kv} of KV cache)", model.full_contexts, model.context_length)
}

fn reach(address: &Address) -> &'static str {
    if address.is_loopback() {
        " (this machine only; --host 0.0.0.0 opens it)"
    } else {
        " (and from the network: anyone who reaches it may use it)"
    }
}

/// A chat that works when pasted into a POSIX shell.
fn curl(address: &Address, model: &str) -> String {
    let body = json!({ "model": model, "messages": [{ "role": "user", "content": "Hello!" }] });
    let body = body.to_string().replace('\'', r"'\''");
    format!("curl http://{address}/v1/chat/completions \\\n  -H 'Content-Type: application/json' \\\n  -d '{body}'")
}

/// A number of parameters as people say it: `135 million`, `8.03 billion`.
pub fn count(parameters: u64) -> String {
    let value = parameters as f64;
    match parameters {
        0..1_000_000 => parameters.to_string(),
        1_000_000..1_000_000_000 => format!("{:.0} million", value / 1e6),
        _ => format!("{:.2} billion", value / 1e9),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::cli) fn model() -> ModelInfo {
        ModelInfo {
            name: "smollm2:135m".into(),
            architecture: "llama".into(),
            parameters: 134_515_008,
            format: "Q4_1".into(),
            weight_bytes: 98_000_000,
            embedding_length: 576,
            context_length: 8192,
            device: "CPU, 2 threads, AVX2".into(),
            runs_on: crate::device::Device::Cpu,
            token_cost: Default::default(),
            device_reason: "this build has no CUDA, and no NVIDIA GPU was seen".into(),
            kv_bytes: 1_509_949_440,
            full_contexts: 8,
            kv_tokens: 65_536,
            kv_dtype: "f32".into(),
            planned_bytes: 2_000_000_000,
            used_bytes: None,
            offload: None,
            loaded_at_unix_s: 0,
        }
    }

    #[test]
    fn everything_that_a_person_wants_to_know_is_there() {
        let model = model();
        let address = Address::default();
        let startup =
            Startup { models: &[&model], address: &address, largest: Some(("qwen3:8b".to_owned(), "in memory")) };
        let expected = format!(
            r#"Lantern {} is ready.
  model    smollm2:135m (135 million parameters, Q4_1, 98.0 MB)
  device   CPU, 2 threads, AVX2
           because this build has no CUDA, and no NVIDIA GPU was seen
  room     8 users with 8192 tokens of context each (1.51 GB of KV cache)
  largest  qwen3:8b would fit in memory, too: lantern serve qwen3:8b
  address  http://127.0.0.1:11434 (this machine only; --host 0.0.0.0 opens it)

Ask it something:
curl http://127.0.0.1:11434/v1/chat/completions \
  -H 'Content-Type: application/json' \
  -d '{{"model":"smollm2:135m","messages":[{{"role":"user","content":"Hello!"}}]}}'
"#,
            env!("CARGO_PKG_VERSION")
        );
        assert_eq!(startup.to_string(), expected);
    }

    #[test]
    fn an_open_server_says_so_and_its_curl_line_still_works_here() {
        let model = ModelInfo { name: "it's".into(), full_contexts: 1, ..model() };
        let address = Address { host: "0.0.0.0".into(), port: 80 };
        let text = Startup { models: &[&model], address: &address, largest: None }.to_string();
        assert!(text.contains("  room     1 user with 8192 tokens"), "{text}");
        assert!(
            text.contains("http://127.0.0.1:80 (and from the network: anyone who reaches it may use it)"),
            "{text}"
        );
        assert!(text.contains(r#"-d '{"model":"it'\''s","#), "{text}");
        assert!(!text.contains("largest"), "{text}");
    }

    #[test]
    fn why_no_gpu_serves_is_said_once_and_again_only_for_another_device() {
        let on_gpu = ModelInfo { device: "a card (cuda:0)".into(), ..model() };
        let count = |models: &[&ModelInfo]| {
            let text = Startup { models, address: &Address::default(), largest: None }.to_string();
            text.matches("because ").count()
        };
        assert_eq!(count(&[&model(), &model(), &model()]), 1);
        assert_eq!(count(&[&on_gpu, &model(), &model()]), 2);
    }

    #[test]
    fn layers_on_the_cpu_are_said_loudly() {
        let offload = crate::engine::Offload {
            gpu_layers: 20,
            cpu_layers: 12,
            cpu_bytes: 5_000_000_000,
            cpu_weight_bytes: 4_500_000_000,
            cpu_token_bytes: 4_000_000_000,
            gpu_token_bytes: 8_000_000_000,
            cpu_bytes_per_second: Some(40e9),
            gpu_bytes_per_second: Some(800e9),
        };
        let model = ModelInfo { offload: Some(offload), ..model() };
        let address = Address::default();
        let text = Startup { models: &[&model], address: &address, largest: None }.to_string();
        let expected = "
  layers   20 of 32 on the GPU, 12 on the CPU in 5.00 GB of main memory: slower, at most 9.1 tokens a second for one user
           (--gpu-layers sets how many; --no-offload refuses what does not fit the GPU)
  room ";
        assert!(text.contains(expected), "{text}");
    }

    #[test]
    fn parameters_are_counted_as_people_do() {
        let cases = [(999, "999"), (134_515_008, "135 million"), (8_030_000_000, "8.03 billion")];
        for (parameters, expected) in cases {
            assert_eq!(count(parameters), expected);
        }
    }
}
