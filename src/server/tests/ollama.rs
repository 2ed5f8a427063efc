//! Ollama's API.

use axum::http::StatusCode;
use serde_json::{Value, json};

use super::fixture::*;

const TOOLS: &str = r#"[{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]"#;

fn chat(more: Value) -> Value {
    let mut body = json!({"model": MODEL, "messages": [{"role": "user", "content": "hi", "images": []}], "tools": []});
    body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    body
}

fn text(requests: &std::sync::mpsc::Receiver<crate::request::Request>) -> String {
    let prompt: Vec<u8> = requests.recv().expect("a request").prompt.iter().map(|id| *id as u8).collect();
    String::from_utf8(prompt).expect("UTF-8")
}

#[tokio::test]
async fn a_chat_is_streamed_line_by_line_unless_it_is_refused() {
    let (router, _requests) = saying("yes");
    let reply = post(&router, "/api/chat", chat(json!({}))).await;
    assert_eq!(
        (reply.status, &reply.headers["content-type"]),
        (StatusCode::OK, &"application/x-ndjson".parse().unwrap())
    );
    let mut lines = reply.lines();
    let last = lines.pop().expect("a last line");
    let content: String = lines.iter().map(|line| line["message"]["content"].as_str().expect("text")).collect();
    assert_eq!(content, "yes");
    assert!(lines.iter().all(|line| line["done"] == false && line["model"] == MODEL), "{}", reply.text);
    assert_eq!((&last["done"], &last["done_reason"]), (&json!(true), &json!("stop")));
    assert_eq!(last["message"], json!({"role": "assistant", "content": ""}));
    assert_eq!((&last["prompt_eval_count"], &last["eval_count"]), (&json!(20), &json!(4)));
    assert!(last["total_duration"].as_u64() >= last["eval_duration"].as_u64(), "{last}");

    let whole = post(&router, "/api/chat", chat(json!({"stream": false}))).await.json();
    assert_eq!(whole["message"], json!({"role": "assistant", "content": "yes"}));
    assert_eq!((&whole["done"], &whole["eval_count"]), (&json!(true), &json!(4)));
}

#[tokio::test]
async fn calls_have_their_arguments_as_an_object() {
    let router = calling(r#"<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>"#);
    let tools: Value = serde_json::from_str(TOOLS).expect("JSON");
    let whole = post(&router, "/api/chat", chat(json!({"tools": tools, "stream": false}))).await.json();
    let streamed = post(&router, "/api/chat", chat(json!({"tools": tools}))).await.lines();
    for call in [&whole["message"]["tool_calls"][0], &streamed[0]["message"]["tool_calls"][0]] {
        assert_eq!(call["function"], json!({"index": 0, "name": "f", "arguments": {"x": 1}}), "{whole}");
        assert!(call["id"].as_str().is_some_and(|id| id.starts_with("call_")));
    }
    assert_eq!(streamed.len(), 2);
}

#[tokio::test]
async fn thoughts_stand_apart() {
    let router = thinking("hm</think>\n\nyes");
    let whole = post(&router, "/api/chat", chat(json!({"stream": false}))).await.json();
    assert_eq!(whole["message"], json!({"role": "assistant", "content": "yes", "thinking": "hm"}));
    let body = json!({"model": MODEL, "prompt": "hi", "stream": false});
    let whole = post(&router, "/api/generate", body).await.json();
    assert_eq!((&whole["response"], &whole["thinking"]), (&json!("yes"), &json!("hm")));
    let lines = post(&router, "/api/chat", chat(json!({"think": true}))).await.lines();
    let all = |name: &str| lines.iter().filter_map(|line| line["message"][name].as_str()).collect::<String>();
    assert_eq!((all("thinking"), all("content")), ("hm".into(), "yes".into()));
}

#[tokio::test]
async fn generate_goes_through_the_template_unless_it_is_raw() {
    let (router, requests) = saying("yes");
    let body = json!({"model": MODEL, "prompt": "hi", "system": "be brief"});
    let lines = post(&router, "/api/generate", body).await.lines();
    let content: String = lines.iter().map(|line| line["response"].as_str().expect("text")).collect();
    assert_eq!((content.as_str(), text(&requests).as_str()), ("yes", "system: be brief\nuser: hi\nassistant: "));
    let body = json!({"model": MODEL, "prompt": "hi", "raw": true, "stream": false, "options": {"num_predict": 2}});
    let whole = post(&router, "/api/generate", body).await.json();
    assert_eq!((text(&requests).as_str(), &whole["response"]), ("hi", &json!("ye")));
    assert_eq!(whole["done_reason"], "length");
}

#[tokio::test]
async fn asking_for_nothing_loads_the_model() {
    let (router, _requests) = saying("yes");
    for (path, body) in [
        ("/api/chat", json!({"model": MODEL, "messages": []})),
        ("/api/generate", json!({"model": MODEL, "keep_alive": "5m"})),
    ] {
        let reply = post(&router, path, body).await.json();
        assert_eq!((&reply["done"], &reply["done_reason"]), (&json!(true), &json!("load")), "{path}");
    }
}

#[tokio::test]
async fn num_ctx_is_honoured_and_only_truncate_leaves_messages_out() {
    let (router, requests) = saying("yes");
    let messages = json!([
        {"role": "system", "content": "sys"},
        {"role": "user", "content": "a".repeat(40)},
        {"role": "assistant", "content": "b".repeat(40)},
        {"role": "user", "content": "last"},
    ]);
    let options = json!({"num_ctx": 64});
    let body = chat(json!({"messages": messages, "options": options}));
    let reply = post(&router, "/api/chat", body).await;
    assert_eq!(reply.status, StatusCode::BAD_REQUEST);
    let error = reply.json()["error"].as_str().expect("Ollama's form").to_owned();
    assert!(error.contains("64") && error.contains("133"), "{error}");
    assert!(requests.try_recv().is_err());

    let body = chat(json!({"messages": messages, "options": options, "truncate": true, "stream": false}));
    let reply = post(&router, "/api/chat", body).await;
    assert_eq!(reply.headers["x-lantern-messages-left-out"], "2");
    assert_eq!(text(&requests), "system: sys\nuser: last\nassistant: ");

    let body = chat(json!({"options": {"num_ctx": 22}, "stream": false}));
    let reply = post(&router, "/api/chat", body).await.json();
    assert_eq!((&reply["message"]["content"], &reply["done_reason"]), (&json!("ye"), &json!("length")));
}

#[tokio::test]
async fn a_context_that_holds_less_than_is_asked_for_is_told() {
    let (router, _requests) = saying("yes");
    for (num_ctx, told) in [(512, None), (513, Some("512"))] {
        let options = json!({"num_ctx": num_ctx});
        for (path, body) in [
            ("/api/chat", chat(json!({"options": options}))),
            ("/api/chat", chat(json!({"options": options, "stream": false}))),
            ("/api/generate", json!({"model": MODEL, "prompt": "hi", "options": options})),
            ("/api/generate", json!({"model": MODEL, "options": options})),
        ] {
            let reply = post(&router, path, body).await;
            let header = reply.headers.get("x-lantern-context-length").map(|value| value.to_str().expect("a number"));
            assert_eq!((reply.status, header), (StatusCode::OK, told), "{path}: {}", reply.text);
        }
    }
}

#[tokio::test]
async fn one_prompt_that_is_too_long_is_refused_and_why_truncate_does_not_help() {
    let (router, requests) = saying("yes");
    for (truncate, why) in [(false, false), (true, true)] {
        let body = json!({"model": MODEL, "prompt": "x".repeat(600), "truncate": truncate});
        let reply = post(&router, "/api/generate", body).await;
        let error = reply.json()["error"].as_str().expect("Ollama's form").to_owned();
        assert_eq!(reply.status, StatusCode::BAD_REQUEST);
        assert!(error.contains("512") && error.contains("`truncate`") == why, "{error}");
    }
    assert!(requests.try_recv().is_err());
}

#[tokio::test]
async fn an_answer_goes_on_past_its_context_where_shift_asks_for_it() {
    let (router, requests) = saying("yes");
    for stream in [false, true] {
        let body = chat(json!({"options": {"num_ctx": 22, "num_keep": 5}, "shift": true, "stream": stream}));
        let lines = post(&router, "/api/chat", body).await.lines();
        assert_eq!(text(&requests), "user: hi\nassistant: ");
        assert_eq!(text(&requests), "user:stant: ye");
        let said: String = lines.iter().filter_map(|line| line["message"]["content"].as_str()).collect();
        let last = lines.last().expect("a line");
        assert_eq!((said.as_str(), &last["done_reason"]), ("yeyes", &json!("stop")));
        assert_eq!((&last["prompt_eval_count"], &last["eval_count"]), (&json!(20), &json!(6)));
    }
    let options = json!({"num_ctx": 22, "num_predict": 4});
    let reply = post(&router, "/api/chat", chat(json!({"options": options, "shift": true, "stream": false}))).await;
    let reply = reply.json();
    assert_eq!((&reply["message"]["content"], &reply["done_reason"]), (&json!("yeye"), &json!("length")));
}

#[tokio::test]
async fn errors_have_ollamas_form() {
    let (router, _requests) = saying("yes");
    let cases = [
        ("/api/chat", chat(json!({"model": "nobody"})), 404, "nobody"),
        ("/api/chat", chat(json!({"options": {"temperature": -1}})), 400, "temperature"),
        ("/api/chat", chat(json!({"format": "xml"})), 400, "format"),
        ("/api/generate", json!({"model": MODEL, "prompt": "a", "suffix": "b"}), 400, "suffix"),
        ("/api/show", json!({"model": "nobody"}), 404, "nobody"),
        ("/api/nothing", json!({}), 404, "/nothing"),
    ];
    for (path, body, status, word) in cases {
        let reply = post(&router, path, body).await;
        let error = reply.json();
        assert_eq!((reply.status.as_u16(), error.as_object().map(|fields| fields.len())), (status, Some(1)), "{path}");
        assert!(error["error"].as_str().is_some_and(|text| text.contains(word)), "{path}: {error}");
    }
}

#[tokio::test]
async fn an_error_after_the_beginning_is_a_line() {
    let (llm, mut submissions) = held(limits());
    let router = crate::server::router(llm, config());
    let answer = tokio::spawn(async move { post(&router, "/api/chat", chat(json!({}))).await });
    let submission = soon(submissions.recv()).await.expect("a request");
    start(&submission);
    token(&submission, 0, 97);
    drop(submission);
    let lines = soon(answer).await.expect("an answer").lines();
    assert_eq!(lines[0]["message"]["content"], "a");
    assert!(lines.last().expect("a line")["error"].as_str().is_some_and(|text| text.contains("not read fast enough")));
}

#[tokio::test]
async fn models_are_told() {
    let (router, _requests) = saying("yes");
    let tags = get(&router, "/api/tags").await.json();
    let names: Vec<_> = tags["models"].as_array().expect("a list").iter().map(|model| &model["name"]).collect();
    assert_eq!(names, [MODEL, "other-name", "org/name"]);
    assert_eq!(tags["models"][0]["details"]["quantization_level"], "F32");
    assert_eq!(tags["models"][0]["digest"].as_str().map(str::len), Some(64));
    let ps = get(&router, "/api/ps").await.json();
    assert_eq!((&ps["models"][0]["size_vram"], &ps["models"][0]["context_length"]), (&json!(0), &json!(CONTEXT)));
    for name in ["model", "name"] {
        let show = post(&router, "/api/show", json!({name: format!("{MODEL}:latest")})).await.json();
        assert_eq!(show["model_info"]["llama.context_length"], CONTEXT);
        assert_eq!(show["capabilities"], json!(["completion", "tools"]));
    }
    let show = post(&thinking(""), "/api/show", json!({"model": MODEL})).await.json();
    assert_eq!(show["capabilities"], json!(["completion", "thinking"]));
    assert!(get(&router, "/api/version").await.json()["version"].is_string());
}

#[tokio::test]
async fn a_format_is_a_grammar_that_the_engine_follows() {
    let (router, requests) = saying("{}");
    for (format, followed) in [(json!(""), false), (json!("json"), true), (json!({"type": "object"}), true)] {
        let reply = post(&router, "/api/chat", chat(json!({"format": format, "stream": false}))).await;
        assert_eq!(reply.status, StatusCode::OK, "{}", reply.text);
        assert_eq!(requests.recv().expect("a request").masks.is_some(), followed, "{format}");
    }
}
