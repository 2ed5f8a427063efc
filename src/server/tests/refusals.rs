//! What is refused, how, and by what name.

use axum::body::Body;
use axum::http::{Method, StatusCode};
use serde_json::json;

use super::fixture::*;
use crate::engine::EngineLimits;
use crate::llm::GenerateError;
use crate::server::error::ApiError;
use crate::server::router;

const CHAT: &str = "/v1/chat/completions";

fn named(status: u16, code: &str, param: &str) -> (u16, Option<String>, Option<String>) {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    (status, some(code), some(param))
}

#[tokio::test]
async fn a_prompt_that_is_too_long_is_refused_with_both_counts() {
    let (router, _requests) = saying("a");
    let long = "x".repeat(600);
    let reply = post(&router, "/v1/completions", completion_body(json!({"prompt": long}))).await;
    assert_eq!(reply.error(), named(400, "context_length_exceeded", "prompt"));
    assert!(reply.message().contains("600") && reply.message().contains("512"), "{}", reply.text);
    let messages = json!([{"role": "user", "content": long}]);
    let reply = post(&router, CHAT, chat_body(json!({"messages": messages, "stream": true}))).await;
    assert_eq!(reply.error(), named(400, "context_length_exceeded", "messages"), "before the stream begins");
}

#[tokio::test]
async fn parameters_that_the_engine_refuses_are_named() {
    let (router, _requests) = saying("a");
    let cases = [
        (json!({"temperature": -1}), "temperature"),
        (json!({"top_p": 0}), "top_p"),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (json!({"guided_regex": "a", "guided_choice": ["a"]}), "guided_choice"),
        (json!({"presence_penalty": 3}), "presence_penalty"),
        (json!({"logit_bias": {"9999": 1}}), "logit_bias"),
        (json!({"logit_bias": {"1": 101}}), "logit_bias"),
        (json!({"n": 0}), "n"),
        (json!({"n": 5}), "n"),
        (json!({"logprobs": true, "top_logprobs": 21}), "logprobs"),
        (json!({"stop": ""}), "stop"),
    ];
    for (more, name) in cases {
        let reply = post(&router, CHAT, chat_body(more.clone())).await;
        assert_eq!(reply.error(), named(400, "", name), "{more}");
    }
    let reply = post(&router, "/v1/completions", completion_body(json!({"prompt": [1, 300]}))).await;
    assert_eq!(reply.error(), named(400, "", "prompt"));
    let reply = post(&router, "/v1/completions", completion_body(json!({"prompt": ""}))).await;
    assert_eq!(reply.error(), named(400, "", "prompt"));
}

#[tokio::test]
async fn what_this_server_does_not_do_is_refused_and_not_ignored() {
    let (router, _requests) = saying("a");
    let chat = [(json!({"functions": [{"name": "f"}]}), "functions")];
    for (more, name) in chat {
        assert_eq!(post(&router, CHAT, chat_body(more)).await.error(), named(400, "unsupported_parameter", name));
    }
    let completions = [
        (json!({"best_of": 3}), "best_of"),
        (json!({"suffix": "end"}), "suffix"),
        (json!({"stream": true, "prompt_logprobs": 1}), "prompt_logprobs"),
    ];
    for (more, name) in completions {
        let reply = post(&router, "/v1/completions", completion_body(more)).await;
        assert_eq!(reply.error(), named(400, "unsupported_parameter", name));
    }
    let all = post(&router, "/v1/completions", completion_body(json!({"prompt_logprobs": -1}))).await;
    assert!(all.status == 400 && all.message().contains("0 to 20"), "{}", all.text);
    let same = post(&router, "/v1/completions", completion_body(json!({"best_of": 2, "n": 2}))).await;
    assert_eq!(same.status, 200, "{}", same.text);
}

#[tokio::test]
async fn limits_of_completions_have_names() {
    let (router, _requests) = saying("a");
    let cases = [
        (json!({"prompt": ["a", "b", "c", "d"]}), "prompt"),
        (json!({"prompt": []}), "prompt"),
        (json!({"prompt": null}), "prompt"),
        (json!({"max_tokens": 0}), "max_tokens"),
    ];
    for (more, name) in cases {
        let reply = post(&router, "/v1/completions", completion_body(more.clone())).await;
        assert_eq!(reply.error(), named(400, "", name), "{more}");
    }
    let reply = post(&router, "/v1/completions", completion_body(json!({"prompt": ["a", "b", "c", "d"]}))).await;
    assert!(reply.message().contains("max_prompts"), "{}", reply.text);
}

#[tokio::test]
async fn a_model_that_is_not_served_is_not_found() {
    let (router, _requests) = saying("a");
    let reply = post(&router, CHAT, chat_body(json!({"model": "gpt-4"}))).await;
    assert_eq!(reply.error(), named(404, "model_not_found", "model"));
    assert!(reply.message().contains("`tiny:1b`, `other-name`"), "{}", reply.text);
    let reply = send_request(&router, request(Method::POST, CHAT, r#"{"messages": []}"#)).await;
    assert_eq!(reply.status, StatusCode::BAD_REQUEST);
    assert!(reply.message().contains("missing field `model`"), "{}", reply.text);
}

#[tokio::test]
async fn wrong_json_is_a_400() {
    let (router, _requests) = saying("a");
    for body in ["", "{", "not json", "{\"model\": \"x\",", "\u{feff}{}"] {
        let reply = send_request(&router, request(Method::POST, CHAT, body)).await;
        assert_eq!(reply.error(), named(400, "invalid_json", ""), "{body}");
    }
    for body in ["null", "5", "[]", "[\"tiny:1b\"]", "\"text\""] {
        let reply = send_request(&router, request(Method::POST, CHAT, body)).await;
        assert_eq!(reply.error().0, 400, "{body}: {}", reply.text);
    }
    let invalid_utf8 = Body::from(b"{\"model\": \"\xff\"}".to_vec());
    assert_eq!(send_request(&router, request(Method::POST, CHAT, invalid_utf8)).await.error().0, 400);
}

#[tokio::test]
async fn a_body_that_is_too_large_or_too_deep_is_refused_with_the_limit() {
    let (router, _requests) = saying("a");
    let large = chat_body(json!({"user": "x".repeat(70_000)})).to_string();
    let announced = send_request(&router, {
        let mut request = request(Method::POST, CHAT, large.clone());
        request.headers_mut().insert("content-length", large.len().into());
        request
    });
    let chunks =
        large.into_bytes().chunks(1000).map(|chunk| Ok::<_, std::io::Error>(chunk.to_vec())).collect::<Vec<_>>();
    let in_chunks = request(Method::POST, CHAT, Body::from_stream(futures::stream::iter(chunks)));
    for reply in [announced.await, send_request(&router, in_chunks).await] {
        assert_eq!(reply.error(), named(413, "body_too_large", ""));
        assert!(reply.message().contains("65536"), "{}", reply.text);
    }
    let deep = format!(r#"{{"model": "{MODEL}", "x": {}{}}}"#, "[".repeat(100), "]".repeat(100));
    let reply = send_request(&router, request(Method::POST, CHAT, deep)).await;
    assert_eq!(reply.error(), named(400, "json_too_deep", ""));
    assert!(reply.message().contains("16"), "{}", reply.text);
    let many = format!(r#"{{"model": "{MODEL}", "x": [{}0]}}"#, "0,".repeat(8192));
    let reply = send_request(&router, request(Method::POST, CHAT, many)).await;
    assert_eq!(reply.error(), named(400, "json_too_many_values", ""));
    assert!(reply.message().contains("8192"), "{}", reply.text);
}

#[tokio::test]
async fn headers_that_are_too_large_are_refused() {
    let (router, _requests) = saying("a");
    let mut large = request(Method::GET, "/health", Body::empty());
    large.headers_mut().insert("x-large", "x".repeat(40_000).parse().expect("a value"));
    let reply = send_request(&router, large).await;
    assert_eq!(reply.error(), named(431, "headers_too_large", ""));
}

#[tokio::test]
async fn a_body_that_breaks_off_is_a_400() {
    let (router, _requests) = saying("a");
    let parts = [Ok("{\"model\""), Err(std::io::Error::other("gone"))];
    let body = Body::from_stream(futures::stream::iter(parts));
    let reply = send_request(&router, request(Method::POST, CHAT, body)).await;
    assert_eq!(reply.error(), named(400, "body_incomplete", ""));
}

#[tokio::test]
async fn a_body_that_does_not_come_is_a_408() {
    let (llm, _submissions) = held(limits());
    let config = crate::server::ServerConfig { body_timeout: std::time::Duration::from_millis(20), ..config() };
    let body = Body::from_stream(futures::stream::pending::<Result<&'static str, std::io::Error>>());
    let reply = soon(send_request(&router(llm, config), request(Method::POST, CHAT, body))).await;
    assert_eq!(reply.error(), named(408, "body_timeout", ""));
}

#[tokio::test]
async fn a_full_queue_answers_429_with_retry_after() {
    let (llm, mut submissions) = held(EngineLimits { max_sequences: 1, max_waiting: 0, ..limits() });
    let router = router(llm, config());
    let first = tokio::spawn({
        let router = router.clone();
        async move { post(&router, CHAT, chat_body(json!({}))).await }
    });
    let submission = soon(submissions.recv()).await.expect("the first is taken");
    let second = post(&router, CHAT, chat_body(json!({"stream": true}))).await;
    assert_eq!(second.error(), named(429, "queue_full", ""));
    assert_eq!(second.headers["retry-after"], "1");
    say(&submission, "a");
    drop(submission);
    assert_eq!(soon(first).await.expect("it ends").status, 200);
}

#[tokio::test]
async fn one_prompt_of_a_list_that_is_refused_ends_the_others() {
    let (llm, mut submissions) = held(limits());
    let router = router(llm, config());
    let more = json!({"prompt": [[97], [300]]});
    let reply = post(&router, "/v1/completions", completion_body(more)).await;
    assert_eq!(reply.error(), named(400, "", "prompt"));
    let submission = soon(submissions.recv()).await.expect("the first was taken");
    soon(submission.events.closed()).await;
}

#[tokio::test]
async fn unknown_paths_and_wrong_methods_answer_in_the_same_shape() {
    let (router, _requests) = saying("a");
    for path in ["/nothing", "/v1/nothing", "/v1", "/v1/chat/completions/more"] {
        let reply = get(&router, path).await;
        assert_eq!(reply.error(), named(404, "unknown_url", ""), "{path}");
        assert!(reply.message().contains(path), "{}", reply.text);
    }
    for (method, path) in [(Method::GET, CHAT), (Method::DELETE, "/v1/models"), (Method::POST, "/health")] {
        let reply = send_request(&router, request(method, path, Body::empty())).await;
        assert_eq!(reply.error(), named(405, "method_not_allowed", ""), "{path}");
        assert!(reply.headers.contains_key("allow"), "{path}");
    }
}

#[test]
fn a_grammar_that_takes_too_long_is_the_client_s_and_what_others_hold_up_is_not() {
    let slow = GenerateError::SlowGrammar { field: "tools", problem: "it takes long".into() };
    let slow = ApiError::from(slow);
    assert_eq!(
        (slow.status.as_u16(), slow.code, slow.param.as_deref()),
        (400, Some("grammar_too_slow"), Some("tools"))
    );
    let busy = ApiError::from(GenerateError::BusyWithGrammars("others do".into()));
    assert_eq!((busy.status.as_u16(), busy.retry_after_s), (429, Some(1)));
}
