//! A fake engine, a tokenizer whose ids are bytes, and a client without a network.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Method, Request as HttpRequest, StatusCode, header};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tower::ServiceExt as _;

use crate::engine::{Command, EngineHandle, EngineLimits, KvResize, Submission, channel};
use crate::llm::{Llm, LlmParts, ModelInfo, SamplingOptions};
use crate::request::{FinishReason, Pooling, Request, RequestEvent, TokenId, TokenLogprobs};
use crate::server::ServerConfig;
use crate::server::router;
use crate::tokenizer::{ChatTemplate, GgufVocab, Tokenizer};

pub(super) const MODEL: &str = "tiny:1b";
pub(super) const EOS: TokenId = 256;
/// Tokens of prompt and answer.
pub(super) const CONTEXT: u32 = 512;

const TEMPLATE: &str = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}\
                        {% if tools %}tools: {{ tools | length }}\n{% endif %}\
                        {% if add_generation_prompt %}assistant: {% endif %}";

/// Of a model that thinks unless it is told not to; the name of the mark that ends thoughts says so.
const THINKING: &str = "{% for m in messages %}{{ m.content.split('</think>')[-1] }}{% endfor %}\
                        {% if enable_thinking is not defined or enable_thinking %}<think>\n{% endif %}";

/// Of a model that was taught Hermes' form of calls.
const CALLING: &str = "{% for m in messages %}{{ m.content }}{% endfor %}{% if tools %}{# <tool_call> #}{% endif %}";

/// Ids 0 to 255 are bytes and 256 ends an answer.
fn tokenizer() -> Tokenizer {
    let mut stand_ins = 256_u32..;
    let piece = |byte: u8| match byte {
        b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => char::from(byte),
        _ => stand_ins.next().and_then(char::from_u32).expect("a character"),
    };
    let mut tokens: Vec<String> = (0..=255).map(piece).map(String::from).collect();
    tokens.push("<|end|>".into());
    let mut token_types = vec![1; 256];
    token_types.push(3);
    let vocab = GgufVocab {
        model: "gpt2".into(),
        pre: Some("gpt-2".into()),
        tokens,
        token_types,
        eos: Some(EOS),
        ..GgufVocab::default()
    };
    Tokenizer::from_gguf_vocab(vocab).expect("a valid vocabulary")
}

pub(super) fn limits() -> EngineLimits {
    EngineLimits { max_context: CONTEXT, max_sequences: 4, max_waiting: 4, vocab_size: 257 }
}

/// Blocks of a KV cache, which becomes half as large and no smaller, and the bytes of all of them.
const KV_BLOCKS: u32 = CONTEXT / 16 * 2;
const KV_BYTES: u64 = 1_000_000_000;

/// An engine that does with each request what `script` says, on a thread of its own.
fn engine(limits: EngineLimits, script: impl FnMut(Submission) + Send + 'static) -> EngineHandle {
    let (engine, mut inbox) = channel(limits);
    inbox.metrics().blocks_total.store(KV_BLOCKS.into(), Relaxed);
    std::thread::spawn(move || {
        // Gone before the inbox is, as a model's memory.
        let mut script = script;
        loop {
            match inbox.wait() {
                Some(Command::Submit(submission)) => script(*submission),
                Some(Command::ResizeKv(KvResize { blocks, reply, .. })) => {
                    let blocks = blocks.clamp(KV_BLOCKS / 2, KV_BLOCKS);
                    let metrics = inbox.metrics();
                    metrics.blocks_total.store(blocks.into(), Relaxed);
                    let given_back_bytes = KV_BYTES * u64::from(KV_BLOCKS - blocks) / u64::from(KV_BLOCKS);
                    metrics.kv_given_back_bytes.store(given_back_bytes, Relaxed);
                    let _ = reply.send(Some(blocks));
                }
                Some(Command::Shutdown(_)) | None => return,
            }
        }
    });
    engine
}

/// A model whose engine does with each request what `script` says.
pub(super) fn llm(limits: EngineLimits, script: impl FnMut(Submission) + Send + 'static) -> Llm {
    over(engine(limits, script))
}

/// A model of another name whose engine always says `text`; it holds `held` until it is unloaded.
pub(in crate::server) fn named(name: &str, text: &'static str, held: impl Send + 'static) -> Llm {
    let script = move |submission| {
        let _held = &held;
        say(&submission, text);
    };
    with_template_and_name(engine(limits(), script), TEMPLATE, name)
}

/// A model on this engine.
pub(super) fn over(engine: EngineHandle) -> Llm {
    with_template(engine, TEMPLATE)
}

fn with_template(engine: EngineHandle, template: &str) -> Llm {
    with_template_and_name(engine, template, MODEL)
}

fn with_template_and_name(engine: EngineHandle, template: &str, name: &str) -> Llm {
    let info = ModelInfo {
        name: name.into(),
        architecture: "llama".into(),
        parameters: 1,
        format: "F32".into(),
        weight_bytes: 4,
        context_length: CONTEXT,
        embedding_length: 3,
        device: "CPU, 2 threads".into(),
        runs_on: Default::default(),
        token_cost: Default::default(),
        device_reason: "no GPU is here".into(),
        kv_bytes: KV_BYTES,
        full_contexts: 2,
        kv_tokens: 2 * u64::from(CONTEXT),
        kv_dtype: "f32".into(),
        planned_bytes: 2_000_000_000,
        used_bytes: None,
        offload: None,
        loaded_at_unix_s: 1_700_000_000,
    };
    Llm::from_parts(LlmParts {
        info,
        tokenizer: tokenizer(),
        template: ChatTemplate::new(template, None, Some("<|end|>")).expect("a valid template"),
        defaults: SamplingOptions::default(),
        eos_token_ids: [EOS].into(),
        pooling: None,
        engine,
        grammars: Default::default(),
    })
}

/// A router over an engine that always says `text`, and the requests that reached it.
pub(super) fn saying(text: &'static str) -> (Router, std::sync::mpsc::Receiver<Request>) {
    let (sender, requests) = std::sync::mpsc::channel();
    let llm = llm(limits(), move |submission| {
        // A test that does not look at its requests has dropped the receiver.
        let _ = sender.send(submission.request.clone());
        say(&submission, text);
    });
    (router(llm, config()), requests)
}

/// A router over a model that thinks, whose engine always says `text`.
pub(super) fn thinking(text: &'static str) -> Router {
    templated(THINKING, text).0
}

/// A router over a model that marks its calls of tools, whose engine always says `text`.
pub(super) fn calling(text: &'static str) -> Router {
    templated(CALLING, text).0
}

/// As [`thinking`], with the requests that reached the engine.
pub(super) fn thinking_requests(text: &'static str) -> (Router, std::sync::mpsc::Receiver<Request>) {
    templated(THINKING, text)
}

pub(super) fn templated(template: &str, text: &'static str) -> (Router, std::sync::mpsc::Receiver<Request>) {
    let (sender, requests) = std::sync::mpsc::channel();
    let script = move |submission: Submission| {
        let _ = sender.send(submission.request.clone());
        say(&submission, text);
    };
    (router(with_template(engine(limits(), script), template), config()), requests)
}

/// An engine that does nothing by itself: the test gets each submission.
pub(super) fn held(limits: EngineLimits) -> (Llm, mpsc::UnboundedReceiver<Submission>) {
    held_as(MODEL, limits)
}

/// As [`held`], of another name.
pub(super) fn held_as(name: &str, limits: EngineLimits) -> (Llm, mpsc::UnboundedReceiver<Submission>) {
    let (sender, submissions) = mpsc::unbounded_channel();
    let script = move |submission| {
        let _ = sender.send(submission);
    };
    (with_template_and_name(engine(limits, script), TEMPLATE, name), submissions)
}

pub(super) fn config() -> ServerConfig {
    ServerConfig {
        body_bytes: 64 << 10,
        json_depth: 16,
        json_values: 8192,
        max_prompts: 3,
        model_aliases: vec!["other-name".into(), "org/name".into()],
        ..ServerConfig::default()
    }
}

/// Log-probabilities that tests can compute: the token's own, then id 120 (`x`) and so on.
pub(super) fn logprobs(token: TokenId, count: Option<u32>) -> Option<TokenLogprobs> {
    let top = |count| (0..count).map(|place| (120 + place, -(place as f32) - 2.0)).collect();
    count.map(|count| TokenLogprobs { logprob: -(token as f32), rank: 1 + count, top: top(count) })
}

/// Tells the prompt.
pub(super) fn start(submission: &Submission) {
    let request = &submission.request;
    let prompt = request.prompt.iter().skip(1);
    let logprobs = prompt.filter_map(|token| logprobs(*token, request.sampling.prompt_logprobs)).collect();
    // A vector that says how many tokens the prompt has and how it was to be pooled.
    let pooled =
        request.pooling.map(|pooling| vec![request.prompt.len() as f32, f32::from(pooling == Pooling::Mean), 0.0]);
    send(submission, RequestEvent::Prompt { cached_tokens: 1, logprobs, pooled });
}

/// Tells one token.
pub(super) fn token(submission: &Submission, choice: u32, token: TokenId) {
    let logprobs = logprobs(token, submission.request.sampling.logprobs);
    send(submission, RequestEvent::Token { choice, token, logprobs });
}

/// Tells the end of a choice.
pub(super) fn finish(submission: &Submission, choice: u32, reason: FinishReason) {
    send(submission, RequestEvent::Finished { choice, reason });
}

fn send(submission: &Submission, event: RequestEvent) {
    // As the engine does: who does not listen any more is not told.
    let _ = submission.events.try_send(event);
}

/// Answers as a model would that says `text`, within the request's `max_tokens`.
pub(super) fn say(submission: &Submission, text: &str) {
    start(submission);
    let most = submission.request.stop.max_tokens as usize;
    for choice in 0..submission.request.n {
        for byte in text.bytes().take(most) {
            token(submission, choice, byte.into());
        }
        if text.len() < most {
            token(submission, choice, EOS);
            finish(submission, choice, FinishReason::Stop);
        } else {
            finish(submission, choice, FinishReason::Length);
        }
    }
}

/// What came back.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) text: String,
}

impl Reply {
    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    /// The data of each event of a stream.
    pub(super) fn events(&self) -> Vec<String> {
        let events = self.text.split_terminator("\n\n").filter(|event| !event.starts_with(':'));
        events.map(|event| event.strip_prefix("data: ").expect("only data").to_owned()).collect()
    }

    /// The JSON values of a stream of lines.
    pub(super) fn lines(&self) -> Vec<Value> {
        self.text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    /// Name and data of each event of a stream whose events have names.
    pub(super) fn named_events(&self) -> Vec<(String, Value)> {
        let one = |event: &str| {
            let (name, data) = event.strip_prefix("event: ")?.split_once("\ndata: ")?;
            Some((name.to_owned(), serde_json::from_str(data).ok()?))
        };
        let events = self.text.split_terminator("\n\n").filter(|event| !event.starts_with(':'));
        events.map(|event| one(event).unwrap_or_else(|| panic!("{event}"))).collect()
    }

    /// The chunks of a stream that ended well.
    pub(super) fn chunks(&self) -> Vec<Value> {
        let mut events = self.events();
        assert_eq!(events.pop().as_deref(), Some("[DONE]"), "{}", self.text);
        events.iter().map(|event| serde_json::from_str(event).expect("JSON")).collect()
    }

    /// `(status, code, param)` of an error, whose shape is checked.
    pub(super) fn error(&self) -> (u16, Option<String>, Option<String>) {
        let body: BTreeMap<String, Value> = serde_json::from_str(&self.text).expect("an object");
        assert_eq!(body.keys().collect::<Vec<_>>(), ["error"], "{}", self.text);
        let error = body["error"].as_object().expect("an object");
        assert_eq!(error.keys().collect::<Vec<_>>(), ["message", "type", "param", "code"]);
        assert!(error["message"].is_string() && error["type"].is_string(), "{}", self.text);
        let text = |name: &str| error[name].as_str().map(str::to_owned);
        (self.status.as_u16(), text("code"), text("param"))
    }

    pub(super) fn message(&self) -> String {
        self.json()["error"]["message"].as_str().expect("a message").to_owned()
    }
}

pub(super) async fn send_request(router: &Router, request: HttpRequest<Body>) -> Reply {
    let response = router.clone().oneshot(request).await.expect("a router never fails");
    let (status, headers) = (response.status(), response.headers().clone());
    let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.expect("a body");
    Reply { status, headers, text: String::from_utf8(body.to_vec()).expect("UTF-8") }
}

pub(super) fn request(method: Method, path: &str, body: impl Into<Body>) -> HttpRequest<Body> {
    let builder = HttpRequest::builder().method(method).uri(path).header(header::CONTENT_TYPE, "application/json");
    builder.body(body.into()).expect("a request")
}

pub(super) async fn get(router: &Router, path: &str) -> Reply {
    send_request(router, request(Method::GET, path, Body::empty())).await
}

pub(super) async fn post(router: &Router, path: &str, body: Value) -> Reply {
    send_request(router, request(Method::POST, path, body.to_string())).await
}

/// A chat of one message, with `more` fields.
pub(super) fn chat_body(more: Value) -> Value {
    merged(json!({"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}), more)
}

/// A completion of `ab`, with `more` fields.
pub(super) fn completion_body(more: Value) -> Value {
    merged(json!({"model": MODEL, "prompt": "ab"}), more)
}

fn merged(mut body: Value, more: Value) -> Value {
    let more = more.as_object().expect("an object").clone();
    body.as_object_mut().expect("an object").extend(more);
    body
}

/// Longest that a test waits for the other side.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// `future`, or a failed test.
pub(super) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it takes too long")
}

/// A client on a real socket that has sent one request.
pub(super) async fn connect(address: SocketAddr, method: &str, path: &str, body: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    let length = body.len();
    let head = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: {length}\r\n\r\n");
    stream.write_all((head + body).as_bytes()).await.expect("to write");
    stream
}

/// Reads until `marker` has come; all that came.
pub(super) async fn read_until(stream: &mut TcpStream, marker: &str) -> String {
    soon(async {
        let mut text = String::new();
        let mut buffer = [0; 4096];
        while !text.contains(marker) {
            let count = stream.read(&mut buffer).await.expect("to read");
            assert!(count > 0, "it ended before `{marker}`: {text}");
            text.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
        text
    })
    .await
}
