//! Requests over HTTP, to the real server on a port of this machine, by a client that does little else than count.
//!
//! Knows no statistics.

use std::net::{Ipv4Addr, SocketAddr};

use axum::body::{Body, BodyDataStream, Bytes};
use futures::{StreamExt, TryStreamExt, stream};
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::measure::TokenStream;
use crate::cli::CliError;
use crate::llm::Llm;
use crate::request::TokenId;
use crate::server::{ServeError, ServerConfig, serve};

/// Longest refusal that is read, in bytes.
const MAX_REFUSAL_BYTES: usize = 64 << 10;

/// Stands before the number of an answer's tokens so far. Inside a text its quotes would be escaped.
const TOKENS_SO_FAR: &[u8] = b"\"completion_tokens\":";

/// A server that runs in this process, and how to reach it.
pub struct HttpDoor {
    address: SocketAddr,
    model: String,
    stop: oneshot::Sender<()>,
    server: JoinHandle<Result<(), ServeError>>,
}

impl HttpDoor {
    /// Serves `llm` on a free port of this machine.
    ///
    /// # Errors
    /// [`CliError::Io`] where there is none.
    pub async fn open(llm: &Llm) -> Result<Self, CliError> {
        let io = |source| CliError::Io { doing: "the benchmark's server cannot listen", source };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(io)?;
        let address = listener.local_addr().map_err(io)?;
        let (stop, stopped) = oneshot::channel();
        let stopped = async {
            // A door that was dropped is as good as closed.
            let _ = stopped.await;
        };
        let server = tokio::spawn(serve(listener, llm.clone(), ServerConfig::default(), stopped));
        Ok(Self { address, model: llm.info().name.clone(), stop, server })
    }

    /// Ends the server, and its engine with it.
    ///
    /// # Errors
    /// [`CliError::Refused`] where it did not end in order.
    pub async fn close(self) -> Result<(), CliError> {
        let _ = self.stop.send(());
        match self.server.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(refused(error)),
            Err(error) => Err(refused(error)),
        }
    }

    /// A greedy completion of `prompt`, as JSON.
    pub fn body(&self, prompt: &[TokenId], max_tokens: u32) -> String {
        let body = json!({
            "model": self.model,
            "prompt": prompt,
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": true,
            "stream": true,
            "stream_options": {"include_usage": true, "continuous_usage_stats": true},
        });
        body.to_string()
    }

    /// Sends `body` on a connection of its own once it is polled.
    pub fn send(&self, body: String) -> TokenStream {
        let address = self.address;
        let tokens = async move {
            let mut counter = Counter::default();
            Ok::<_, CliError>(post(address, body).await?.map(move |bytes| counter.push(&bytes.map_err(refused)?)))
        };
        stream::once(tokens).try_flatten().boxed()
    }
}

async fn post(address: SocketAddr, body: String) -> Result<BodyDataStream, CliError> {
    let stream = TcpStream::connect(address)
        .await
        .map_err(|source| CliError::Io { doing: "the benchmark's server cannot be reached", source })?;
    // As every client does that writes a request in one piece.
    let _ = stream.set_nodelay(true);
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(refused)?;
    // Its errors reach the answer's reader, too.
    tokio::spawn(async move { connection.await.ok() });
    let request = Request::post("/v1/completions")
        .header(HOST, address.to_string())
        .header(CONTENT_TYPE, "application/json")
        .body(Body::from(body))
        .map_err(refused)?;
    let answer = sender.send_request(request).await.map_err(refused)?;
    let (status, body) = (answer.status(), Body::new(answer.into_body()));
    if status == StatusCode::OK {
        return Ok(body.into_data_stream());
    }
    let text = axum::body::to_bytes(body, MAX_REFUSAL_BYTES).await.map_err(refused)?;
    Err(CliError::Refused(format!("the server refused ({status}): {}", String::from_utf8_lossy(&text))))
}

fn refused(error: impl std::fmt::Display) -> CliError {
    CliError::Refused(format!("the benchmark's server failed: {error}"))
}

/// Counts an answer's tokens in the events that tell them.
#[derive(Default)]
struct Counter {
    /// Bytes of an event that has not ended.
    rest: Vec<u8>,
    tokens: usize,
}

impl Counter {
    /// How many tokens the answer has more since these bytes have come.
    fn push(&mut self, bytes: &Bytes) -> Result<usize, CliError> {
        let before = self.tokens;
        self.rest.extend_from_slice(bytes);
        let mut read = 0;
        while let Some(length) = find(&self.rest[read..], b"\n\n") {
            let event = &self.rest[read..read + length];
            if event.starts_with(b"data: {\"error\"") {
                return Err(refused(String::from_utf8_lossy(event)));
            }
            if let Some(tokens) = tokens_so_far(event) {
                self.tokens = tokens;
            }
            read += length + 2;
        }
        self.rest.drain(..read);
        Ok(self.tokens.saturating_sub(before))
    }
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

/// What the event says of the answer's tokens, if anything. Usage comes last in an event.
fn tokens_so_far(event: &[u8]) -> Option<usize> {
    let at = event.windows(TOKENS_SO_FAR.len()).rposition(|window| window == TOKENS_SO_FAR)?;
    let number = &event[at + TOKENS_SO_FAR.len()..];
    let digits = number.iter().take_while(|byte| byte.is_ascii_digit());
    Some(digits.fold(0, |tokens, digit| 10 * tokens + usize::from(digit - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_counted_wherever_the_stream_is_cut() {
        let stream = ": waiting\n\ndata: {\"text\":\"\\\"completion_tokens\\\":9\",\"usage\":{\"completion_tokens\":1,\"total\":4}}\n\n\
                      data: {\"usage\":{\"completion_tokens\":12}}\n\ndata: [DONE]\n\n";
        for cut in 0..stream.len() {
            let mut counter = Counter::default();
            let (first, second) = stream.split_at(cut);
            let counts = [first, second].map(|part| counter.push(&Bytes::from(part)).expect("no error"));
            assert_eq!(counts[0] + counts[1], 12, "{cut}");
        }
    }

    #[test]
    fn an_error_in_the_stream_is_one() {
        let event = Bytes::from("data: {\"error\":{\"message\":\"the engine has stopped\"}}\n\n");
        let error = Counter::default().push(&event).expect_err("an error").to_string();
        assert!(error.contains("the engine has stopped"), "{error}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_real_server_gives_every_token_that_is_asked_for() {
        let shapes = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/golden/llama3/config.json");
        let llm = Llm::builder().random_weights(shapes).threads(1).load().await.expect("a tiny model");
        let door = HttpDoor::open(&llm).await.expect("a free port");
        let answers = stream::select_all([1, 7].map(|tokens| door.send(door.body(&[3, 4, 5], tokens))));
        let counts: Vec<usize> = answers.try_collect().await.expect("answers");
        assert_eq!(counts.iter().sum::<usize>(), 8, "{counts:?}");
        let refusal = door.send(door.body(&[], 1)).try_collect::<Vec<_>>().await.expect_err("no prompt").to_string();
        assert!(refusal.contains("400"), "{refusal}");
        door.close().await.expect("an orderly end");
    }
}
