//! Real sockets: clients that go away, silence, and the end of the server.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::json;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::fixture::*;
use crate::engine::Submission;
use crate::engine::tests::{BREAK, breakable};
use crate::llm::{GenerateRequest, Llm, Prompt};
use crate::request::{FinishReason, Tenant};
use crate::server::{Loading, ServeError, ServerConfig, answer_while_loading, serve};

struct Served {
    address: SocketAddr,
    submissions: mpsc::UnboundedReceiver<Submission>,
    shutdown: oneshot::Sender<()>,
    server: Server,
}

/// A server on a free port of this machine.
async fn served(config: ServerConfig) -> Served {
    let (llm, submissions) = held(limits());
    let (address, shutdown, server) = serving(llm, config).await;
    Served { address, submissions, shutdown, server }
}

type Server = JoinHandle<Result<(), ServeError>>;

/// `llm` on a free port, until the sender sends.
async fn serving(llm: Llm, config: ServerConfig) -> (SocketAddr, oneshot::Sender<()>, Server) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    let (shutdown, ordered) = oneshot::channel();
    let ordered = async {
        // A test that is over has dropped the sender.
        let _ = ordered.await;
    };
    let server = tokio::spawn(serve(listener, llm, config, ordered));
    (address, shutdown, server)
}

impl Served {
    async fn submission(&mut self) -> Submission {
        soon(self.submissions.recv()).await.expect("a request")
    }

    async fn chat(&self, stream: bool) -> tokio::net::TcpStream {
        let body = chat_body(json!({"stream": stream})).to_string();
        connect(self.address, "POST", "/v1/chat/completions", &body).await
    }
}

#[tokio::test]
async fn a_reader_of_a_stream_that_goes_away_cancels_it() {
    let mut served = served(config()).await;
    let mut client = served.chat(true).await;
    let submission = served.submission().await;
    assert_eq!(submission.request.tenant, Tenant::new("127.0.0.1"));
    start(&submission);
    token(&submission, 0, 97);
    read_until(&mut client, "\"a\"").await;
    drop(client);
    soon(submission.events.closed()).await;
}

#[tokio::test]
async fn a_client_that_goes_away_before_the_answer_cancels_it() {
    let mut served = served(config()).await;
    let client = served.chat(false).await;
    let submission = served.submission().await;
    drop(client);
    soon(submission.events.closed()).await;
}

#[tokio::test]
async fn silence_is_filled_with_comments() {
    let mut served = served(ServerConfig { sse_keep_alive: Duration::from_millis(10), ..config() }).await;
    let mut client = served.chat(true).await;
    let submission = served.submission().await;
    let text = read_until(&mut client, ": waiting\n\n").await;
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    say(&submission, "a");
    let text = read_until(&mut client, "[DONE]").await;
    assert!(text.contains("\"finish_reason\":\"stop\""), "{text}");
}

#[tokio::test]
async fn silence_is_filled_with_pings_for_anthropic_s_clients() {
    let mut served = served(ServerConfig { sse_keep_alive: Duration::from_millis(10), ..config() }).await;
    let messages = json!([{"role": "user", "content": "hi"}]);
    let body = json!({"model": MODEL, "max_tokens": 9, "messages": messages, "stream": true}).to_string();
    let mut client = connect(served.address, "POST", "/v1/messages", &body).await;
    let submission = served.submission().await;
    let text = read_until(&mut client, "event: ping\ndata: {\"type\":\"ping\"}\n\n").await;
    assert!(text.starts_with("HTTP/1.1 200") && !text.contains(": waiting"), "{text}");
    say(&submission, "a");
    read_until(&mut client, "message_stop").await;
}

#[tokio::test]
async fn draining_lets_running_requests_finish_and_takes_no_new_ones() {
    let mut served = served(config()).await;
    let mut running = served.chat(true).await;
    let submission = served.submission().await;
    start(&submission);
    token(&submission, 0, 97);
    read_until(&mut running, "\"a\"").await;
    served.shutdown.send(()).expect("the server runs");
    // `/health` tells when the order has arrived.
    loop {
        let mut probe = connect(served.address, "GET", "/health", "").await;
        let text = read_until(&mut probe, "}}").await;
        if text.starts_with("HTTP/1.1 503") {
            assert!(text.contains("\"draining\""), "{text}");
            break;
        }
    }
    let body = chat_body(json!({})).to_string();
    let mut refused = connect(served.address, "POST", "/v1/chat/completions", &body).await;
    let text = read_until(&mut refused, "}}").await;
    assert!(text.starts_with("HTTP/1.1 503") && text.contains("\"code\":\"shutting_down\""), "{text}");
    token(&submission, 0, 98);
    finish(&submission, 0, FinishReason::Length);
    drop(submission);
    let text = read_until(&mut running, "[DONE]").await;
    assert!(text.contains("\"b\"") && text.contains("\"length\""), "{text}");
    drop(running);
    soon(served.server).await.expect("no panic").expect("a clean end");
}

#[tokio::test]
async fn what_outlasts_the_drain_timeout_ends_with_an_error() {
    let mut served = served(ServerConfig { drain_timeout: Duration::from_millis(20), ..config() }).await;
    let mut stream = served.chat(true).await;
    let streaming = served.submission().await;
    start(&streaming);
    let mut whole = served.chat(false).await;
    let waiting = served.submission().await;
    start(&waiting);
    read_until(&mut stream, "assistant").await;
    served.shutdown.send(()).expect("the server runs");
    let mut text = String::new();
    soon(stream.read_to_string(&mut text)).await.expect("to read");
    let last = text.split("data: ").last().expect("an event");
    assert!(last.contains("\"error\"") && last.contains("\"shutting_down\"") && !text.contains("[DONE]"), "{text}");
    let mut text = String::new();
    soon(whole.read_to_string(&mut text)).await.expect("to read");
    assert!(text.starts_with("HTTP/1.1 503") && text.contains("\"shutting_down\""), "{text}");
    soon(async { tokio::join!(streaming.events.closed(), waiting.events.closed()) }).await;
    soon(served.server).await.expect("no panic").expect("a clean end");
}

#[tokio::test]
async fn a_head_that_does_not_come_ends_the_connection() {
    let served = served(ServerConfig { header_timeout: Duration::from_millis(20), ..config() }).await;
    let mut client = tokio::net::TcpStream::connect(served.address).await.expect("a connection");
    let mut text = String::new();
    soon(client.read_to_string(&mut text)).await.expect("it is closed");
    assert!(!text.contains("200"), "{text}");
}

/// The reader takes nothing; the engine goes on with others and drops the one that is full.
#[tokio::test]
async fn a_reader_that_does_not_read_holds_nobody_up() {
    let mut served = served(config()).await;
    let _sleeper = served.chat(true).await;
    let slow = served.submission().await;
    start(&slow);
    // More than the channel and the socket's buffers hold.
    let mut sent = 0_u64;
    let full = soon(async {
        loop {
            let event = crate::request::RequestEvent::Token { choice: 0, token: 97, logprobs: None };
            if slow.events.try_send(event).is_err() {
                return slow.events.capacity() == 0;
            }
            sent += 1;
            if sent.is_multiple_of(512) {
                tokio::task::yield_now().await;
            }
        }
    });
    assert!(full.await, "the channel is full, not closed");
    let mut other = served.chat(false).await;
    let submission = served.submission().await;
    say(&submission, "hello");
    assert!(read_until(&mut other, "}}}").await.contains("hello"));
}

/// Its request has ended in the engine; what is left is an answer that nobody takes.
#[tokio::test]
async fn a_reader_that_does_not_read_is_given_up_with_all_that_it_holds() {
    let mut served = served(ServerConfig { write_timeout: Duration::from_millis(50), ..config() }).await;
    let _sleeper = served.chat(true).await;
    let submission = served.submission().await;
    start(&submission);
    let token = || crate::request::RequestEvent::Token { choice: 0, token: 97, logprobs: None };
    // The socket's buffers are full before the channel can be: from then on nothing leaves it.
    soon(async {
        while !submission.events.is_closed() {
            let _ = submission.events.try_send(token());
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// Breaks the engine under `llm`, whose steps wait for `gate`.
fn break_it(llm: &Llm, gate: &std::sync::mpsc::Sender<()>) {
    let poison = llm.generate(GenerateRequest::new(Prompt::Tokens(vec![BREAK])).max_tokens(1)).expect("it is taken");
    // A step that runs ends, and the next one breaks; where none ran, it has broken already.
    let _ = gate.send(());
    drop(poison);
}

fn assert_died(ended: Result<(), ServeError>) {
    let Err(ServeError::EngineDied(reason)) = ended else { panic!("{ended:?}") };
    assert!(reason.contains("a test breaks the engine"), "{reason}");
}

#[tokio::test]
async fn a_dead_engine_tells_everybody_and_ends_the_server() {
    let (engine, gate) = breakable();
    let llm = over(engine);
    // Longer than the test, which ends the notice by its order to stop.
    let config = ServerConfig { engine_death_notice: PATIENCE * 2, ..config() };
    let (address, shutdown, server) = serving(llm.clone(), config).await;
    let body = completion_body(json!({"prompt": [1], "max_tokens": 400, "stream": true})).to_string();
    let mut running = connect(address, "POST", "/v1/completions", &body).await;
    gate.send(()).expect("the engine runs");
    read_until(&mut running, "\\u0007").await;
    break_it(&llm, &gate);
    let text = read_until(&mut running, "\"error\"").await;
    assert!(!text.contains("[DONE]"), "{text}");
    let mut probe = connect(address, "GET", "/health", "").await;
    let text = read_until(&mut probe, "}}").await;
    assert!(text.starts_with("HTTP/1.1 503") && text.contains("a test breaks the engine"), "{text}");
    shutdown.send(()).expect("the server runs");
    assert_died(soon(server).await.expect("no panic"));
}

#[tokio::test]
async fn a_server_outlives_its_engine_no_longer_than_the_notice() {
    let (engine, gate) = breakable();
    let llm = over(engine);
    let config = ServerConfig { engine_death_notice: Duration::from_millis(10), ..config() };
    let (_address, _shutdown, server) = serving(llm.clone(), config).await;
    break_it(&llm, &gate);
    assert_died(soon(server).await.expect("no panic"));
}

#[tokio::test]
async fn while_models_are_loaded_health_says_how_far_and_requests_are_told_to_come_back() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    let (done, work) = oneshot::channel::<u32>();
    let loading = Loading::default();
    loading.begin("fetching a.gguf", Some(1000));
    loading.advance(300);
    loading.advance(100);
    let told = loading.clone();
    let server = tokio::spawn(async move {
        let value = answer_while_loading(&listener, &told, work).await.expect("it is sent");
        (listener, value)
    });
    let ask = async |method: &str, path: &str| {
        let mut answer = String::new();
        let mut stream = connect(address, method, path, "{}").await;
        soon(stream.read_to_string(&mut answer)).await.expect("an answer and its end");
        answer
    };
    let health = ask("GET", "/health").await;
    assert!(health.starts_with("HTTP/1.1 503 "), "{health}");
    let body: serde_json::Value = serde_json::from_str(health.split_once("\r\n\r\n").expect("a body").1).expect("JSON");
    assert_eq!((&body["status"], &body["reason"]), (&json!("loading"), &json!("fetching a.gguf")));
    assert_eq!((&body["done_bytes"], &body["total_bytes"]), (&json!(400), &json!(1000)));
    let chat = ask("POST", "/v1/chat/completions").await;
    assert!(chat.starts_with("HTTP/1.1 503 ") && chat.contains("retry-after: 2"), "{chat}");
    assert!(chat.contains(r#""code":"loading""#) && chat.contains("fetching a.gguf"), "{chat}");
    let ollama = ask("POST", "/api/chat").await;
    assert!(ollama.starts_with("HTTP/1.1 503 ") && ollama.contains(r#"{"error":"the server is not ready"#), "{ollama}");
    // Whoever finds the port taken learns by whom.
    let greeting = ask("GET", "/").await;
    assert!(greeting.contains("server: lantern/") && greeting.ends_with("Ollama is running"), "{greeting}");
    // One who says nothing holds nobody up.
    let silent = tokio::net::TcpStream::connect(address).await.expect("it listens");
    done.send(7).expect("it is waited for");
    let (listener, value) = soon(server).await.expect("no panic");
    assert_eq!(value, 7);
    drop((listener, silent));
}
