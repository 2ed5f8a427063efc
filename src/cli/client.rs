//! Speaks to a running server: is it there, what does it serve, and a chat as it streams.
//!
//! Knows no terminal. Blocks; asynchronous callers use a blocking thread.

use std::io::{BufReader, Read};
use std::time::Duration;

use serde_json::{Value, json};

use super::sse::SseEvents;
use crate::config::Address;
use crate::llm::Message;
use crate::request::FinishReason;

/// Longest wait for a connection: a server on the same machine or network is there at once or not at all.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(700);
/// Longest wait for a short answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// Longest short answer in bytes.
const MAX_ANSWER_BYTES: u64 = 4 << 20;

/// Why the server did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers, or the connection broke.
    #[error("no answer from http://{address}")]
    Unreachable {
        /// Where the server was looked for.
        address: Address,
        /// What the connection failed with.
        source: Box<ureq::Error>,
    },
    /// The server refused.
    #[error("the server at http://{address} refused ({status}): {message}")]
    Refused {
        /// Where the server is.
        address: Address,
        /// The HTTP status.
        status: u16,
        /// The server's own words.
        message: String,
    },
    /// What answers is no server of this kind.
    #[error("what answers at http://{address} is not understood: {reason}")]
    Strange {
        /// Where it is.
        address: Address,
        /// What was wrong.
        reason: String,
    },
}

/// One piece of a streamed answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    /// Its next text.
    Text(String),
    /// Its end.
    End(FinishReason),
}

/// What may be set for a chat from the command line.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ChatOptions {
    /// 0 is greedy.
    pub temperature: Option<f32>,
    /// Same seed, same answer.
    pub seed: Option<u64>,
    /// Most tokens of the answer.
    pub max_tokens: Option<u32>,
}

/// A server at an address.
#[derive(Clone, Debug)]
pub struct Client {
    address: Address,
    agent: ureq::Agent,
}

impl Client {
    /// A client of the server at `address`. Connects to nothing yet.
    pub fn new(address: &Address) -> Self {
        let config = ureq::Agent::config_builder()
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .http_status_as_error(false)
            // The server is on this machine or this network: a proxy in the environment is for elsewhere.
            .proxy(None)
            .build();
        Self { address: address.to_connect(), agent: config.new_agent() }
    }

    /// Where the server is looked for.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// A short answer as text, with its status.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`].
    pub fn get(&self, path: &str) -> Result<(u16, String), ClientError> {
        let url = format!("http://{}{path}", self.address);
        let request = self.agent.get(&url).config().timeout_global(Some(ANSWER_TIMEOUT)).build();
        let mut response = request.call().map_err(|source| self.unreachable(source))?;
        let status = response.status().as_u16();
        let body = response.body_mut().with_config().limit(MAX_ANSWER_BYTES).lossy_utf8(true).read_to_string();
        Ok((status, body.map_err(|source| self.unreachable(source))?))
    }

    /// A short answer as JSON, whatever its status: `/health` has a body when it is ill.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`], or [`ClientError::Strange`] where it is no JSON.
    pub fn get_json(&self, path: &str) -> Result<Value, ClientError> {
        let (_, text) = self.get(path)?;
        serde_json::from_str(&text).map_err(|error| self.strange(error.to_string()))
    }

    /// Names of the models that the server serves.
    ///
    /// # Errors
    /// As [`Self::get_json`].
    pub fn models(&self) -> Result<Vec<String>, ClientError> {
        let list = self.get_json("/v1/models")?;
        let data = list["data"].as_array().ok_or_else(|| self.strange("/v1/models has no `data`".to_owned()))?;
        Ok(data.iter().filter_map(|model| model["id"].as_str().map(str::to_owned)).collect())
    }

    /// Streams an answer to `each` until it ends or `each` wants no more; then the connection is closed, which ends
    /// the request at the server.
    ///
    /// # Errors
    /// [`ClientError`], also in the middle of an answer.
    pub fn chat(
        &self,
        model: &str,
        messages: &[Message],
        options: ChatOptions,
        mut each: impl FnMut(Piece) -> bool,
    ) -> Result<(), ClientError> {
        let url = format!("http://{}/v1/chat/completions", self.address);
        let body = chat_body(model, messages, options).to_string();
        let request = self.agent.post(&url).header("Content-Type", "application/json");
        let response = request.send(&body).map_err(|source| self.unreachable(source))?;
        let status = response.status().as_u16();
        // An answer may be longer than any limit that suits short ones; the event reader has its own.
        let mut reader = response.into_body().into_with_config().limit(u64::MAX).reader();
        if status != 200 {
            let mut text = String::new();
            // What cannot be read of a refusal is not worth another error.
            let _ = (&mut reader).take(MAX_ANSWER_BYTES).read_to_string(&mut text);
            return Err(ClientError::Refused { address: self.address.clone(), status, message: error_message(&text) });
        }
        for event in SseEvents::new(BufReader::new(reader)) {
            let event = event.map_err(|source| self.unreachable(ureq::Error::Io(source)))?;
            if event == "[DONE]" {
                return Ok(());
            }
            for piece in pieces(&event).map_err(|reason| self.strange(reason))? {
                if !each(piece) {
                    return Ok(());
                }
            }
        }
        Err(self.strange("the answer broke off".to_owned()))
    }

    fn unreachable(&self, source: ureq::Error) -> ClientError {
        ClientError::Unreachable { address: self.address.clone(), source: Box::new(source) }
    }

    fn strange(&self, reason: String) -> ClientError {
        ClientError::Strange { address: self.address.clone(), reason }
    }
}

fn chat_body(model: &str, messages: &[Message], options: ChatOptions) -> Value {
    let messages: Vec<_> =
        messages.iter().map(|message| json!({ "role": message.role, "content": message.content })).collect();
    let mut body = json!({ "model": model, "messages": messages, "stream": true });
    let fields = [
        ("temperature", options.temperature.map(Value::from)),
        ("seed", options.seed.map(Value::from)),
        ("max_tokens", options.max_tokens.map(Value::from)),
    ];
    for (name, value) in fields {
        if let Some(value) = value {
            body[name] = value;
        }
    }
    body
}

/// What one event of a chat's stream says; the reason why it makes no sense, or the server's error.
fn pieces(event: &str) -> Result<Vec<Piece>, String> {
    let chunk: Value = serde_json::from_str(event).map_err(|error| error.to_string())?;
    if chunk.get("error").is_some() {
        return Err(error_message(event));
    }
    let mut pieces = Vec::new();
    for choice in chunk["choices"].as_array().into_iter().flatten() {
        if let Some(text) = choice["delta"]["content"].as_str().filter(|text| !text.is_empty()) {
            pieces.push(Piece::Text(text.to_owned()));
        }
        match choice["finish_reason"].as_str() {
            None => {}
            Some("length") => pieces.push(Piece::End(FinishReason::Length)),
            Some(_) => pieces.push(Piece::End(FinishReason::Stop)),
        }
    }
    Ok(pieces)
}

/// The message in an error of OpenAI's shape, else the beginning of the text.
fn error_message(text: &str) -> String {
    let body: Value = serde_json::from_str(text).unwrap_or_default();
    match body["error"]["message"].as_str().or_else(|| body["error"].as_str()) {
        Some(message) => message.to_owned(),
        None => text.chars().take(200).collect(),
    }
}

#[cfg(test)]
mod tests;
