//! `/api/generate`: one prompt, by the model's template or as it is.

use std::sync::Arc;
use std::time::Instant;

use axum::Extension;
use axum::extract::{Request, State};
use axum::response::Response;
use serde::Deserialize;
use serde_json::Value;

use crate::llm::{Chat, Message, Prompt};
use crate::server::body;
use crate::server::error::ApiError;
use crate::server::guard::RequestRecord;
use crate::server::parts::Parts;
use crate::server::run::Run;
use crate::server::state::App;

use super::answer::{Form, Place};
use super::chat::answer;
use super::load::{LoadedFor, load, only_load, tell_context};
use super::messages::refuse_images;
use super::options::Fields;

/// The fields that only this route has.
#[derive(Debug, Deserialize)]
struct GenerateBody {
    #[serde(default)]
    prompt: String,
    system: Option<String>,
    raw: Option<bool>,
    suffix: Option<String>,
    template: Option<String>,
    context: Option<Vec<Value>>,
    images: Option<Vec<Value>>,
}

impl GenerateBody {
    /// Leaving these out silently would give another answer than the one that was asked for.
    fn refuse(&self) -> Result<(), ApiError> {
        refuse_images(self.images.as_deref(), "body")?;
        let set = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
        let refused = [
            ("suffix", set(&self.suffix), "filling in before a suffix is not there; send what comes before it alone"),
            ("template", set(&self.template), "the model's own template is used; `raw` does without one"),
            (
                "context",
                self.context.as_ref().is_some_and(|context| !context.is_empty()),
                "send the conversation to /api/chat; what it has in common with the last one is not computed again",
            ),
        ];
        match refused.into_iter().find(|(_, asked, _)| *asked) {
            Some((name, _, why)) => Err(ApiError::unsupported(name, why)),
            None => Ok(()),
        }
    }
}

pub(super) async fn create(
    State(app): State<App>,
    Extension(record): Extension<Arc<RequestRecord>>,
    request: Request,
) -> Result<Response, ApiError> {
    let started = Instant::now();
    let (tenant, bytes) = app.receive(request).await?;
    let (fields, body): (Fields, GenerateBody) = (body::parse(&bytes)?, body::parse(&bytes)?);
    drop(bytes);
    body.refuse()?;
    if body.prompt.is_empty() {
        return only_load(&app, &fields, Place::Response).await;
    }
    let LoadedFor { model, load_ns } = load(&app, &fields).await?;
    let prompt = if body.raw.unwrap_or(false) {
        Prompt::Text(body.prompt)
    } else {
        let system = body.system.filter(|system| !system.is_empty()).map(Message::system);
        let messages = system.into_iter().chain([Message::user(body.prompt)]).collect();
        Prompt::Chat(Chat { messages, template_variables: fields.template_variables()?, ..Chat::default() })
    };
    let generate = fields.request(prompt, tenant)?;
    let run = Run::start(&app, &model, record, vec![generate], true).await.map_err(|mut error| {
        if fields.may_truncate() && error.code == Some("context_length_exceeded") {
            error.message.push_str("; `truncate` leaves out the oldest messages of a chat, and one prompt has none");
        }
        error
    })?;
    let form = Form {
        app: app.clone(),
        llm: model.llm.clone(),
        model: fields.model.clone(),
        place: Place::Response,
        parts: Parts::new(run.answer_parser(), false),
        started,
        load_ns,
        wants_logprobs: fields.logprobs.unwrap_or(false),
    };
    tell_context(&model, &fields, answer(&app, run, form, fields.is_stream()).await?)
}
