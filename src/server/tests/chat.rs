//! Chats, whole.

use serde_json::{Value, json};

use super::fixture::*;
use crate::request::Tenant;

#[tokio::test]
async fn a_chat_is_answered_in_openai_s_form() {
    let (router, requests) = saying("hello");
    let reply = post(&router, "/v1/chat/completions", chat_body(json!({}))).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    let body = reply.json();
    assert!(body["id"].as_str().expect("an id").starts_with("chatcmpl-"));
    assert_eq!(body["object"], "chat.completion");
    assert!(body["created"].as_u64().expect("a time") > 1_700_000_000);
    assert_eq!(body["model"], MODEL);
    assert!(body["system_fingerprint"].is_string());
    let message = json!({"role": "assistant", "content": "hello", "refusal": null, "annotations": []});
    let choice = json!({"index": 0, "message": message, "logprobs": null, "finish_reason": "stop"});
    assert_eq!(body["choices"], json!([choice]));
    // "user: hi\nassistant: " is 20 bytes; five letters and the end token.
    let usage = json!({
        "prompt_tokens": 20, "completion_tokens": 6, "total_tokens": 26, "prompt_tokens_details": {"cached_tokens": 1},
        "completion_tokens_details": {"reasoning_tokens": 0}
    });
    assert_eq!(body["usage"], usage);
    let request = requests.recv().expect("it reached the engine");
    assert_eq!(&*request.prompt, b"user: hi\nassistant: ".map(u32::from));
    assert_eq!(request.tenant, Tenant::default());
}

#[tokio::test]
async fn a_prompt_may_end_without_the_opening_of_an_answer() {
    let (router, requests) = saying("hello");
    let turn = json!([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "well"}]);
    let cases = [
        (json!({}), "user: hi\nassistant: well\nassistant: "),
        (json!({"add_generation_prompt": true}), "user: hi\nassistant: well\nassistant: "),
        (json!({"add_generation_prompt": false}), "user: hi\nassistant: well\n"),
        (json!({"add_generation_prompt": false, "continue_final_message": true}), "user: hi\nassistant: well"),
    ];
    for (mut more, prompt) in cases {
        more["messages"] = turn.clone();
        let reply = post(&router, "/v1/chat/completions", chat_body(more.clone())).await;
        assert_eq!(reply.status, 200, "{}", reply.text);
        let bytes: Vec<u32> = prompt.bytes().map(u32::from).collect();
        assert_eq!(&*requests.recv().expect("a request").prompt, bytes, "{more}");
    }
    let called = json!({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]});
    let more = json!({"messages": [turn[0], called], "continue_final_message": true});
    let error = post(&router, "/v1/chat/completions", chat_body(more)).await.error();
    assert_eq!(error, (400, None, Some("continue_final_message".into())));
}

#[tokio::test]
async fn the_root_serves_the_same() {
    let (router, _requests) = saying("hello");
    for path in ["/chat/completions", "/v1/chat/completions"] {
        let reply = post(&router, path, chat_body(json!({}))).await;
        assert_eq!(reply.json()["choices"][0]["message"]["content"], "hello", "{path}");
    }
}

#[tokio::test]
async fn every_choice_is_there() {
    let (router, requests) = saying("ab");
    let body = post(&router, "/v1/chat/completions", chat_body(json!({"n": 3, "max_tokens": 2}))).await.json();
    let choices = body["choices"].as_array().expect("a list");
    let seen: Vec<_> = choices.iter().map(|choice| (choice["index"].as_u64(), &choice["finish_reason"])).collect();
    assert_eq!(seen, [(Some(0), &json!("length")), (Some(1), &json!("length")), (Some(2), &json!("length"))]);
    assert_eq!((&body["usage"]["prompt_tokens"], &body["usage"]["completion_tokens"]), (&json!(20), &json!(6)));
    assert_eq!(requests.recv().expect("one request").n, 3);
}

#[tokio::test]
async fn logprobs_tell_bytes_and_alternatives() {
    let (router, _requests) = saying("é");
    let more = json!({"logprobs": true, "top_logprobs": 2});
    let body = post(&router, "/v1/chat/completions", chat_body(more)).await.json();
    assert_eq!(body["choices"][0]["message"]["content"], "é");
    let logprobs = &body["choices"][0]["logprobs"];
    assert_eq!(logprobs["refusal"], Value::Null);
    let first = &logprobs["content"][0];
    assert_eq!(
        (&first["token"], &first["bytes"], &first["logprob"]),
        (&json!("\u{fffd}"), &json!([195]), &json!(-195.0))
    );
    let expected = json!([
        {"token": "x", "logprob": -2.0, "bytes": [120]}, {"token": "y", "logprob": -3.0, "bytes": [121]}
    ]);
    assert_eq!(first["top_logprobs"], expected);
    // Both halves of the letter and the end token: as many as the usage counts.
    assert_eq!(logprobs["content"].as_array().map(Vec::len), Some(3));
    assert_eq!(body["usage"]["completion_tokens"], 3);
}

#[tokio::test]
async fn prompt_logprobs_stand_beside_the_choices() {
    let (router, _requests) = saying("a");
    let body = post(&router, "/v1/chat/completions", chat_body(json!({"prompt_logprobs": 1}))).await.json();
    let prompt = body["prompt_logprobs"].as_array().expect("a list");
    assert_eq!((prompt.len(), &prompt[0]), (20, &Value::Null));
    // The second token is `s`, id 115.
    assert_eq!(prompt[1]["115"], json!({"logprob": -115.0, "rank": 2, "decoded_token": "s"}));
    assert_eq!(prompt[1]["120"], json!({"logprob": -2.0, "rank": 1, "decoded_token": "x"}));
    let without = post(&router, "/v1/chat/completions", chat_body(json!({}))).await.json();
    assert!(without.get("prompt_logprobs").is_none());
}

#[tokio::test]
async fn token_ids_are_told_where_asked_for_whole_and_in_streams() {
    let (router, _requests) = saying("\u{e9}!");
    let expected = json!([195, 169, 33, EOS]);
    let ids = |text: &str| json!(text.bytes().collect::<Vec<u8>>());
    let prompt = ids("user: hi\nassistant: ");
    let body = post(&router, "/v1/chat/completions", chat_body(json!({"return_token_ids": true}))).await.json();
    assert_eq!((&body["choices"][0]["token_ids"], &body["prompt_token_ids"]), (&expected, &prompt));
    let completion = json!({"return_token_ids": true});
    let body = post(&router, "/v1/completions", completion_body(completion)).await.json();
    assert_eq!((&body["choices"][0]["token_ids"], &body["choices"][0]["prompt_token_ids"]), (&expected, &ids("ab")));
    let streamed = json!({"return_token_ids": true, "stream": true});
    for (path, body) in [("chat/", chat_body(streamed.clone())), ("", completion_body(streamed))] {
        let events = post(&router, &format!("/v1/{path}completions"), body).await.events();
        let chunks: Vec<Value> = events.iter().filter_map(|event| serde_json::from_str(event).ok()).collect();
        let told = chunks.iter().filter_map(|chunk| chunk["choices"][0]["token_ids"].as_array()).flatten();
        assert_eq!(json!(told.collect::<Vec<_>>()), expected, "{path}");
        let first = if path.is_empty() { &chunks[0]["choices"][0] } else { &chunks[0] };
        assert_eq!(first["prompt_token_ids"], if path.is_empty() { ids("ab") } else { prompt.clone() });
    }
    let without = post(&router, "/v1/chat/completions", chat_body(json!({}))).await.text;
    assert!(!without.contains("token_ids"), "{without}");
}

#[tokio::test]
async fn thoughts_have_a_budget_in_every_api_that_names_one() {
    let (router, requests) = thinking_requests("so");
    let chat = |more| chat_body(more);
    let message = json!({"model": MODEL, "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}],
        "thinking": {"type": "enabled", "budget_tokens": 2}});
    for (path, body) in [
        ("/v1/chat/completions", chat(json!({"thinking_budget": 2}))),
        ("/v1/chat/completions", chat(json!({"thinking_token_budget": 2}))),
        ("/v1/messages", message),
    ] {
        assert_eq!(post(&router, path, body).await.status, 200);
        let mut mask = requests.recv().expect("one").masks.expect("thoughts are watched").start();
        for (token, forced) in [(97, false), (98, false), (10, true), (60, true)] {
            let allowed = mask.allowed().expect("some token may come").map(<[u32]>::to_vec);
            let only: Vec<u32> = (0..257).map(|id: u32| u32::from(forced && id == token)).collect();
            let bits = |words: Vec<u32>| (0..257).map(|id| words[id / 32] >> (id % 32) & 1).collect::<Vec<_>>();
            assert_eq!(allowed.map(bits), forced.then_some(only), "{path}, before {token}");
            mask.commit(token).expect("it may come");
        }
    }
    assert_eq!(post(&router, "/v1/chat/completions", chat(json!({}))).await.status, 200);
    assert!(requests.recv().expect("one").masks.is_none());
}

#[tokio::test]
async fn a_stop_string_ends_the_answer() {
    let (router, _requests) = saying("one two three");
    let body = post(&router, "/v1/chat/completions", chat_body(json!({"stop": " t"}))).await.json();
    assert_eq!(body["choices"][0]["message"]["content"], "one");
    assert_eq!(body["choices"][0]["finish_reason"], "stop");
    let more = json!({"stop": [" t"], "include_stop_str_in_output": true});
    let body = post(&router, "/v1/chat/completions", chat_body(more)).await.json();
    assert_eq!(body["choices"][0]["message"]["content"], "one t");
}

#[tokio::test]
async fn the_whole_turn_of_an_agent_reaches_the_template() {
    let (router, requests) = saying("ok");
    let body = json!({
        "model": "other-name",
        "messages": [
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "a"}]},
            {"role": "user", "content": "b"},
            {"role": "assistant", "content": null,
             "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "c1", "content": "42"},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        "tool_choice": "auto", "stream": false, "max_completion_tokens": 50,
        "options": {"num_ctx": 8192}, "store": false, "unheard_of": {"x": [1]},
    });
    let reply = post(&router, "/chat/completions", body).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert_eq!(reply.json()["model"], "other-name");
    let prompt: Vec<u8> = requests.recv().expect("one").prompt.iter().map(|id| *id as u8).collect();
    let prompt = String::from_utf8(prompt).expect("UTF-8");
    assert!(prompt.starts_with("system: be brief\nuser: a\nuser: b\nassistant:"), "{prompt}");
    assert!(prompt.contains("tool: 42\ntools: 1\n"), "{prompt}");
}

#[tokio::test]
async fn a_key_or_an_address_is_the_tenant() {
    use axum::extract::ConnectInfo;
    use axum::http::Method;
    let (router, requests) = saying("a");
    let mut request = request(Method::POST, "/v1/chat/completions", chat_body(json!({})).to_string());
    request.extensions_mut().insert(ConnectInfo("10.1.2.3:99".parse::<std::net::SocketAddr>().expect("an address")));
    send_request(&router, request).await;
    assert_eq!(requests.recv().expect("one").tenant, Tenant::new("10.1.2.3"));
    let mut request = super::fixture::request(Method::POST, "/v1/chat/completions", chat_body(json!({})).to_string());
    request.headers_mut().insert("authorization", "Bearer sk-1".parse().expect("a value"));
    send_request(&router, request).await;
    let tenant = requests.recv().expect("one").tenant.to_string();
    assert!(tenant.starts_with("key-") && !tenant.contains("sk-1"), "{tenant}");
}

fn tool() -> Value {
    json!([{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}])
}

#[tokio::test]
async fn calls_of_tools_are_told_as_calls() {
    let (router, _requests) = saying(r#"{"name": "f", "parameters": {"x": 1}}; {"name": "g", "parameters": {}}"#);
    let body = post(&router, "/v1/chat/completions", chat_body(json!({"tools": tool()}))).await.json();
    let choice = &body["choices"][0];
    assert_eq!((&choice["finish_reason"], &choice["message"]["content"]), (&json!("tool_calls"), &Value::Null));
    let calls = choice["message"]["tool_calls"].as_array().expect("calls");
    let seen: Vec<_> = calls.iter().map(|call| (&call["type"], &call["function"])).collect();
    let (f, g) = (json!({"name": "f", "arguments": "{\"x\": 1}"}), json!({"name": "g", "arguments": "{}"}));
    assert_eq!(seen, [(&json!("function"), &f), (&json!("function"), &g)]);
    assert_ne!(calls[0]["id"], calls[1]["id"]);
    let more = json!({"tools": tool(), "parallel_tool_calls": false});
    let one = post(&router, "/v1/chat/completions", chat_body(more)).await.json();
    assert_eq!(one["choices"][0]["message"]["tool_calls"].as_array().map(Vec::len), Some(1));
    // Nobody gave it tools: it is what the model says.
    let plain = post(&router, "/v1/chat/completions", chat_body(json!({"tools": []}))).await.json();
    assert!(plain["choices"][0]["message"]["content"].as_str().expect("text").starts_with(r#"{"name": "f""#));
    assert_eq!(plain["choices"][0]["finish_reason"], "stop");
    assert!(plain["choices"][0]["message"].get("tool_calls").is_none());
}

#[tokio::test]
async fn calls_in_a_stream_have_an_index_and_a_reason_behind_them() {
    let (router, _requests) = saying(r#"{"name": "f", "parameters": {}} {"name": "g", "parameters": {}}"#);
    let more = json!({"tools": tool(), "stream": true});
    let chunks = post(&router, "/v1/chat/completions", chat_body(more)).await.chunks();
    let calls: Vec<_> = chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["tool_calls"].get(0)).collect();
    let seen: Vec<_> = calls.iter().map(|call| (call["index"].as_u64(), call["function"]["name"].as_str())).collect();
    assert_eq!(seen, [(Some(0), Some("f")), (Some(1), Some("g"))]);
    let last = chunks.last().expect("chunks");
    assert_eq!(last["choices"][0]["finish_reason"], "tool_calls");
}

#[tokio::test]
async fn thoughts_stand_beside_the_answer() {
    let router = thinking("so</think>\n\nYes.");
    let body = post(&router, "/v1/chat/completions", chat_body(json!({}))).await.json();
    let message = &body["choices"][0]["message"];
    assert_eq!((&message["reasoning_content"], &message["content"]), (&json!("so"), &json!("Yes.")));
    let chunks = post(&router, "/v1/chat/completions", chat_body(json!({"stream": true}))).await.chunks();
    let told = |field: &str| -> String {
        chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"][field].as_str()).collect()
    };
    assert_eq!((told("reasoning_content"), told("content")), ("so".into(), "Yes.".into()));
    let more = json!({"reasoning_effort": "none"});
    let without = post(&router, "/v1/chat/completions", chat_body(more)).await.json();
    // The template opens no thoughts then.
    assert_eq!(without["choices"][0]["message"]["content"], "so</think>\n\nYes.");
}

#[tokio::test]
async fn a_message_that_ends_within_thoughts_is_continued_within_them() {
    // As Qwen3's: thoughts that hold nothing stand before what an assistant said last.
    let template = "{% for m in messages %}{{ m.role }}: \
                    {% if loop.last and m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}\
                    {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}";
    let (router, requests) = templated(template, " ar</think>\n\nYes.");
    let untaken = " ar</think>\n\nYes.";
    // What is continued, what the model is shown of it, and what is told as thoughts and as text.
    let cases = [
        ("<think>so f", "<think>so f", Some(" ar"), "Yes."),
        ("\n<think>\nso, </", "\n<think>\nso, </", Some(" ar"), "Yes."),
        ("<think>", "<think>", Some("ar"), "Yes."),
        ("<think>so</think>\n\nNo.", "<think>\n\n</think>\n\n<think>so</think>\n\nNo.", None, untaken),
        ("No <think> here", "<think>\n\n</think>\n\nNo <think> here", None, untaken),
    ];
    for (content, shown, thoughts, text) in cases {
        let messages = json!([{"role": "user", "content": "hi"}, {"role": "assistant", "content": content}]);
        let continued = json!({"messages": messages, "continue_final_message": true});
        let body = post(&router, "/v1/chat/completions", chat_body(continued.clone())).await.json();
        let prompt: Vec<u8> = requests.recv().expect("a request").prompt.iter().map(|id| *id as u8).collect();
        assert_eq!(String::from_utf8(prompt).expect("UTF-8"), format!("user: hi\nassistant: {shown}"));
        let message = &body["choices"][0]["message"];
        assert_eq!((message["reasoning_content"].as_str(), &message["content"]), (thoughts, &json!(text)), "{content}");
        let mut streamed = continued;
        streamed["stream"] = json!(true);
        let chunks = post(&router, "/v1/chat/completions", chat_body(streamed)).await.chunks();
        let _ = requests.recv().expect("a request");
        let told = |field: &str| -> String {
            chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"][field].as_str()).collect()
        };
        assert_eq!((told("reasoning_content").as_str(), told("content").as_str()), (thoughts.unwrap_or(""), text));
    }
    // A form has no place for thoughts: they are ended first.
    let messages = json!([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "<think>so f"}]);
    let more =
        json!({"messages": messages, "continue_final_message": true, "response_format": {"type": "json_object"}});
    let body = post(&router, "/v1/chat/completions", chat_body(more)).await.json();
    assert!(
        requests
            .recv()
            .expect("a request")
            .prompt
            .ends_with(&"so f\n</think>\n\n".bytes().map(u32::from).collect::<Vec<_>>())
    );
    assert_eq!(body["choices"][0]["message"]["content"], untaken);
}

#[tokio::test]
async fn tokens_of_thoughts_are_counted_whole_and_streamed() {
    // Each byte is a token: 10 until the thoughts have ended, 6 behind them, and the one that ends the answer.
    let thinks = "so</think>\n\nYes.";
    let cases = [
        (thinking(thinks), json!({}), (10, 17)),
        (thinking(thinks), json!({"n": 2}), (20, 34)),
        (thinking(thinks), json!({"max_tokens": 5}), (5, 5)),
        (thinking(thinks), json!({"n": 2, "max_tokens": 12}), (20, 24)),
        (thinking(thinks), json!({"stop": "</think>\n"}), (11, 11)),
        (thinking(thinks), json!({"reasoning_effort": "none"}), (0, 17)),
        (thinking("<think>so</think>Yes."), json!({"reasoning_effort": "none"}), (17, 22)),
        (saying(thinks).0, json!({}), (0, 17)),
    ];
    for (router, more, expected) in cases {
        let post = async |extra: Value| {
            let mut body = chat_body(more.clone());
            body.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
            post(&router, "/v1/chat/completions", body).await
        };
        let counts = |answer: &Value| {
            let usage = &answer["usage"];
            let thought = usage["completion_tokens_details"]["reasoning_tokens"].as_u64().expect("a number");
            (thought, usage["completion_tokens"].as_u64().expect("a number"))
        };
        assert_eq!(counts(&post(json!({})).await.json()), expected, "{more}");
        let options = json!({"include_usage": true, "continuous_usage_stats": true});
        let chunks = post(json!({"stream": true, "stream_options": options})).await.chunks();
        assert_eq!(counts(chunks.last().expect("a chunk")), expected, "{more}");
        let told: Vec<_> = chunks.iter().map(counts).collect();
        assert!(told.iter().all(|(thought, all)| thought <= all) && told.is_sorted(), "{more}: {told:?}");
    }
}

#[tokio::test]
async fn a_form_or_a_forced_call_is_a_grammar_that_the_engine_follows() {
    let (router, requests) = saying("{}");
    let tools = json!([{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]);
    let schema = json!({"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}});
    let named = json!({"type": "function", "function": {"name": "f"}});
    let cases = [
        (json!({}), false),
        (json!({"response_format": {"type": "text"}}), false),
        (json!({"response_format": schema}), true),
        (json!({"guided_regex": "a+"}), true),
        (json!({"structured_outputs": {"choice": ["a", "b"]}}), true),
        (json!({"tools": tools, "tool_choice": "auto"}), false),
        (json!({"tools": tools, "tool_choice": "required"}), true),
        (json!({"tools": tools, "tool_choice": named}), true),
    ];
    for (more, followed) in cases {
        let reply = post(&router, "/v1/chat/completions", chat_body(more.clone())).await;
        assert_eq!(reply.status, 200, "{more}: {}", reply.text);
        assert_eq!(requests.recv().expect("a request").masks.is_some(), followed, "{more}");
    }
}

#[tokio::test]
async fn what_is_wrong_with_a_form_names_the_field_that_asks_for_it() {
    let (router, _requests) = saying("{}");
    let unknown = json!({"type": "array", "uniqueItems": true});
    let tools = json!([{"type": "function", "function": {"name": "f", "parameters": {"properties": {"p": unknown}}}}]);
    let response_format = json!({"type": "json_schema", "json_schema": {"schema": unknown}});
    let cases = [
        ("/v1/chat/completions", json!({"response_format": response_format}), "response_format"),
        ("/v1/chat/completions", json!({"guided_json": unknown}), "guided_json"),
        ("/v1/chat/completions", json!({"guided_regex": "("}), "guided_regex"),
        ("/v1/chat/completions", json!({"structured_outputs": {"json": unknown}}), "structured_outputs.json"),
        ("/v1/chat/completions", json!({"tools": tools, "tool_choice": "required"}), "tools"),
        ("/v1/completions", json!({"prompt": "p", "guided_grammar": "start: missing"}), "guided_grammar"),
        (
            "/v1/responses",
            json!({"input": "hi", "text": {"format": {"type": "json_schema", "name": "n", "schema": unknown}}}),
            "text.format",
        ),
    ];
    for (path, more, field) in cases {
        let reply = post(&router, path, chat_body(more.clone())).await;
        let expected = (400, Some("invalid_grammar".to_owned()), Some(field.to_owned()));
        assert_eq!(reply.error(), expected, "{more}: {}", reply.text);
        let is_schema = more.to_string().contains("uniqueItems");
        assert_eq!(reply.message().contains("uniqueItems"), is_schema, "{}", reply.text);
    }
}

#[tokio::test]
async fn thoughts_that_are_not_wanted_are_ended_where_a_template_opens_them_whatever_it_is_told() {
    let template = "{% for m in messages %}{{ m.content.split('</think>')[-1] }}{% endfor %}\
                    {{ reasoning_effort }}{% if add_generation_prompt %}<think>\n{% endif %}";
    let (router, requests) = templated(template, "Yes.");
    let shown = || {
        let prompt: Vec<u8> = requests.recv().expect("a request").prompt.iter().map(|id| *id as u8).collect();
        String::from_utf8(prompt).expect("UTF-8")
    };
    let (open, ended) = ("<think>\n", "<think>\n\n</think>\n\n");
    let off = json!({"enable_thinking": false});
    let continued = json!([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "<think>"}]);
    for (path, more, end) in [
        ("/v1/chat/completions", json!({}), open),
        ("/v1/chat/completions", json!({"reasoning_effort": "none"}), ended),
        ("/v1/chat/completions", json!({"reasoning_effort": "low"}), "hilow<think>\n"),
        ("/v1/chat/completions", json!({"chat_template_kwargs": off}), ended),
        ("/v1/chat/completions", json!({"reasoning_effort": "none", "thinking_budget": 1}), ended),
        (
            "/v1/chat/completions",
            json!({"reasoning_effort": "none", "continue_final_message": true, "messages": continued}),
            "hi<think>",
        ),
        ("/v1/responses", json!({"input": "hi", "reasoning": {"effort": "none"}}), ended),
        ("/v1/responses", json!({"input": "hi", "reasoning": {"effort": "high"}}), "hihigh<think>\n"),
        ("/v1/messages", json!({"max_tokens": 9}), ended),
        ("/v1/messages", json!({"max_tokens": 9, "thinking": {"type": "enabled", "budget_tokens": 1024}}), open),
        ("/api/chat", json!({"think": false, "stream": false}), ended),
        ("/api/chat", json!({"think": "high", "stream": false}), "hihigh<think>\n"),
    ] {
        let reply = post(&router, path, chat_body(more.clone())).await;
        assert_eq!(reply.status, 200, "{more}: {}", reply.text);
        let prompt = shown();
        assert!(prompt.ends_with(end), "{path} {more}: {prompt}");
        if path == "/v1/chat/completions" && end == ended {
            assert_eq!(reply.json()["choices"][0]["message"]["content"], "Yes.", "{more}");
        }
    }
}

#[tokio::test]
async fn an_answer_of_one_form_has_no_thoughts_even_where_the_template_opens_them() {
    let (router, requests) = thinking_requests("{}");
    let prompt = || {
        let prompt: Vec<u8> = requests.recv().expect("a request").prompt.iter().map(|id| *id as u8).collect();
        String::from_utf8(prompt).expect("UTF-8")
    };
    let form = json!({"type": "json_object"});
    for (more, end) in [
        (json!({}), "hi<think>\n"),
        (json!({"response_format": form}), "hi"),
        (json!({"response_format": form, "reasoning_effort": "high"}), "hi<think>\n\n</think>\n\n"),
    ] {
        let body = post(&router, "/v1/chat/completions", chat_body(more.clone())).await.json();
        assert_eq!(prompt(), end, "{more}");
        let field = if end.ends_with("<think>\n") { "reasoning_content" } else { "content" };
        assert_eq!(body["choices"][0]["message"][field], "{}", "{more}");
    }
}
