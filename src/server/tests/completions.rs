//! Completions, whole.

use serde_json::{Value, json};

use super::fixture::*;

#[tokio::test]
async fn texts_become_tokens_and_tokens_texts() {
    let (router, requests) = saying("a");
    let reply = post(&router, "/tokenize", json!({"model": MODEL, "prompt": "hi", "return_token_strs": true})).await;
    let expected = json!({"count": 2, "max_model_len": CONTEXT, "tokens": [104, 105], "token_strs": ["h", "i"]});
    assert_eq!(reply.json(), expected);
    let chat = json!({"model": MODEL, "messages": [{"role": "user", "content": "hi"}]});
    assert_eq!(post(&router, "/tokenize", chat).await.json()["count"], 20);
    let mut chat = chat_body(json!({"add_generation_prompt": false}));
    assert_eq!(post(&router, "/tokenize", chat.clone()).await.json()["tokens"], json!(b"user: hi\n"));
    chat["add_generation_prompt"] = true.into();
    assert_eq!(post(&router, "/tokenize", chat.clone()).await.json()["count"], 20);
    chat["continue_final_message"] = true.into();
    assert_eq!(post(&router, "/tokenize", chat).await.error(), (400, None, Some("add_generation_prompt".into())));
    let reply = post(&router, "/v1/detokenize", json!({"model": MODEL, "tokens": [104, 105, 256]})).await;
    assert_eq!(reply.json(), json!({"prompt": "hi<|end|>"}));
    let reply = post(&router, "/detokenize", json!({"model": MODEL, "tokens": [999]})).await;
    assert_eq!(reply.error().2.as_deref(), Some("tokens"));
    let reply = post(&router, "/tokenize", json!({"model": MODEL})).await;
    assert_eq!(reply.error().2.as_deref(), Some("prompt"));
    assert!(requests.try_recv().is_err(), "none of these is a request to the engine");
}

#[tokio::test]
async fn a_completion_is_answered_in_openai_s_form() {
    let (router, requests) = saying("cd");
    for path in ["/v1/completions", "/completions"] {
        let body = post(&router, path, completion_body(json!({}))).await.json();
        assert!(body["id"].as_str().expect("an id").starts_with("cmpl-"));
        assert_eq!(body["object"], "text_completion");
        let choice = json!({"index": 0, "text": "cd", "logprobs": null, "finish_reason": "stop"});
        assert_eq!(body["choices"], json!([choice]));
        assert_eq!((&body["usage"]["prompt_tokens"], &body["usage"]["completion_tokens"]), (&json!(2), &json!(3)));
        assert_eq!(requests.recv().expect("one").stop.max_tokens, 16, "OpenAI's default");
    }
}

#[tokio::test]
async fn every_form_of_prompt_is_taken() {
    let (router, requests) = saying("!");
    let cases = [
        (json!("ab"), vec!["ab"]),
        (json!(["ab", "c"]), vec!["ab", "c"]),
        (json!([97, 98]), vec!["ab"]),
        (json!([[97, 98], [99]]), vec!["ab", "c"]),
    ];
    for (prompt, texts) in cases {
        let body =
            post(&router, "/v1/completions", completion_body(json!({"prompt": prompt, "echo": true, "n": 2}))).await;
        let body = body.json();
        let choices = body["choices"].as_array().unwrap_or_else(|| panic!("{body}"));
        let expected: Vec<_> = texts.iter().flat_map(|text| [format!("{text}!"), format!("{text}!")]).collect();
        let seen: Vec<_> = choices.iter().map(|choice| choice["text"].as_str().expect("a text")).collect();
        assert_eq!(seen, expected, "{prompt}");
        let indices: Vec<_> = choices.iter().map(|choice| choice["index"].as_u64().expect("a number")).collect();
        assert_eq!(indices, (0..expected.len() as u64).collect::<Vec<_>>());
        let seen: Vec<_> = texts.iter().map(|_| requests.recv().expect("one").prompt.len()).collect();
        assert_eq!(seen, texts.iter().map(|text| text.len()).collect::<Vec<_>>());
    }
}

/// What lm-eval sends, and how it reads the answer.
#[tokio::test]
async fn echo_with_logprobs_tells_those_of_the_prompt() {
    let (router, _requests) = saying("d");
    let more =
        json!({"prompt": [[97, 98, 99]], "echo": true, "logprobs": 1, "max_tokens": 1, "seed": 1234, "temperature": 0});
    let body = post(&router, "/v1/completions", completion_body(more)).await.json();
    assert_eq!(body["choices"][0]["text"], "abcd");
    let logprobs = &body["choices"][0]["logprobs"];
    assert_eq!(logprobs["tokens"], json!(["a", "b", "c", "d"]));
    assert_eq!(logprobs["token_logprobs"], json!([null, -98.0, -99.0, -100.0]));
    assert_eq!(logprobs["text_offset"], json!([0, 1, 2, 3]));
    // The best alternative, and the token itself.
    assert_eq!(logprobs["top_logprobs"][0], Value::Null);
    assert_eq!(logprobs["top_logprobs"][1], json!({"x": -2.0, "b": -98.0}));
}

#[tokio::test]
async fn no_tokens_with_echo_give_the_prompt_alone() {
    let (router, requests) = saying("zzz");
    let more = json!({"echo": true, "logprobs": 0, "max_tokens": 0});
    let body = post(&router, "/v1/completions", completion_body(more.clone())).await.json();
    assert_eq!(body["choices"][0]["text"], "ab");
    assert_eq!(body["choices"][0]["finish_reason"], "length");
    assert_eq!(body["choices"][0]["logprobs"]["tokens"], json!(["a", "b"]));
    assert_eq!(body["usage"]["completion_tokens"], 0);
    assert_eq!(requests.recv().expect("one").stop.max_tokens, 1);
    let mut stream = completion_body(more);
    stream["stream"] = json!(true);
    let chunks = post(&router, "/v1/completions", stream).await.chunks();
    let texts: Vec<_> = chunks.iter().map(|chunk| chunk["choices"][0]["text"].as_str().expect("a text")).collect();
    assert_eq!(texts, ["ab", ""]);
}

#[tokio::test]
async fn logprobs_write_parts_of_characters_as_bytes() {
    let (router, _requests) = saying("é");
    let body = post(&router, "/v1/completions", completion_body(json!({"logprobs": 0}))).await.json();
    let logprobs = &body["choices"][0]["logprobs"];
    assert_eq!(logprobs["tokens"][0], "bytes:\\xc3");
    assert_eq!(logprobs["top_logprobs"][1], json!({"bytes:\\xa9": -169.0}));
}

#[tokio::test]
async fn prompt_logprobs_stand_in_each_choice() {
    let (router, _requests) = saying("d");
    let body = post(&router, "/v1/completions", completion_body(json!({"prompt_logprobs": 0}))).await.json();
    let expected = json!([null, {"98": {"logprob": -98.0, "rank": 1, "decoded_token": "b"}}]);
    assert_eq!(body["choices"][0]["prompt_logprobs"], expected);
}

#[tokio::test]
async fn min_tokens_raise_the_default_length() {
    let (router, requests) = saying("d");
    post(&router, "/v1/completions", completion_body(json!({"min_tokens": 40}))).await;
    assert_eq!(requests.recv().expect("one").stop.max_tokens, 40);
    post(&router, "/v1/completions", completion_body(json!({"max_completion_tokens": 5}))).await;
    assert_eq!(requests.recv().expect("one").stop.max_tokens, 5);
}

#[tokio::test]
async fn a_stop_string_ends_no_answer_before_its_least_tokens() {
    let (router, _requests) = saying("one two three");
    for (min_tokens, text) in [(0, "one"), (4, "one"), (5, "one t"), (6, "one t"), (7, "one two"), (9, "one two three")]
    {
        let more = json!({"stop": [" t", "wo"], "min_tokens": min_tokens, "max_tokens": 20});
        let body = post(&router, "/v1/completions", completion_body(more)).await.json();
        let choice = &body["choices"][0];
        assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!(text), &json!("stop")), "{min_tokens}");
    }
    let more = json!({"stop": "three", "min_tokens": 13, "max_tokens": 20});
    let body = post(&router, "/v1/completions", completion_body(more)).await.json();
    assert_eq!(body["choices"][0]["text"], "one two three");
}
