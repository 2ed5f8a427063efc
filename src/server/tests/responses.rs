//! OpenAI's responses.

use axum::http::{HeaderValue, Method, StatusCode, header};
use serde_json::{Value, json};

use super::fixture::*;

const PATH: &str = "/v1/responses";

fn body(more: Value) -> Value {
    let mut body = json!({"model": MODEL, "input": "hi"});
    body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    body
}

fn tools() -> Value {
    json!([{"type": "function", "name": "f", "parameters": {"type": "object"}}, {"type": "web_search"}])
}

#[tokio::test]
async fn a_whole_response() {
    let (router, _requests) = saying("yes");
    let reply = post(&router, PATH, body(json!({"instructions": "be brief", "metadata": {"a": "b"}}))).await.json();
    assert!(reply["id"].as_str().is_some_and(|id| id.starts_with("resp_")));
    assert_eq!((&reply["object"], &reply["status"]), (&json!("response"), &json!("completed")));
    let item = &reply["output"][0];
    assert_eq!(
        (&item["type"], &item["role"], &item["status"]),
        (&json!("message"), &json!("assistant"), &json!("completed"))
    );
    let part = json!({"type": "output_text", "text": "yes", "annotations": [], "logprobs": []});
    assert_eq!(item["content"], json!([part]));
    assert_eq!((&reply["usage"]["input_tokens"], &reply["usage"]["output_tokens"]), (&json!(37), &json!(4)));
    assert_eq!((&reply["instructions"], &reply["metadata"]["a"]), (&json!("be brief"), &json!("b")));
    let short = post(&router, PATH, body(json!({"max_output_tokens": 2}))).await.json();
    assert_eq!(short["status"], "incomplete");
    assert_eq!(short["incomplete_details"], json!({"reason": "max_output_tokens"}));
}

#[tokio::test]
async fn events_come_in_order_and_end_with_the_whole() {
    let router = calling(r#"so <tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>"#);
    let reply = post(&router, PATH, body(json!({"stream": true, "tools": tools()}))).await;
    assert_eq!(reply.headers["x-lantern-tools-passed-over"], "web_search");
    let events = reply.named_events();
    for (number, (name, data)) in events.iter().enumerate() {
        assert_eq!((&data["type"], &data["sequence_number"]), (&json!(name), &json!(number)));
    }
    let mut names: Vec<_> = events.iter().map(|(name, _)| name.strip_prefix("response.").expect("a prefix")).collect();
    names.dedup();
    let expected = [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ];
    assert_eq!(names, expected);
    let whole = &events.last().expect("an event").1["response"];
    let done: Vec<_> =
        events.iter().filter(|(name, _)| name.ends_with("item.done")).map(|(_, data)| &data["item"]).collect();
    assert_eq!(whole["output"].as_array().expect("items").iter().collect::<Vec<_>>(), done);
    assert_eq!(whole["output"][1]["arguments"], r#"{"x": 1}"#);
    assert_eq!(whole["status"], "completed");
}

#[tokio::test]
async fn the_whole_has_its_items_in_the_order_of_the_stream() {
    let router = calling(r#"so <tool_call>{"name": "f", "arguments": {}}</tool_call> and on"#);
    let kinds = |response: &Value| -> Vec<String> {
        let items = response["output"].as_array().expect("items").iter();
        items.map(|item| item["type"].as_str().expect("a type").to_owned()).collect()
    };
    let events = post(&router, PATH, body(json!({"stream": true, "tools": tools()}))).await.named_events();
    let streamed = kinds(&events.last().expect("an event").1["response"]);
    assert_eq!(streamed, ["message", "function_call", "message"]);
    assert_eq!(kinds(&post(&router, PATH, body(json!({"tools": tools()}))).await.json()), streamed);
}

#[tokio::test]
async fn an_item_that_was_cut_says_so() {
    let router = thinking("hm</think>\n\nyes");
    let states = |response: &Value| -> Vec<String> {
        let items = response["output"].as_array().expect("items").iter();
        items.map(|item| item["status"].as_str().expect("a status").to_owned()).collect()
    };
    for (most, expected) in
        [(1, vec!["incomplete".to_owned()]), (14, vec!["completed".to_owned(), "incomplete".into()])]
    {
        let whole = post(&router, PATH, body(json!({"max_output_tokens": most}))).await.json();
        assert_eq!((states(&whole), &whole["status"]), (expected.clone(), &json!("incomplete")));
        let cut = body(json!({"max_output_tokens": most, "stream": true}));
        let events = post(&router, PATH, cut).await.named_events();
        let done: Vec<_> = events.iter().filter(|(name, _)| name == "response.output_item.done").collect();
        assert_eq!(done.last().expect("an item").1["item"]["status"], "incomplete");
        assert_eq!(states(&events.last().expect("an event").1["response"]), expected);
    }
    let all = post(&router, PATH, body(json!({}))).await.json();
    assert_eq!(states(&all), ["completed", "completed"]);
}

#[tokio::test]
async fn logprobs_are_of_the_text_alone() {
    let router = thinking("hm</think>yes");
    let asked = json!({"include": ["message.output_text.logprobs"], "top_logprobs": 2});
    let whole = post(&router, PATH, body(asked.clone())).await.json();
    assert_eq!((&whole["top_logprobs"], &whole["output"][0]["type"]), (&json!(2), &json!("reasoning")));
    let logprobs = whole["output"][1]["content"][0]["logprobs"].as_array().expect("a list");
    let tokens: Vec<_> = logprobs.iter().map(|one| one["token"].as_str().expect("a text")).collect();
    assert_eq!(tokens, ["y", "e", "s"]);
    assert_eq!((&logprobs[0]["logprob"], &logprobs[0]["bytes"]), (&json!(-121.0), &json!([121])));
    assert_eq!(logprobs[0]["top_logprobs"][1], json!({"token": "y", "logprob": -3.0, "bytes": [121]}));
    let mut streamed = body(asked);
    streamed["stream"] = true.into();
    let events = post(&router, PATH, streamed).await.named_events();
    let deltas = events.iter().filter(|(name, _)| name == "response.output_text.delta");
    let told: Vec<_> = deltas.flat_map(|(_, data)| data["logprobs"].as_array().expect("a list")).collect();
    assert_eq!(told, logprobs.iter().collect::<Vec<_>>());
    let last = &events.last().expect("an event").1["response"];
    assert_eq!(last["output"][1]["content"][0]["logprobs"], json!(logprobs));
    let none = post(&router, PATH, body(json!({}))).await.json();
    assert_eq!((&none["output"][1]["content"][0]["logprobs"], &none["top_logprobs"]), (&json!([]), &json!(0)));
    let many = post(&router, PATH, body(json!({"top_logprobs": 21}))).await;
    assert_eq!(many.error(), (400, None, Some("top_logprobs".into())));
}

#[tokio::test]
async fn what_was_asked_is_repeated_as_it_was() {
    let (router, _requests) = saying("1");
    let format = json!({"type": "json_schema", "name": "n", "schema": {"type": "integer"}, "strict": true});
    let reply = post(&router, PATH, body(json!({"text": {"format": format}, "max_tool_calls": 3}))).await.json();
    assert_eq!((&reply["text"], &reply["max_tool_calls"]), (&json!({"format": format}), &json!(3)));
    let reply = post(&router, PATH, body(json!({"text": {"format": null}}))).await.json();
    assert_eq!((&reply["text"], &reply["max_tool_calls"]), (&json!({"format": {"type": "text"}}), &Value::Null));
}

#[tokio::test]
async fn items_are_referred_to_and_what_was_asked_is_listed() {
    let (router, requests) = saying("yes");
    let first = post(&router, PATH, body(json!({}))).await.json();
    let (response, item) = (first["id"].as_str().expect("an id"), first["output"][0]["id"].clone());
    requests.recv().expect("a request");
    let listed = get(&router, &format!("{PATH}/{response}/input_items")).await.json();
    assert_eq!(listed["data"][0]["content"], json!([{"type": "input_text", "text": "hi"}]));
    assert_eq!((&listed["last_id"], &listed["has_more"]), (&listed["data"][0]["id"], &json!(false)));
    let reference = |id: &Value| json!({"type": "item_reference", "id": id});
    let user = json!({"role": "user", "content": "so?"});
    let input = json!([reference(&listed["data"][0]["id"]), reference(&item), user]);
    let asked = request(Method::POST, PATH, body(json!({"input": input})).to_string());
    let reply = send_request(&router, asked).await;
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.text);
    let prompt: Vec<u8> = requests.recv().expect("a request").prompt.iter().map(|id| *id as u8).collect();
    assert_eq!(String::from_utf8_lossy(&prompt), "user: hi\nassistant: yes\nuser: so?\nassistant: ");
    // Another client has no such items and no such response.
    let mut other = request(Method::POST, PATH, body(json!({"input": [reference(&item)]})).to_string());
    other.headers_mut().insert(header::AUTHORIZATION, HeaderValue::from_static("Bearer another"));
    let refused = send_request(&router, other).await;
    assert_eq!(refused.error(), (404, Some("item_not_found".into()), Some("input[0].id".into())));
    let refused = get(&router, &format!("{PATH}/resp_gone/input_items")).await;
    assert_eq!(refused.error().0, 404);
    let refused = get(&router, &format!("{PATH}/{response}/input_items?limit=0")).await;
    assert_eq!(refused.error(), (400, None, Some("limit".into())));
}

#[tokio::test]
async fn thoughts_are_items_of_their_own() {
    let router = thinking("hm</think>\n\nyes");
    let reply = post(&router, PATH, body(json!({"reasoning": {"effort": "high"}}))).await.json();
    let kinds: Vec<_> = reply["output"].as_array().expect("items").iter().map(|item| &item["type"]).collect();
    assert_eq!(kinds, ["reasoning", "message"]);
    assert_eq!(reply["output"][0]["content"], json!([{"type": "reasoning_text", "text": "hm"}]));
    let events = post(&router, PATH, body(json!({"stream": true}))).await.named_events();
    let deltas = |kind: &str| -> String {
        let of_kind = events.iter().filter(|(name, _)| name == kind);
        of_kind.filter_map(|(_, data)| data["delta"].as_str()).collect()
    };
    assert_eq!(deltas("response.reasoning_text.delta"), "hm");
    assert_eq!(deltas("response.output_text.delta"), "yes");
    // Each byte is a token: what was thought, with the mark behind it.
    let streamed = &events.last().expect("an event").1["response"];
    for (response, thought) in [
        (&reply, 10),
        (streamed, 10),
        (&post(&router, PATH, body(json!({"max_output_tokens": 4}))).await.json(), 4),
        (&post(&router, PATH, body(json!({"reasoning": {"effort": "none"}}))).await.json(), 0),
    ] {
        let usage = &response["usage"];
        assert_eq!(usage["output_tokens_details"], json!({"reasoning_tokens": thought}), "{response}");
        assert!(usage["output_tokens"].as_u64() >= Some(thought), "{response}");
    }
}

#[tokio::test]
async fn a_later_response_goes_on_from_a_stored_one() {
    let (router, requests) = saying("yes");
    let text = || {
        let prompt: Vec<u8> = requests.recv().expect("a request").prompt.iter().map(|id| *id as u8).collect();
        String::from_utf8(prompt).expect("UTF-8")
    };
    let first = post(&router, PATH, body(json!({"instructions": "be brief"}))).await.json();
    let id = first["id"].as_str().expect("an id").to_owned();
    text();
    assert_eq!(get(&router, &format!("{PATH}/{id}")).await.json(), first);
    let more = json!({"input": "and now?", "previous_response_id": id, "store": false});
    let second = post(&router, PATH, body(more)).await.json();
    assert_eq!(text(), "user: hi\nassistant: yes\nuser: and now?\nassistant: ");
    let unstored = second["id"].as_str().expect("an id");
    assert_eq!(get(&router, &format!("{PATH}/{unstored}")).await.status, StatusCode::NOT_FOUND);

    let streamed = post(&router, PATH, body(json!({"stream": true}))).await.named_events();
    let id = &streamed.last().expect("an event").1["response"]["id"];
    let path = format!("{PATH}/{}", id.as_str().expect("an id"));
    assert_eq!(get(&router, &path).await.json()["output"][0]["content"][0]["text"], "yes");
    // Another client does not see it.
    let mut other = request(Method::GET, &path, axum::body::Body::empty());
    other.headers_mut().insert(header::AUTHORIZATION, HeaderValue::from_static("Bearer another"));
    assert_eq!(send_request(&router, other).await.status, StatusCode::NOT_FOUND);
    let deleted = send_request(&router, request(Method::DELETE, &path, axum::body::Body::empty())).await.json();
    assert_eq!(deleted["deleted"], true);
    assert_eq!(get(&router, &path).await.error().0, 404);
    let reply = post(&router, PATH, body(json!({"previous_response_id": "resp_gone"}))).await;
    assert_eq!(reply.error(), (404, Some("response_not_found".into()), Some("previous_response_id".into())));
}

#[tokio::test]
async fn a_failure_after_the_beginning_is_told_as_failed() {
    let (llm, mut submissions) = held(limits());
    let router = crate::server::router(llm, config());
    let answer = tokio::spawn(async move { post(&router, PATH, body(json!({"stream": true}))).await });
    let submission = soon(submissions.recv()).await.expect("a request");
    start(&submission);
    drop(submission);
    let events = soon(answer).await.expect("an answer").named_events();
    let (name, data) = events.last().expect("an event");
    assert_eq!((name.as_str(), &data["response"]["status"]), ("response.failed", &json!("failed")));
    assert!(data["response"]["error"]["message"].as_str().is_some_and(|text| text.contains("not read fast enough")));
}
