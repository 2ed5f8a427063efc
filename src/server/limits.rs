//! What the server bounds, by name and default.
//!
//! Knows no source of settings: the command line or an embedder fills it in.

use std::time::Duration;

use crate::config::KeepAlive;

/// How the server treats its clients. Plain data; nothing changes it after start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerConfig {
    /// Largest body in bytes; a larger one gets 413. 16 MiB: some four million tokens of text, more than any context.
    pub body_bytes: usize,
    /// Largest sum of header names and values in bytes; more gets 431. 32 KiB: keys, trace ids and cookies have room.
    pub header_bytes: usize,
    /// Deepest nesting of arrays and objects in a body; deeper gets 400. 64: tool schemas nest about ten deep, and it is
    /// below what any parser on the way refuses by itself.
    pub json_depth: usize,
    /// Most JSON values in a body, of which an array or object counts for 8; more gets 400. 524,288: 38 MB in memory, and some
    /// times that where a template reads them. That is as many token ids, or some 20,000 messages.
    pub json_values: usize,
    /// Most prompts in one request to `/v1/completions`; more gets 400. 128.
    pub max_prompts: usize,
    /// Texts that one request may ask vectors of; more gets 400. 2,048, as OpenAI's.
    pub max_embeddings: usize,
    /// Open connections; further ones wait in the system's backlog. 1024.
    pub max_connections: usize,
    /// Requests whose prompts are being encoded at once, and, apart from them, whose grammars are being compiled at once;
    /// further ones wait. 2: both take cores from the model.
    pub max_encoding: usize,
    /// Requests that wait to be encoded, and as many that wait for their grammars; one more gets 429. 128.
    pub max_encoding_waiting: usize,
    /// Time for a request's head to arrive, also while a connection is idle between requests. 75 s.
    pub header_timeout: Duration,
    /// Time for a request's body to arrive; longer gets 408. 60 s.
    pub body_timeout: Duration,
    /// Time in which a reader must take some bytes of what waits for it; else its connection is closed, and what its request
    /// holds, such as the model, is free. 60 s.
    pub write_timeout: Duration,
    /// Silence after which a stream gets a comment, so that no proxy takes it for dead. 10 s.
    pub sse_keep_alive: Duration,
    /// Time that running requests have to finish once the server shuts down. 30 s: what process managers wait before
    /// they kill.
    pub drain_timeout: Duration,
    /// Time that a server whose engine has stopped still answers, so that health probes and clients can read why. 5 s.
    pub engine_death_notice: Duration,
    /// Web pages of which origins may call.
    pub origins: Origins,
    /// Responses of `/v1/responses` that are kept for later ones to refer to; the oldest leave. 1024.
    pub max_stored_responses: usize,
    /// Bytes of all of those; the oldest leave. 64 MiB.
    pub stored_response_bytes: usize,
    /// How long a model stays loaded that nobody uses, unless a request says otherwise. For ever: it leaves where
    /// another needs its memory. Models that a program hands in itself stay in any case.
    pub keep_alive: KeepAlive,
    /// Time that a request waits for its model to be loaded; longer gets 503. 10 minutes: large models on slow disks.
    pub load_timeout: Duration,
    /// Requests that wait for models to be loaded; one more gets 503. 64.
    pub max_load_waiting: usize,
    /// Models that are being brought at once; one more gets 429. 4.
    pub max_pulls: usize,
    /// Further names under which the first model is served.
    pub model_aliases: Vec<String>,
}

/// Whose web pages may call the server from a browser. Programs that are no browsers send no origin and always may.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Origins {
    /// Pages served from this machine, and applications that are no web pages (`app://`, `tauri://` and the like).
    #[default]
    Loopback,
    /// These besides [`Self::Loopback`], as in `https://chat.example.org`.
    Listed(Vec<String>),
    /// All.
    Any,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            body_bytes: 16 << 20,
            header_bytes: 32 << 10,
            json_depth: 64,
            json_values: 1 << 19,
            max_prompts: 128,
            max_embeddings: 2048,
            max_connections: 1024,
            max_encoding: 2,
            max_encoding_waiting: 128,
            header_timeout: Duration::from_secs(75),
            body_timeout: Duration::from_secs(60),
            write_timeout: Duration::from_secs(60),
            sse_keep_alive: Duration::from_secs(10),
            drain_timeout: Duration::from_secs(30),
            engine_death_notice: Duration::from_secs(5),
            origins: Origins::default(),
            max_stored_responses: 1024,
            stored_response_bytes: 64 << 20,
            keep_alive: KeepAlive::default(),
            load_timeout: Duration::from_secs(600),
            max_load_waiting: 64,
            max_pulls: 4,
            model_aliases: Vec::new(),
        }
    }
}
