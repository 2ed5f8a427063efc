//! Prometheus metrics under vLLM's names, so that the routers and dashboards that people have go on working.
//!
//! Knows the engine's counters by their snapshot alone; times are measured where answers leave.
//! Source: docs.vllm.ai, "Production metrics".

use std::sync::Arc;
use std::time::Instant;

use prometheus::core::Collector as _;
use prometheus::proto::MetricFamily;
use prometheus::{
    Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, Opts, Registry, TextEncoder, exponential_buckets,
};

use crate::llm::Llm;
use crate::request::FinishReason;

/// Upper bounds in seconds for what a person waits: first tokens and whole answers.
const WAIT_S: [f64; 18] =
    [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0];
/// Upper bounds in seconds for the time between two tokens.
const TOKEN_S: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 1.0, 5.0, 20.0];

/// What the server measures itself. Each router has its own registry.
pub(super) struct Metrics {
    registry: Registry,
    model_name: String,
    time_to_first_token: Histogram,
    inter_token_latency: Histogram,
    /// The same values under the name that older dashboards read.
    inter_token_latency_before: Histogram,
    time_per_output_token: Histogram,
    end_to_end: Histogram,
    prompt_tokens: Histogram,
    generation_tokens: Histogram,
    success: IntCounterVec,
}

impl Metrics {
    /// # Panics
    /// Never: the names are fixed, valid and distinct.
    pub(super) fn new(model_name: &str) -> Self {
        let registry = Registry::new();
        let histogram = |name: &str, help: &str, buckets: Vec<f64>| {
            let options = HistogramOpts::new(name, help).buckets(buckets).const_label("model_name", model_name);
            let histogram = Histogram::with_opts(options).expect("a fixed, valid name");
            registry.register(Box::new(histogram.clone())).expect("a distinct name");
            histogram
        };
        let token_buckets = exponential_buckets(1.0, 2.0, 18).expect("valid bounds");
        let success = IntCounterVec::new(
            Opts::new("vllm:request_success_total", "Requests that ended, by how they ended")
                .const_label("model_name", model_name),
            &["finished_reason"],
        )
        .expect("a fixed, valid name");
        for reason in ["stop", "length", "abort", "error"] {
            success.with_label_values(&[reason]);
        }
        registry.register(Box::new(success.clone())).expect("a distinct name");
        Self {
            time_to_first_token: histogram(
                "vllm:time_to_first_token_seconds",
                "Seconds from a request's arrival to its first token",
                WAIT_S.to_vec(),
            ),
            inter_token_latency: histogram(
                "vllm:inter_token_latency_seconds",
                "Seconds between one token of an answer and the next",
                TOKEN_S.to_vec(),
            ),
            inter_token_latency_before: histogram(
                "vllm:time_per_output_token_seconds",
                "Older name of vllm:inter_token_latency_seconds",
                TOKEN_S.to_vec(),
            ),
            time_per_output_token: histogram(
                "vllm:request_time_per_output_token_seconds",
                "Mean seconds a token after the first, one value a request",
                TOKEN_S.to_vec(),
            ),
            end_to_end: histogram(
                "vllm:e2e_request_latency_seconds",
                "Seconds from a request's arrival to its end",
                WAIT_S.to_vec(),
            ),
            prompt_tokens: histogram(
                "vllm:request_prompt_tokens",
                "Tokens in a request's prompt",
                token_buckets.clone(),
            ),
            generation_tokens: histogram(
                "vllm:request_generation_tokens",
                "Tokens generated for a request",
                token_buckets,
            ),
            success,
            model_name: model_name.to_owned(),
            registry,
        }
    }

    /// The engine's own numbers, as they are now.
    fn engine(&self, llm: &Llm) -> Result<Vec<MetricFamily>, prometheus::Error> {
        let now = llm.engine().metrics().snapshot();
        let used = if now.blocks_total == 0 { 0.0 } else { now.blocks_used as f64 / now.blocks_total as f64 };
        let info = llm.present();
        let gauges = [
            ("vllm:num_requests_running", "Sequences that are being computed", now.running as f64),
            ("vllm:num_requests_waiting", "Requests that wait", now.waiting as f64),
            ("vllm:kv_cache_usage_perc", "Share of the KV cache that live sequences hold; 1 is all of it", used),
            (
                "lantern:memory_planned_bytes",
                "Bytes that the model was planned to take, less what its KV cache has given back",
                info.planned_bytes as f64,
            ),
        ];
        let counters = [
            ("vllm:prefix_cache_queries_total", "Tokens looked up in the prefix cache", now.prefix_queries),
            ("vllm:prefix_cache_hits_total", "Tokens found in the prefix cache", now.prefix_hits),
            ("vllm:num_preemptions_total", "Sequences put back for want of cache blocks", now.preemptions),
            ("vllm:prompt_tokens_total", "Prompt tokens computed or found in the prefix cache", now.prompt_tokens),
            ("vllm:generation_tokens_total", "Tokens generated", now.generated_tokens),
        ];
        let options = |name, help| Opts::new(name, help).const_label("model_name", &self.model_name);
        let mut families = Vec::new();
        // Of main memory nobody knows what is ours.
        let taken = info.used_bytes.map(|bytes| {
            (
                "lantern:memory_used_bytes",
                "Bytes of the GPU that were taken once the model was ready, less what its KV cache has given back",
                bytes as f64,
            )
        });
        for (name, help, value) in gauges.into_iter().chain(taken) {
            let gauge = Gauge::with_opts(options(name, help))?;
            gauge.set(value);
            families.extend(gauge.collect());
        }
        for (name, help, value) in counters {
            let counter = IntCounter::with_opts(options(name, help))?;
            counter.inc_by(value);
            families.extend(counter.collect());
        }
        Ok(families)
    }
}

/// The text format of what is known of these models: each metric once, with a line for each model.
///
/// # Errors
/// A metric cannot be written.
pub(super) fn render<'a>(models: impl Iterator<Item = (&'a Metrics, &'a Llm)>) -> Result<String, prometheus::Error> {
    let mut families: Vec<MetricFamily> = Vec::new();
    for (metrics, llm) in models {
        for mut family in metrics.engine(llm)?.into_iter().chain(metrics.registry.gather()) {
            match families.iter_mut().find(|known| known.name() == family.name()) {
                Some(known) => known.mut_metric().extend(family.take_metric()),
                None => families.push(family),
            }
        }
    }
    TextEncoder::new().encode_to_string(&families)
}

/// Measures one request to the engine, from its submission to its end. One that is dropped unfinished was aborted.
pub(super) struct Meter {
    metrics: Arc<Metrics>,
    started: Instant,
    first_token: Option<Instant>,
    last_token: Vec<Option<Instant>>,
    prompt_tokens: usize,
    generated: u64,
    unfinished: u32,
    failed: bool,
}

impl Meter {
    pub(super) fn new(metrics: Arc<Metrics>, started: Instant, prompt_tokens: usize, n: u32) -> Self {
        Self {
            metrics,
            started,
            first_token: None,
            last_token: vec![None; n as usize],
            prompt_tokens,
            generated: 0,
            unfinished: n,
            failed: false,
        }
    }

    /// `count` tokens of one choice came.
    pub(super) fn tokens(&mut self, choice: u32, count: usize) {
        if count == 0 {
            return;
        }
        let now = Instant::now();
        self.generated += count as u64;
        if self.first_token.is_none() {
            self.first_token = Some(now);
            self.metrics.time_to_first_token.observe((now - self.started).as_secs_f64());
        }
        let before = self.last_token.get_mut(choice as usize).and_then(|last| last.replace(now));
        if let Some(before) = before {
            let seconds = (now - before).as_secs_f64();
            self.metrics.inter_token_latency.observe(seconds);
            self.metrics.inter_token_latency_before.observe(seconds);
        }
    }

    /// One choice has ended.
    pub(super) fn finished(&mut self, reason: FinishReason) {
        let label = match reason {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
            FinishReason::Cancelled => "abort",
        };
        self.metrics.success.with_label_values(&[label]).inc();
        self.unfinished = self.unfinished.saturating_sub(1);
        if self.unfinished == 0 {
            self.observe_whole();
        }
    }

    /// The request has failed as a whole.
    pub(super) fn failed(&mut self) {
        self.failed = true;
    }

    fn observe_whole(&self) {
        self.metrics.end_to_end.observe(self.started.elapsed().as_secs_f64());
        self.metrics.prompt_tokens.observe(self.prompt_tokens as f64);
        self.metrics.generation_tokens.observe(self.generated as f64);
        let later_tokens = self.generated.saturating_sub(self.last_token.len() as u64);
        if let Some(first) = self.first_token.filter(|_| later_tokens > 0) {
            let per_choice = later_tokens as f64 / self.last_token.len() as f64;
            self.metrics.time_per_output_token.observe(first.elapsed().as_secs_f64() / per_choice);
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        let label = if self.failed { "error" } else { "abort" };
        self.metrics.success.with_label_values(&[label]).inc_by(self.unfinished.into());
    }
}
