//! Log-probabilities in the three forms that clients read: chat's, completions', and vLLM's of a prompt.
//!
//! Knows no requests.

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::llm::{GeneratedToken, Llm};
use crate::request::{TokenId, TokenLogprobs};

/// JSON has no infinity; this is what stands for a token that cannot be.
const IMPOSSIBLE: f32 = -9999.0;

fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { IMPOSSIBLE }
}

/// `choices[].logprobs` of a chat.
#[derive(Debug, Default, Serialize)]
pub(super) struct ChatLogprobs {
    content: Vec<ChatToken>,
    refusal: Option<()>,
}

/// One token of those.
#[derive(Debug, Serialize)]
pub(super) struct ChatToken {
    #[serde(flatten)]
    chosen: ChatAlternative,
    top_logprobs: Vec<ChatAlternative>,
}

#[derive(Debug, Serialize)]
struct ChatAlternative {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

/// Chat's form of `tokens`.
pub(super) fn chat(llm: &Llm, tokens: &[GeneratedToken]) -> ChatLogprobs {
    ChatLogprobs { content: each(llm, tokens), refusal: None }
}

/// Chat's form of each of `tokens` that has log-probabilities.
pub(super) fn each(llm: &Llm, tokens: &[GeneratedToken]) -> Vec<ChatToken> {
    let alternative = |token: TokenId, logprob: f32| ChatAlternative {
        token: llm.token_text(token),
        logprob: finite(logprob),
        bytes: llm.token_bytes(token).to_vec(),
    };
    let one = |generated: &GeneratedToken| {
        let logprobs = generated.logprobs.as_ref()?;
        Some(ChatToken {
            chosen: alternative(generated.token, logprobs.logprob),
            top_logprobs: logprobs.top.iter().map(|(token, logprob)| alternative(*token, *logprob)).collect(),
        })
    };
    tokens.iter().filter_map(one).collect()
}

/// `choices[].logprobs` of a completion.
#[derive(Debug, Default, Serialize)]
pub(super) struct CompletionLogprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f32>>,
    top_logprobs: Vec<Option<Map<String, Value>>>,
    text_offset: Vec<usize>,
}

impl CompletionLogprobs {
    /// Appends a prompt; its first token has no probability, since nothing comes before it. `offset` is where the
    /// next token's text begins in the answer's text, in characters.
    pub(super) fn push_prompt(
        &mut self,
        llm: &Llm,
        tokens: &[TokenId],
        logprobs: &[TokenLogprobs],
        offset: &mut usize,
    ) {
        let mut logprobs = logprobs.iter();
        for (index, token) in tokens.iter().enumerate() {
            let own = if index == 0 { None } else { logprobs.next() };
            self.push(llm, *token, own, offset);
        }
    }

    /// Appends generated tokens.
    pub(super) fn push_generated(&mut self, llm: &Llm, tokens: &[GeneratedToken], offset: &mut usize) {
        for generated in tokens {
            self.push(llm, generated.token, generated.logprobs.as_ref(), offset);
        }
    }

    fn push(&mut self, llm: &Llm, token: TokenId, logprobs: Option<&TokenLogprobs>, offset: &mut usize) {
        let text = readable(llm, token);
        self.token_logprobs.push(logprobs.map(|logprobs| finite(logprobs.logprob)));
        self.top_logprobs.push(logprobs.map(|logprobs| {
            let mut top = Map::new();
            let chosen = (token, logprobs.logprob);
            for (token, logprob) in logprobs.top.iter().chain([&chosen]) {
                // Best first: of two tokens with the same text the likelier one stands.
                top.entry(readable(llm, *token)).or_insert_with(|| json!(finite(*logprob)));
            }
            top
        }));
        self.text_offset.push(*offset);
        *offset += llm.token_text(token).chars().count();
        self.tokens.push(text);
    }
}

/// A token's text; one that is not whole characters is written as its bytes, so that different tokens stay different.
fn readable(llm: &Llm, token: TokenId) -> String {
    let bytes = llm.token_bytes(token);
    std::str::from_utf8(bytes).map(str::to_owned).unwrap_or_else(|_| {
        let hex: String = bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect();
        format!("bytes:{hex}")
    })
}

/// vLLM's `prompt_logprobs`: for each prompt token its own and its alternatives by id; `null` for the first.
pub(super) fn prompt(llm: &Llm, tokens: &[TokenId], logprobs: &[TokenLogprobs]) -> Vec<Option<Map<String, Value>>> {
    let mut all = vec![None];
    for (token, own) in tokens.iter().skip(1).zip(logprobs) {
        let mut by_id = Map::new();
        let top = own.top.iter().enumerate().map(|(place, (token, logprob))| (*token, *logprob, place as u32 + 1));
        for (token, logprob, rank) in [(*token, own.logprob, own.rank)].into_iter().chain(top) {
            let entry = json!({ "logprob": finite(logprob), "rank": rank, "decoded_token": llm.token_text(token) });
            by_id.entry(token.to_string()).or_insert(entry);
        }
        all.push(Some(by_id));
    }
    all.truncate(tokens.len());
    all
}
