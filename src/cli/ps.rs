//! `lantern ps`: what the running server does right now.
//!
//! Knows the server by `/health` and `/metrics` alone.

use serde_json::Value;

use super::client::Client;
use super::flags::AddressFlags;
use super::table::{Align, Table};
use super::{CliError, Session};
use crate::config::Settings;

/// Arguments of `lantern ps`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  lantern ps\n  lantern ps --host 192.168.1.20:11434")]
pub struct PsArgs {
    #[command(flatten)]
    address: AddressFlags,
}

/// Prints the server's models, their load and their devices.
///
/// # Errors
/// [`CliError`]: no server answers where it was looked for.
pub fn run(args: PsArgs, session: &Session) -> Result<(), CliError> {
    let config = session.resolve(args.address.fill(Settings::default()))?;
    let client = Client::new(&config.server.address);
    let health = client.get_json("/health").map_err(|error| {
        CliError::Refused(format!("no server runs where I looked: {error}; start one with `lantern serve`"))
    })?;
    let (_, metrics) = client.get("/metrics")?;
    session.print(&describe(&health, &metrics))
}

/// The server in a few lines: a row for each model that is loaded.
fn describe(health: &Value, metrics: &str) -> String {
    if health["model"].is_null() && health["status"] == "ok" {
        return "no model is loaded; each is loaded when a request names it (`lantern list` lists them)\n".to_owned();
    }
    let text = |value: &Value| value.as_str().unwrap_or("unknown").to_owned();
    let number = |value: &Value| value.as_u64().map_or_else(|| "?".to_owned(), |number| number.to_string());
    let further = health["further_models"].as_array().map_or(&[][..], Vec::as_slice);
    let models: Vec<&Value> = std::iter::once(health).chain(further).collect();
    let mut table = Table::new([
        ("MODEL", Align::Left),
        ("STATUS", Align::Left),
        ("CONTEXT", Align::Right),
        ("RUNNING", Align::Right),
        ("WAITING", Align::Right),
        ("KV USED", Align::Right),
    ]);
    for model in &models {
        let used = gauge(metrics, "vllm:kv_cache_usage_perc", model["model"].as_str().unwrap_or_default());
        table.push([
            text(&model["model"]),
            text(&health["status"]),
            number(&model["context_length"]),
            number(&model["queue"]["running"]),
            number(&model["queue"]["waiting"]),
            used.map_or_else(|| "?".to_owned(), |share| format!("{:.0} %", share * 100.0)),
        ]);
    }
    let reason = health["reason"].as_str().map(|reason| format!("status: {reason}\n")).unwrap_or_default();
    let mut devices: Vec<String> = Vec::new();
    for model in models {
        let device = format!("device: {}\nbecause {}\n", text(&model["device"]), text(&model["device_reason"]));
        if !devices.contains(&device) {
            devices.push(device);
        }
    }
    format!("{table}{reason}{}", devices.concat())
}

/// Value of the sample of that name and model in Prometheus' text format.
fn gauge(metrics: &str, name: &str, model: &str) -> Option<f64> {
    let label = format!("model_name={model:?}");
    metrics.lines().find_map(|line| {
        let (labels, value) = line.strip_prefix(name)?.strip_prefix('{')?.rsplit_once('}')?;
        labels.contains(&label).then(|| value.split_whitespace().next()?.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_server_is_described() {
        let health = json!({
            "status": "ok", "reason": null, "model": "smollm2:135m", "device": "CPU, 2 threads, AVX2",
            "device_reason": "this build has no CUDA", "context_length": 8192, "queue": { "running": 3, "waiting": 0 },
            "further_models": [{
                "model": "a}b", "device": "CPU, 2 threads, AVX2", "device_reason": "this build has no CUDA",
                "context_length": 256, "queue": { "running": 0, "waiting": 0 },
            }],
        });
        let metrics = "# TYPE vllm:kv_cache_usage_perc gauge\n\
                       vllm:kv_cache_usage_perc{model_name=\"a}b\"} 0.5\n\
                       vllm:kv_cache_usage_perc{model_name=\"smollm2:135m\"} 0.25\n";
        let expected = "MODEL         STATUS  CONTEXT  RUNNING  WAITING  KV USED\n\
                        smollm2:135m  ok         8192        3        0     25 %\n\
                        a}b           ok          256        0        0     50 %\n\
                        device: CPU, 2 threads, AVX2\nbecause this build has no CUDA\n";
        assert_eq!(describe(&health, metrics), expected);
    }

    #[test]
    fn a_server_without_a_model_says_so() {
        let text = describe(&json!({ "status": "ok", "model": null, "further_models": [] }), "");
        assert!(text.starts_with("no model is loaded"), "{text}");
    }

    #[test]
    fn what_a_server_does_not_say_is_unknown() {
        let text = describe(&json!({ "status": "dead", "reason": "out of blocks" }), "");
        assert!(
            text.contains("unknown  dead          ?        ?        ?        ?\nstatus: out of blocks\n"),
            "{text}"
        );
    }

    #[test]
    fn samples_are_found_by_their_whole_name_and_model() {
        let metrics = "b_total{model_name=\"m\"} 1\nb{x=\"1\",model_name=\"n\"} 2\nb{model_name=\"m\"} 3 1700000000\n";
        assert_eq!(gauge(metrics, "b", "m"), Some(3.0));
        assert_eq!(gauge(metrics, "b", "n"), Some(2.0));
        assert_eq!(gauge(metrics, "b", "o"), None);
        assert_eq!(gauge(metrics, "c", "m"), None);
    }
}
