//! `/tokenize` and `/detokenize`, as vLLM has them.

use axum::Json;
use axum::extract::{Request, State};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::llm::{Chat, Prompt};
use crate::request::TokenId;
use crate::server::body::{self, Object};
use crate::server::chats;
use crate::server::error::ApiError;
use crate::server::state::App;

use super::messages::{ChatMessage, ended, translate};

#[derive(Debug, Deserialize)]
struct TokenizeBody {
    model: String,
    prompt: Option<String>,
    messages: Option<Vec<Object<ChatMessage>>>,
    tools: Option<Vec<Value>>,
    chat_template_kwargs: Option<Map<String, Value>>,
    add_generation_prompt: Option<bool>,
    continue_final_message: Option<bool>,
    add_special_tokens: Option<bool>,
    return_token_strs: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct DetokenizeBody {
    model: String,
    tokens: Vec<TokenId>,
}

/// The tokens of a text or of a chat.
pub(super) async fn tokenize(State(app): State<App>, request: Request) -> Result<Json<Value>, ApiError> {
    let bytes = body::read(&app.config, request).await?;
    let fields: TokenizeBody = body::parse(&bytes)?;
    let llm = app.models.get(&fields.model).await?.llm.clone();
    let prompt = match (fields.prompt, fields.messages) {
        (Some(text), None) if fields.add_special_tokens == Some(false) => Prompt::PlainText(text),
        (Some(text), None) => Prompt::Text(text),
        (None, Some(messages)) => {
            let chat = Chat {
                messages: translate(messages)?,
                tools: chats::functions(fields.tools)?,
                template_variables: fields.chat_template_kwargs.unwrap_or_default(),
                ..Chat::default()
            };
            Prompt::Chat(ended(chat, fields.add_generation_prompt, fields.continue_final_message)?)
        }
        _ => return Err(ApiError::invalid("prompt", "either `prompt` or `messages` is needed")),
    };
    let encoding = llm.clone();
    let tokens = app.encode(move || encoding.prompt_tokens(&prompt)).await??;
    let texts = fields.return_token_strs.unwrap_or(false).then(|| {
        let texts = tokens.iter().map(|token| llm.token_text(*token));
        texts.collect::<Vec<_>>()
    });
    Ok(Json(json!({
        "count": tokens.len(),
        "max_model_len": llm.engine().limits().max_context,
        "tokens": tokens,
        "token_strs": texts,
    })))
}

/// The text of tokens, special ones written out.
pub(super) async fn detokenize(State(app): State<App>, request: Request) -> Result<Json<Value>, ApiError> {
    let bytes = body::read(&app.config, request).await?;
    let fields: DetokenizeBody = body::parse(&bytes)?;
    let llm = app.models.get(&fields.model).await?.llm.clone();
    let vocab_size = llm.engine().limits().vocab_size;
    if let Some(token) = fields.tokens.iter().find(|token| **token >= vocab_size) {
        let problem = format!("token id {token} is outside the vocabulary of {vocab_size}");
        return Err(ApiError::invalid("tokens", problem));
    }
    let text = app.encode(move || llm.decode_with_special(&fields.tokens)).await?;
    Ok(Json(json!({ "prompt": text })))
}
