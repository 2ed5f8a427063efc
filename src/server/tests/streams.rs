//! Streams, event by event.

use serde_json::{Value, json};

use super::fixture::*;
use crate::request::{FinishReason, RequestEvent};
use crate::server::router;

#[tokio::test]
async fn a_chat_streams_role_text_reason_and_done() {
    let (router, _requests) = saying("hé");
    let reply = post(&router, "/v1/chat/completions", chat_body(json!({"stream": true}))).await;
    assert_eq!(reply.headers["content-type"], "text/event-stream");
    let chunks = reply.chunks();
    let deltas: Vec<_> = chunks.iter().map(|chunk| chunk["choices"][0]["delta"].clone()).collect();
    let expected =
        [json!({"role": "assistant", "content": ""}), json!({"content": "h"}), json!({"content": "é"}), json!({})];
    assert_eq!(deltas, expected, "half a letter and the end token make no chunk");
    let reasons: Vec<_> = chunks.iter().map(|chunk| chunk["choices"][0]["finish_reason"].clone()).collect();
    assert_eq!(reasons, [Value::Null, Value::Null, Value::Null, json!("stop")]);
    for chunk in &chunks {
        assert_eq!((&chunk["id"], &chunk["object"]), (&chunks[0]["id"], &json!("chat.completion.chunk")));
        assert_eq!((&chunk["model"], &chunk["created"]), (&json!(MODEL), &chunks[0]["created"]));
        assert_eq!(chunk["choices"][0]["logprobs"], Value::Null);
        assert!(chunk["choices"][0].as_object().expect("an object").contains_key("logprobs"));
        assert!(chunk.get("usage").is_none(), "nobody asked for it");
    }
}

#[tokio::test]
async fn usage_comes_last_and_without_choices() {
    let (router, _requests) = saying("ab");
    let more = json!({"stream": true, "stream_options": {"include_usage": true}});
    for (path, body, prompt) in
        [("/v1/chat/completions", chat_body(more.clone()), 20), ("/v1/completions", completion_body(more.clone()), 2)]
    {
        let mut chunks = post(&router, path, body).await.chunks();
        let last = chunks.pop().expect("a last chunk");
        assert_eq!(last["choices"], json!([]), "{path}");
        let mut usage = json!({
            "prompt_tokens": prompt, "completion_tokens": 3, "total_tokens": prompt + 3,
            "prompt_tokens_details": {"cached_tokens": 1}
        });
        // A completion is text alone.
        if path.contains("chat") {
            usage["completion_tokens_details"] = json!({"reasoning_tokens": 0});
        }
        assert_eq!(last["usage"], usage, "{path}");
        for chunk in chunks {
            assert_eq!(chunk.get("usage"), Some(&Value::Null), "{path}");
        }
    }
}

#[tokio::test]
async fn usage_in_every_chunk_where_asked_for() {
    let (router, _requests) = saying("ab");
    let more = json!({"stream": true, "stream_options": {"include_usage": true, "continuous_usage_stats": true}});
    let chunks = post(&router, "/v1/chat/completions", chat_body(more)).await.chunks();
    let counts: Vec<_> = chunks.iter().map(|chunk| chunk["usage"]["completion_tokens"].as_u64()).collect();
    assert_eq!(counts, [Some(0), Some(1), Some(2), Some(3), Some(3)]);
}

#[tokio::test]
async fn chat_logprobs_stream_with_their_tokens() {
    let (router, _requests) = saying("é");
    let chunks =
        post(&router, "/v1/chat/completions", chat_body(json!({"stream": true, "logprobs": true}))).await.chunks();
    let tokens: Vec<_> = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["logprobs"]["content"].as_array())
        .flatten()
        .map(|token| token["bytes"][0].clone())
        .collect();
    assert_eq!(tokens, [json!(195), json!(169), json!(60)], "both halves and `<|end|>`");
}

#[tokio::test]
async fn choices_stream_under_their_own_numbers() {
    let (router, _requests) = saying("ab");
    let more = json!({"stream": true, "prompt": ["x", "y"], "n": 2, "echo": true, "max_tokens": 2});
    let chunks = post(&router, "/v1/completions", completion_body(more)).await.chunks();
    let mut texts = vec![String::new(); 4];
    let mut reasons = vec![Value::Null; 4];
    for chunk in chunks {
        let choice = &chunk["choices"][0];
        let index = choice["index"].as_u64().expect("a number") as usize;
        assert_eq!(reasons[index], Value::Null, "nothing follows the reason");
        texts[index].push_str(choice["text"].as_str().expect("a text"));
        reasons[index] = choice["finish_reason"].clone();
    }
    assert_eq!(texts, ["xab", "xab", "yab", "yab"]);
    assert_eq!(reasons, vec![json!("length"); 4]);
}

#[tokio::test]
async fn completion_offsets_go_on_from_chunk_to_chunk() {
    let (router, _requests) = saying("cd");
    let more = json!({"stream": true, "echo": true, "logprobs": 0, "max_tokens": 2});
    let chunks = post(&router, "/v1/completions", completion_body(more)).await.chunks();
    let offsets: Vec<_> = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["logprobs"]["text_offset"].as_array())
        .flatten()
        .filter_map(Value::as_u64)
        .collect();
    assert_eq!(offsets, [0, 1, 2, 3]);
}

#[tokio::test]
async fn an_error_after_the_start_ends_the_stream_without_done() {
    let llm = llm(limits(), |submission| {
        start(&submission);
        token(&submission, 0, 97);
        let _ = submission.events.try_send(RequestEvent::Failed("a broken step".into()));
    });
    let router = router(llm, config());
    let reply = post(&router, "/v1/chat/completions", chat_body(json!({"stream": true}))).await;
    assert_eq!(reply.status, 200);
    let events = reply.events();
    let last: Value = serde_json::from_str(events.last().expect("an event")).expect("JSON");
    assert_eq!((&last["error"]["code"], &last["error"]["type"]), (&json!("generation_failed"), &json!("server_error")));
    assert!(last["error"]["message"].as_str().expect("a text").contains("a broken step"));
    assert!(!reply.text.contains("[DONE]"));
    let whole = post(&router, "/v1/chat/completions", chat_body(json!({}))).await;
    assert_eq!(whole.error(), (500, Some("generation_failed".into()), None));
}

#[tokio::test]
async fn what_the_engine_drops_is_told_as_too_slow() {
    let llm = llm(limits(), |submission| start(&submission));
    let reply = post(&router(llm, config()), "/v1/chat/completions", chat_body(json!({}))).await;
    assert_eq!(reply.error(), (408, Some("reader_too_slow".into()), None));
}

#[tokio::test]
async fn text_may_hold_line_ends_and_anything_else() {
    let (router, _requests) = saying("a\r\nb\n\ndata: \"x\"\u{2028}");
    let chunks = post(&router, "/v1/chat/completions", chat_body(json!({"stream": true}))).await.chunks();
    let text: String = chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(text, "a\r\nb\n\ndata: \"x\"\u{2028}");
}

#[tokio::test]
async fn the_reason_of_a_cut_answer_is_length() {
    let llm = llm(limits(), |submission| {
        start(&submission);
        token(&submission, 0, 97);
        finish(&submission, 0, FinishReason::Length);
    });
    let chunks =
        post(&router(llm, config()), "/v1/chat/completions", chat_body(json!({"stream": true}))).await.chunks();
    assert_eq!(chunks.last().expect("a chunk")["choices"][0]["finish_reason"], "length");
}
