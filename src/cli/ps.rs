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

/// Prints the server's model, load and device.
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

/// The server in a few lines.
fn describe(health: &Value, metrics: &str) -> String {
    let text = |key: &str| health[key].as_str().unwrap_or("unknown").to_owned();
    let number = |value: &Value| value.as_u64().map_or_else(|| "?".to_owned(), |number| number.to_string());
    let used = gauge(metrics, "vllm:kv_cache_usage_perc");
    let mut table = Table::new([
        ("MODEL", Align::Left),
        ("STATUS", Align::Left),
        ("CONTEXT", Align::Right),
        ("RUNNING", Align::Right),
        ("WAITING", Align::Right),
        ("KV USED", Align::Right),
    ]);
    table.push([
        text("model"),
        text("status"),
        number(&health["context_length"]),
        number(&health["queue"]["running"]),
        number(&health["queue"]["waiting"]),
        used.map_or_else(|| "?".to_owned(), |share| format!("{:.0} %", share * 100.0)),
    ]);
    let reason = health["reason"].as_str().map(|reason| format!("status: {reason}\n")).unwrap_or_default();
    format!("{table}{reason}device: {}\nbecause {}\n", text("device"), text("device_reason"))
}

/// Value of the first sample of that name in Prometheus' text format.
fn gauge(metrics: &str, name: &str) -> Option<f64> {
    metrics.lines().find_map(|line| {
        let rest = line.strip_prefix(name)?;
        let value = match rest.strip_prefix('{') {
            Some(labels) => labels.rsplit_once('}')?.1,
            None => rest.strip_prefix(' ')?,
        };
        value.split_whitespace().next()?.parse().ok()
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
        });
        let metrics = "# TYPE vllm:kv_cache_usage_perc gauge\nvllm:kv_cache_usage_perc{model_name=\"a}b\"} 0.25\n";
        let expected = "MODEL         STATUS  CONTEXT  RUNNING  WAITING  KV USED\n\
                        smollm2:135m  ok         8192        3        0     25 %\n\
                        device: CPU, 2 threads, AVX2\nbecause this build has no CUDA\n";
        assert_eq!(describe(&health, metrics), expected);
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
    fn samples_are_found_by_their_whole_name() {
        let metrics = "a_total 1\na 2\nb{x=\"1\"} 3 1700000000\n";
        assert_eq!(gauge(metrics, "a"), Some(2.0));
        assert_eq!(gauge(metrics, "b"), Some(3.0));
        assert_eq!(gauge(metrics, "c"), None);
    }
}
