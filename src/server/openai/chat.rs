//! `/v1/chat/completions`: the request.
//!
//! Knows no template: the messages go to the model's own, and so do tools.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Request, State};
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::llm::{Chat, GenerateRequest, Prompt};
use crate::request::Tenant;
use crate::server::body::Object;
use crate::server::chats::ToolChoice;
use crate::server::error::ApiError;
use crate::server::grammars::FormFields;
use crate::server::guard::RequestRecord;
use crate::server::parts::Parts;
use crate::server::run::Run;
use crate::server::state::App;
use crate::server::{body, chats, stream};

use super::Envelope;
use super::chat_form::{ChatStream, Told, whole};
use super::fields::Fields;
use super::messages::{ChatMessage, ended, translate};
use super::refused::Refused;

/// The fields that only a chat has.
#[derive(Debug, Deserialize)]
struct ChatBody {
    messages: Vec<Object<ChatMessage>>,
    tools: Option<Vec<Value>>,
    tool_choice: Option<Value>,
    logprobs: Option<bool>,
    top_logprobs: Option<u32>,
    chat_template_kwargs: Option<Map<String, Value>>,
    add_generation_prompt: Option<bool>,
    continue_final_message: Option<bool>,
    echo: Option<bool>,
    add_special_tokens: Option<bool>,
    parallel_tool_calls: Option<bool>,
    reasoning_effort: Option<String>,
}

pub(super) async fn create(
    State(app): State<App>,
    Extension(record): Extension<Arc<RequestRecord>>,
    request: Request,
) -> Result<Response, ApiError> {
    let (tenant, bytes) = app.receive(request).await?;
    let (mut fields, chat): (Fields, ChatBody) = (body::parse(&bytes)?, body::parse(&bytes)?);
    fields.grammar = body::parse::<FormFields>(&bytes)?.grammar()?;
    body::parse::<Refused>(&bytes)?.check()?;
    drop(bytes);
    let model = app.models.get(&fields.model).await?;
    let told = Told {
        logprobs: chat.logprobs.unwrap_or(false),
        prompt_logprobs: fields.prompt_logprobs.is_some(),
        ids: fields.returns_token_ids(),
    };
    let one_call = chat.parallel_tool_calls == Some(false);
    let (mut generate, choice) = translate_body(&fields, chat, tenant)?;
    if let Prompt::Chat(chat) = &generate.prompt
        && let Some(forced) = chat.tools.as_ref().and_then(Value::as_array).and_then(|tools| choice.forced(tools))
    {
        if generate.grammar.is_some() {
            return Err(ApiError::invalid("tool_choice", "an answer of one form and a forced call exclude each other"));
        }
        generate.grammar_field = "tools";
        generate.grammar = Some(model.llm.forced_calls(&forced, one_call || matches!(choice, ToolChoice::Named(_))));
    }
    let run = Run::start(&app, &model, record, vec![generate], true)
        .await
        .map_err(|error| error.naming_prompt("messages"))?;
    let prompts = run.prompts();
    let taken_apart = if fields.is_stream() { Parts::in_pieces } else { Parts::new };
    let choices = 0..run.choices_per_prompt();
    let mut parts: Vec<_> = choices.map(|_| taken_apart(run.answer_parser(), one_call)).collect();
    if fields.is_stream() {
        let envelope = Envelope::new(&app, "chatcmpl", "chat.completion.chunk", fields.model.clone());
        let form = ChatStream::new(&app, &model.llm, envelope, &prompts[0], fields.stream_usage(), told, parts);
        return Ok(stream::respond(&app, run, form));
    }
    let envelope = Envelope::new(&app, "chatcmpl", "chat.completion", fields.model.clone());
    let all = run.whole(&mut parts).await?;
    Ok(whole(&app, &model.llm, &envelope, &prompts[0], all, &parts, &told))
}

fn translate_body(fields: &Fields, body: ChatBody, tenant: Tenant) -> Result<(GenerateRequest, ToolChoice), ApiError> {
    if body.echo == Some(true) {
        return Err(ApiError::unsupported("echo", "a chat does not repeat its prompt; completions do"));
    }
    if body.add_special_tokens == Some(true) {
        return Err(ApiError::unsupported("add_special_tokens", "the model's template writes those that a chat has"));
    }
    let (tools, choice) = tools(body.tools, body.tool_choice.as_ref())?;
    let forms = fields.grammar.is_some() || matches!(choice, ToolChoice::Required | ToolChoice::Named(_));
    let mut template_variables = body.chat_template_kwargs.unwrap_or_default();
    // Thoughts have no place in an answer of one form.
    let thinks = thinks(body.reasoning_effort.as_deref(), &template_variables);
    if let Some(thinks) = thinks.or(forms.then_some(false)) {
        chats::set_thinking(&mut template_variables, thinks);
    }
    chats::set_effort(&mut template_variables, body.reasoning_effort.as_deref());
    let messages = translate(body.messages)?;
    let chat = Chat { messages, tools, template_variables, ..Chat::default() };
    let chat = ended(chat, body.add_generation_prompt, body.continue_final_message)?;
    let mut request = fields.request(Prompt::Chat(chat), tenant)?;
    request.sampling.logprobs = match (body.logprobs.unwrap_or(false), body.top_logprobs) {
        (true, top) => Some(top.unwrap_or(0)),
        (false, None | Some(0)) => None,
        (false, Some(_)) => return Err(ApiError::invalid("top_logprobs", "it needs `logprobs` to be true")),
    };
    Ok((request, choice))
}

/// Whether the model is to think first, where the request says so.
fn thinks(effort: Option<&str>, variables: &Map<String, Value>) -> Option<bool> {
    let told = variables.get("enable_thinking").or_else(|| variables.get("thinking")).and_then(Value::as_bool);
    told.or_else(|| effort.map(|effort| effort != "none"))
}

/// What the template may show of the tools, and which are to be called.
fn tools(tools: Option<Vec<Value>>, choice: Option<&Value>) -> Result<(Option<Value>, ToolChoice), ApiError> {
    let tools = chats::only_allowed(chats::functions(tools)?, choice)?;
    let choice = choice.map_or(Ok(ToolChoice::Auto), ToolChoice::read)?;
    if let ToolChoice::Named(name) = &choice {
        let named = |tool: &&Value| tool["function"]["name"] == name.as_str();
        if !tools.as_ref().and_then(Value::as_array).into_iter().flatten().any(|tool| named(&tool)) {
            return Err(ApiError::invalid("tool_choice", format!("no tool is called `{name}`")));
        }
    }
    if choice == ToolChoice::Required && tools.is_none() {
        return Err(ApiError::invalid("tool_choice", "a call is required, and there are no tools"));
    }
    Ok((tools.filter(|_| choice != ToolChoice::None), choice))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn request(more: Value) -> Result<GenerateRequest, ApiError> {
        let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        let bytes = body.to_string().into_bytes();
        Ok(translate_body(&body::parse(&bytes)?, body::parse(&bytes)?, Tenant::default())?.0)
    }

    fn chat(more: Value) -> Chat {
        match request(more).expect("valid").prompt {
            Prompt::Chat(chat) => chat,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn tools_go_to_the_template_unless_none_are_wanted() {
        let tools = json!([{"type": "function", "function": {"name": "f"}}]);
        assert_eq!(chat(json!({"tools": tools, "tool_choice": "auto"})).tools, Some(tools.clone()));
        assert_eq!(chat(json!({"tools": tools, "tool_choice": null})).tools, Some(tools.clone()));
        assert_eq!(chat(json!({"tools": tools, "tool_choice": "none"})).tools, None);
        assert_eq!(chat(json!({"tools": []})).tools, None);
        let two = json!([tools[0], {"type": "function", "function": {"name": "g"}}]);
        let allowed = json!({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": tools}});
        assert_eq!(chat(json!({"tools": two, "tool_choice": allowed})).tools, Some(tools));
    }

    #[test]
    fn template_variables_and_continuing_arrive() {
        let chat = chat(json!({"chat_template_kwargs": {"enable_thinking": false}, "continue_final_message": true}));
        assert_eq!(chat.template_variables["enable_thinking"], json!(false));
        assert!(chat.continue_final_message);
    }

    #[test]
    fn logprobs_are_a_switch_and_a_number() {
        let logprobs = |more| request(more).map(|request| request.sampling.logprobs);
        assert_eq!(logprobs(json!({})), Ok(None));
        assert_eq!(logprobs(json!({"logprobs": true})), Ok(Some(0)));
        assert_eq!(logprobs(json!({"logprobs": true, "top_logprobs": 5})), Ok(Some(5)));
        assert_eq!(logprobs(json!({"logprobs": false, "top_logprobs": 0})), Ok(None));
    }

    #[test]
    fn what_is_not_done_is_refused_by_name() {
        let tool = json!([{"type": "function", "function": {"name": "f"}}]);
        let cases = [
            (json!({"tool_choice": "required"}), "tool_choice"),
            (json!({"tools": tool, "tool_choice": {"type": "function", "function": {"name": "g"}}}), "tool_choice"),
            (json!({"tool_choice": "sometimes"}), "tool_choice"),
            (json!({"tools": [{"type": "web_search"}]}), "tools[0].type"),
            (json!({"tools": [{"type": "function", "function": {}}]}), "tools[0].function"),
            (json!({"top_logprobs": 3}), "top_logprobs"),
            (json!({"echo": true}), "echo"),
            (json!({"add_generation_prompt": true, "continue_final_message": true}), "add_generation_prompt"),
        ];
        for (more, name) in cases {
            let error = request(more.clone()).expect_err(name);
            assert_eq!((error.status.as_u16(), error.param.as_deref()), (400, Some(name)), "{more}");
        }
    }
}
