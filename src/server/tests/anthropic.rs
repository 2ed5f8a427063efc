//! Anthropic's API.

use axum::http::{HeaderValue, Method};
use serde_json::{Value, json};

use super::fixture::*;

fn body(more: Value) -> Value {
    let mut body = json!({"model": MODEL, "max_tokens": 100, "messages": [{"role": "user", "content": "hi"}]});
    body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    body
}

fn tools() -> Value {
    json!([{"name": "f", "description": "d", "input_schema": {"type": "object"}}])
}

#[tokio::test]
async fn a_whole_message() {
    let (router, requests) = saying("yes");
    let reply = post(&router, "/v1/messages", body(json!({"system": "be brief"}))).await.json();
    assert!(reply["id"].as_str().is_some_and(|id| id.starts_with("msg_")));
    assert_eq!(
        (&reply["type"], &reply["role"], &reply["model"]),
        (&json!("message"), &json!("assistant"), &json!(MODEL))
    );
    assert_eq!(reply["content"], json!([{"type": "text", "text": "yes", "citations": null}]));
    assert_eq!((&reply["stop_reason"], &reply["stop_sequence"]), (&json!("end_turn"), &Value::Null));
    let usage = json!({
        "input_tokens": 36, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 1, "output_tokens": 4,
        "cache_creation": null, "inference_geo": null, "output_tokens_details": {"thinking_tokens": 0}, "server_tool_use": null,
        "service_tier": "standard"
    });
    assert_eq!(reply["usage"], usage);
    let prompt: Vec<u8> = requests.recv().expect("one").prompt.iter().map(|id| *id as u8).collect();
    assert_eq!(prompt, b"system: be brief\nuser: hi\nassistant: ");
}

#[tokio::test]
async fn why_it_stopped() {
    let (router, _requests) = saying("one two three");
    for (more, reason, stop) in [
        (json!({"max_tokens": 2}), "max_tokens", Value::Null),
        (json!({"stop_sequences": ["x", " t"]}), "stop_sequence", json!(" t")),
        (json!({}), "end_turn", Value::Null),
    ] {
        let whole = post(&router, "/v1/messages", body(more.clone())).await.json();
        assert_eq!((&whole["stop_reason"], &whole["stop_sequence"]), (&json!(reason), &stop), "{more}");
        let mut streamed = more.clone();
        streamed["stream"] = json!(true);
        let events = post(&router, "/v1/messages", body(streamed)).await.named_events();
        let delta = &events[events.len() - 2].1["delta"];
        assert_eq!(delta, &json!({"stop_reason": reason, "stop_sequence": stop}), "{more}");
    }
}

#[tokio::test]
async fn a_stream_opens_grows_and_closes_its_blocks() {
    let router = calling(r#"so <tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>"#);
    let more = json!({"stream": true, "tools": tools()});
    let events = post(&router, "/v1/messages", body(more)).await.named_events();
    for (name, data) in &events {
        assert_eq!(data["type"], name.as_str());
    }
    let mut names: Vec<_> = events.iter().map(|(name, _)| name.as_str()).collect();
    names.dedup();
    let expected = [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ];
    assert_eq!(names, expected);
    let message = &events[0].1["message"];
    assert_eq!((&message["content"], &message["stop_reason"]), (&json!([]), &Value::Null));
    let text: String = events.iter().filter_map(|(_, data)| data["delta"]["text"].as_str()).collect();
    assert_eq!(text.trim_end(), "so");
    let call = events.iter().find(|(_, data)| data["content_block"]["type"] == "tool_use").expect("a call");
    assert_eq!((&call.1["index"], &call.1["content_block"]["name"]), (&json!(1), &json!("f")));
    let arguments: String = events.iter().filter_map(|(_, data)| data["delta"]["partial_json"].as_str()).collect();
    assert_eq!(arguments, r#"{"x": 1}"#);
    let last = &events[events.len() - 2].1;
    assert_eq!(last["delta"]["stop_reason"], "tool_use");
    assert_eq!(last["usage"]["output_tokens"], 63);
}

#[tokio::test]
async fn thoughts_are_blocks_of_their_own() {
    let router = thinking("hm</think>\n\nyes");
    let more = json!({"thinking": {"type": "enabled", "budget_tokens": 1024}});
    let whole = post(&router, "/v1/messages", body(more.clone())).await.json();
    let blocks = json!([{"type": "thinking", "thinking": "hm", "signature": ""},
        {"type": "text", "text": "yes", "citations": null}]);
    assert_eq!(whole["content"], blocks);
    let mut more = more;
    more["stream"] = json!(true);
    let events = post(&router, "/v1/messages", body(more)).await.named_events();
    let deltas: Vec<_> = events.iter().filter_map(|(_, data)| data["delta"]["type"].as_str()).collect();
    assert_eq!(
        deltas,
        ["thinking_delta", "thinking_delta", "signature_delta", "text_delta", "text_delta", "text_delta"]
    );
    let stops = events.iter().filter(|(name, _)| name == "content_block_stop").map(|(_, data)| &data["index"]);
    assert_eq!(stops.collect::<Vec<_>>(), [0, 1]);
    // Each byte is a token: what was thought, with the mark behind it.
    let usages = events.iter().filter(|(name, _)| name == "message_delta").map(|(_, data)| &data["usage"]);
    for usage in usages.chain([&whole["usage"]]) {
        let counts = (&usage["output_tokens_details"]["thinking_tokens"], &usage["output_tokens"]);
        assert_eq!(counts, (&json!(10), &json!(16)), "{usage}");
    }
}

#[tokio::test]
async fn calls_are_blocks_with_an_object() {
    let router = calling(
        r#"<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call><tool_call>{"name": "f", "arguments": {}}</tool_call>"#,
    );
    let whole = post(&router, "/v1/messages", body(json!({"tools": tools(), "max_tokens": 200}))).await.json();
    let inputs: Vec<_> = whole["content"].as_array().expect("a list").iter().map(|block| &block["input"]).collect();
    assert_eq!((inputs, &whole["stop_reason"]), (vec![&json!({"x": 1}), &json!({})], &json!("tool_use")));
    let choice = json!({"type": "auto", "disable_parallel_tool_use": true});
    let more = json!({"tools": tools(), "max_tokens": 200, "tool_choice": choice});
    let whole = post(&router, "/v1/messages", body(more)).await.json();
    assert_eq!(whole["content"].as_array().map(Vec::len), Some(1));
}

#[tokio::test]
async fn tokens_are_counted_without_a_request_to_the_engine() {
    let (router, requests) = saying("yes");
    let body =
        json!({"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "system": "s", "tools": tools()});
    let reply = post(&router, "/v1/messages/count_tokens", body).await.json();
    assert_eq!(reply, json!({"input_tokens": "system: s\nuser: hi\ntools: 1\nassistant: ".len()}));
    assert!(requests.try_recv().is_err());
}

#[tokio::test]
async fn models_have_anthropics_form_for_its_clients() {
    let (router, _requests) = saying("yes");
    let of = async |path: &str| {
        let mut request = request(Method::GET, path, axum::body::Body::empty());
        request.headers_mut().insert("anthropic-version", HeaderValue::from_static("2023-06-01"));
        send_request(&router, request).await
    };
    let list = of("/v1/models").await.json();
    assert_eq!(
        (&list["first_id"], &list["last_id"], &list["has_more"]),
        (&json!(MODEL), &json!("org/name"), &json!(false))
    );
    let one = of("/v1/models/org/name").await.json();
    assert_eq!(one["created_at"], "2023-11-14T22:13:20Z");
    assert_eq!((&one["type"], &one["id"]), (&json!("model"), &json!("org/name")));
    assert_eq!(of("/v1/models/nobody").await.json()["error"]["type"], "not_found_error");
}

#[tokio::test]
async fn errors_have_anthropics_form() {
    let (router, _requests) = saying("yes");
    let cases = [
        (body(json!({"model": "nobody"})), 404, "not_found_error", "nobody"),
        (body(json!({"temperature": -1})), 400, "invalid_request_error", "temperature"),
        (json!({"model": MODEL}), 400, "invalid_request_error", "messages"),
        (
            body(json!({"messages": [{"role": "user", "content": "x".repeat(600)}]})),
            400,
            "invalid_request_error",
            "512",
        ),
    ];
    for (body, status, kind, word) in cases {
        let reply = post(&router, "/v1/messages", body).await;
        let error = reply.json();
        assert_eq!((reply.status.as_u16(), &error["type"]), (status, &json!("error")), "{error}");
        assert_eq!(error["error"]["type"], kind);
        assert!(error["error"]["message"].as_str().is_some_and(|text| text.contains(word)), "{error}");
    }
}
