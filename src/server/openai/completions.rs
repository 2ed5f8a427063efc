//! `/v1/completions`: the request.
//!
//! Knows no template: prompts are continued as they are.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Request, State};
use axum::response::Response;
use serde::Deserialize;

use crate::llm::{GenerateRequest, Llm, Prompt};
use crate::request::TokenId;
use crate::server::error::ApiError;
use crate::server::grammars::FormFields;
use crate::server::guard::RequestRecord;
use crate::server::parts::Parts;
use crate::server::run::Run;
use crate::server::state::App;
use crate::server::{body, stream};

use super::Envelope;
use super::completion_form::{CompletionForm, CompletionStream};
use super::fields::Fields;
use super::prompt::Prompts;
use super::refused::Refused;

/// What OpenAI generates where nobody says how much.
const DEFAULT_MAX_TOKENS: u32 = 16;

/// The fields that only a completion has.
#[derive(Debug, Deserialize)]
struct CompletionBody {
    prompt: Option<Prompts>,
    echo: Option<bool>,
    logprobs: Option<u32>,
    best_of: Option<u32>,
    add_special_tokens: Option<bool>,
}

pub(super) async fn create(
    State(app): State<App>,
    Extension(record): Extension<Arc<RequestRecord>>,
    request: Request,
) -> Result<Response, ApiError> {
    let (tenant, bytes) = app.receive(request).await?;
    let (mut fields, body): (Fields, CompletionBody) = (body::parse(&bytes)?, body::parse(&bytes)?);
    fields.grammar = body::parse::<FormFields>(&bytes)?.grammar()?;
    body::parse::<Refused>(&bytes)?.check()?;
    drop(bytes);
    let model = app.models.get(&fields.model).await?;
    check_best_of(&fields, &body)?;
    let echo = body.echo.unwrap_or(false);
    let generates = !(echo && fields.max_tokens == Some(0));
    if !generates {
        // The engine generates at least one token; it is left out of what is told.
        fields.max_tokens = Some(1);
    }
    if fields.max_completion_tokens.is_none() {
        fields.max_tokens.get_or_insert(DEFAULT_MAX_TOKENS.max(fields.min_tokens()));
    }
    let prompts = prompts(&app, &model.llm, body.prompt, body.add_special_tokens)?;
    let texts: Vec<_> = prompts.iter().map(|prompt| if echo { shown(prompt) } else { None }).collect();
    let one = |prompt| {
        let mut request = fields.request(prompt, tenant.clone())?;
        request.sampling.logprobs = body.logprobs;
        if echo {
            request.sampling.prompt_logprobs = request.sampling.prompt_logprobs.max(body.logprobs);
        }
        Ok(request)
    };
    let requests = prompts.into_iter().map(one).collect::<Result<Vec<GenerateRequest>, ApiError>>()?;
    let run = Run::start(&app, &model, record, requests, generates).await?;
    let decoded = |(text, tokens): (Option<String>, &Vec<TokenId>)| text.unwrap_or_else(|| model.llm.decode(tokens));
    let echoed = if echo { texts.into_iter().zip(run.prompts().iter()).map(decoded).collect() } else { Vec::new() };
    let form = CompletionForm {
        envelope: Envelope::new(&app, "cmpl", "text_completion", fields.model.clone()),
        prompts: run.prompts(),
        choices_per_prompt: run.choices_per_prompt(),
        echoed,
        wants_logprobs: body.logprobs.is_some(),
        wants_prompt_logprobs: fields.prompt_logprobs.is_some(),
        wants_ids: fields.returns_token_ids(),
        llm: model.llm.clone(),
    };
    if fields.is_stream() {
        return Ok(stream::respond(&app, run, CompletionStream::new(form, fields.stream_usage())));
    }
    let choices = run.prompts().len() * run.choices_per_prompt();
    let mut parts: Vec<_> = (0..choices).map(|_| Parts::new(None, false)).collect();
    Ok(form.whole(run.whole(&mut parts).await?))
}

fn check_best_of(fields: &Fields, body: &CompletionBody) -> Result<(), ApiError> {
    match body.best_of {
        Some(best_of) if best_of != fields.n.unwrap_or(1) => {
            let why = "answers are not generated to be thrown away; leave it out, or ask for as many with `n`";
            Err(ApiError::unsupported("best_of", why))
        }
        _ => Ok(()),
    }
}

fn prompts(
    app: &App,
    llm: &Llm,
    prompts: Option<Prompts>,
    add_special_tokens: Option<bool>,
) -> Result<Vec<Prompt>, ApiError> {
    let prompts = prompts.ok_or_else(|| ApiError::invalid("prompt", "it is missing"))?;
    let prompts = prompts.with_special_tokens(add_special_tokens);
    // A list longer than the engine's whole queue could never be taken, however often it is sent again.
    let engine = llm.engine().limits();
    let most = app.config.max_prompts.min(engine.max_waiting as usize + engine.max_sequences as usize);
    match prompts.len() {
        0 => Err(ApiError::invalid("prompt", "the list is empty; at least one prompt is needed")),
        count if count > most => {
            Err(ApiError::invalid("prompt", format!("{count} prompts are more than the limit of {most} (max_prompts)")))
        }
        _ => Ok(prompts),
    }
}

fn shown(prompt: &Prompt) -> Option<String> {
    match prompt {
        Prompt::Text(text) | Prompt::PlainText(text) => Some(text.clone()),
        Prompt::Tokens(_) | Prompt::Chat(_) => None,
    }
}
