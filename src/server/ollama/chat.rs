//! `/api/chat`.
//!
//! Knows no template: the messages go to the model's own, and so do tools.

use std::sync::Arc;
use std::time::Instant;

use axum::Extension;
use axum::extract::{Request, State};
use axum::http::HeaderValue;
use axum::response::Response;
use serde::Deserialize;
use serde_json::Value;

use crate::llm::{Chat, GenerateRequest, Prompt};
use crate::server::body::Object;
use crate::server::error::ApiError;
use crate::server::guard::RequestRecord;
use crate::server::models::Served;
use crate::server::parts::Parts;
use crate::server::run::Run;
use crate::server::state::App;
use crate::server::{body, chats, stream};

use super::answer::{Form, Lines, Place};
use super::load::{LoadedFor, load, only_load, tell_context};
use super::messages::{ChatMessage, translate};
use super::options::Fields;

/// How many of the oldest messages were left out, where `truncate` asked for it.
const LEFT_OUT: &str = "x-lantern-messages-left-out";

/// The fields that only a chat has.
#[derive(Debug, Deserialize)]
struct ChatBody {
    #[serde(default)]
    messages: Vec<Object<ChatMessage>>,
    tools: Option<Vec<Value>>,
}

pub(super) async fn create(
    State(app): State<App>,
    Extension(record): Extension<Arc<RequestRecord>>,
    request: Request,
) -> Result<Response, ApiError> {
    let started = Instant::now();
    let (tenant, bytes) = app.receive(request).await?;
    let (fields, chat): (Fields, ChatBody) = (body::parse(&bytes)?, body::parse(&bytes)?);
    drop(bytes);
    if chat.messages.is_empty() {
        return only_load(&app, &fields, Place::Message).await;
    }
    let LoadedFor { model, load_ns } = load(&app, &fields).await?;
    let chat = Chat {
        messages: translate(chat.messages)?,
        tools: chats::functions(chat.tools)?,
        template_variables: fields.template_variables()?,
        ..Chat::default()
    };
    let generate = fields.request(Prompt::Chat(chat), tenant)?;
    let (run, left_out) = start(&app, &model, record, generate, fields.may_truncate()).await?;
    let form = Form {
        app: app.clone(),
        llm: model.llm.clone(),
        model: fields.model.clone(),
        place: Place::Message,
        parts: Parts::new(run.answer_parser(), false),
        started,
        load_ns,
        wants_logprobs: fields.logprobs.unwrap_or(false),
    };
    let mut response = answer(&app, run, form, fields.is_stream()).await?;
    if left_out > 0 {
        response.headers_mut().insert(LEFT_OUT, HeaderValue::from(left_out));
    }
    tell_context(&model, &fields, response)
}

/// The answer to a running request, line by line or whole.
pub(super) async fn answer(app: &App, run: Run, mut form: Form, is_stream: bool) -> Result<Response, ApiError> {
    if is_stream {
        return Ok(stream::respond(app, run, Lines::new(form)));
    }
    let all = run.whole(std::slice::from_mut(&mut form.parts)).await?;
    Ok(form.whole(all))
}

/// Starts a request; where it `may_truncate` and is too long, without as many of its oldest messages as it takes. How
/// many were left out.
async fn start(
    app: &App,
    model: &Served,
    record: Arc<RequestRecord>,
    request: GenerateRequest,
    may_truncate: bool,
) -> Result<(Run, usize), ApiError> {
    let whole = may_truncate.then(|| request.clone());
    let error = match Run::start(app, model, record.clone(), vec![request], true).await {
        Ok(run) => return Ok((run, 0)),
        Err(error) => error.naming_prompt("messages"),
    };
    let Some(request) = whole.filter(|_| error.code == Some("context_length_exceeded")) else {
        return Err(error);
    };
    let llm = model.llm.clone();
    let Some((request, left_out)) = app.encode(move || fit(&llm, request)).await? else { return Err(error) };
    tracing::info!(left_out, "the chat was too long; its oldest messages were left out, as `truncate` asks");
    Ok((Run::start(app, model, record, vec![request], true).await?, left_out))
}

/// `request` without as few of its oldest messages as make it fit, system messages apart; `None` where not even the last
/// message does. By halving: a prompt grows with its messages.
fn fit(llm: &crate::llm::Llm, request: GenerateRequest) -> Option<(GenerateRequest, usize)> {
    let Prompt::Chat(chat) = &request.prompt else { return None };
    let old: Vec<usize> = (0..chat.messages.len() - 1).filter(|at| chat.messages[*at].role != "system").collect();
    let without = |count: usize| {
        let mut shorter = chat.clone();
        let mut index = 0..;
        shorter.messages.retain(|_| index.next().is_some_and(|index| !old[..count].contains(&index)));
        // A tool's result without its call is no conversation.
        let first = shorter.messages.iter().position(|message| message.role != "system");
        while let Some(at) = first.filter(|at| shorter.messages.get(*at).is_some_and(|first| first.role == "tool")) {
            shorter.messages.remove(at);
        }
        let left_out = chat.messages.len() - shorter.messages.len();
        (GenerateRequest { prompt: Prompt::Chat(shorter), ..request.clone() }, left_out)
    };
    let max_context = request.max_context.unwrap_or(u32::MAX).min(llm.engine().limits().max_context) as usize;
    let fits = |request: &GenerateRequest| {
        llm.prompt_tokens(&request.prompt).is_ok_and(|prompt| (1..max_context).contains(&prompt.len()))
    };
    let (mut too_few, mut enough) = (0, old.len());
    if !fits(&without(enough).0) {
        return None;
    }
    while too_few + 1 < enough {
        let middle = too_few.midpoint(enough);
        if fits(&without(middle).0) {
            enough = middle;
        } else {
            too_few = middle;
        }
    }
    Some(without(enough))
}
