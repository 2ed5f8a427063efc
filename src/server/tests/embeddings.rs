//! Texts as vectors, in OpenAI's and in Ollama's form. The fake engine's vector says the prompt's length and the pooling.

use serde_json::{Value, json};

use super::fixture::*;

async fn openai(fields: Value) -> Reply {
    let mut body = json!({"model": MODEL});
    body.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
    post(&saying("").0, "/v1/embeddings", body).await
}

#[tokio::test]
async fn every_form_of_input_becomes_vectors_in_order() {
    for (input, lengths) in [
        (json!("ab"), vec![2]),
        (json!(["abc", "d"]), vec![3, 1]),
        (json!([97, 98]), vec![2]),
        (json!([[97], [98, 99]]), vec![1, 2]),
    ] {
        let body = openai(json!({"input": input, "normalize": false})).await.json();
        let data = lengths.iter().enumerate();
        let data: Vec<_> = data
            .map(|(index, length)| json!({"object": "embedding", "index": index, "embedding": [f64::from(*length), 0.0, 0.0]}))
            .collect();
        assert_eq!(body["data"], json!(data), "{input}");
        let tokens: i32 = lengths.iter().sum();
        assert_eq!(body["usage"], json!({"prompt_tokens": tokens, "total_tokens": tokens}));
        assert_eq!((&body["object"], &body["model"]), (&json!("list"), &json!(MODEL)));
    }
}

#[tokio::test]
async fn vectors_are_normed_pooled_cut_and_written_as_asked() {
    let vector = |reply: Reply| reply.json()["data"][0]["embedding"].clone();
    assert_eq!(vector(openai(json!({"input": "abc"})).await), json!([1.0, 0.0, 0.0]));
    let mean = json!({"input": "a", "pooling": "mean", "normalize": false, "dimensions": 2});
    assert_eq!(vector(openai(mean).await), json!([1.0, 1.0]));
    // 1.0, 0.0, 0.0 as floats of 4 bytes.
    assert_eq!(vector(openai(json!({"input": "abc", "encoding_format": "base64"})).await), "AACAPwAAAAAAAAAA");
}

#[tokio::test]
async fn what_is_wrong_is_named() {
    let many: Vec<_> = (0..2049).map(|_| "a").collect();
    let cases = [
        (json!({}), "input"),
        (json!({"input": []}), "input"),
        (json!({"input": many}), "input"),
        (json!({"input": [1.5]}), "input[0]"),
        (json!({"input": ""}), "input"),
        (json!({"input": "a", "dimensions": 4}), "dimensions"),
        (json!({"input": "a", "encoding_format": "hex"}), "encoding_format"),
        (json!({"input": "a", "pooling": "max"}), "pooling"),
    ];
    for (fields, name) in cases {
        let reply = openai(fields.clone()).await;
        assert_eq!((reply.status.as_u16(), reply.error().2.as_deref()), (400, Some(name)), "{fields}: {}", reply.text);
    }
    assert!(openai(json!({"input": ""})).await.message().starts_with("input: it has no tokens"));
    let long = "a".repeat(CONTEXT as usize);
    let reply = openai(json!({"input": ["short", long]})).await;
    assert!(reply.status == 400 && reply.message().contains("512 tokens"), "{}", reply.text);
}

#[tokio::test]
async fn ollama_gives_vectors_of_length_one_and_the_older_route_the_model_s_own() {
    let (router, _requests) = saying("");
    let body = post(&router, "/api/embed", json!({"model": MODEL, "input": ["abc", "d"]})).await.json();
    assert_eq!(
        (&body["embeddings"], &body["prompt_eval_count"]),
        (&json!([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]), &json!(4))
    );
    assert!(body["total_duration"].as_u64() >= body["load_duration"].as_u64(), "{body}");
    let body = post(&router, "/api/embed", json!({"model": MODEL, "input": "abc", "dimensions": 2})).await.json();
    assert_eq!(body["embeddings"], json!([[1.0, 0.0]]));
    assert_eq!(post(&router, "/api/embed", json!({"model": MODEL, "input": []})).await.json()["embeddings"], json!([]));
    let body = post(&router, "/api/embeddings", json!({"model": MODEL, "prompt": "abc"})).await.json();
    assert_eq!(body, json!({"embedding": [3.0, 0.0, 0.0]}));
    let long = "a".repeat(CONTEXT as usize + 5);
    let cut = json!({"model": MODEL, "input": long, "truncate": true});
    assert_eq!(post(&router, "/api/embed", cut).await.json()["prompt_eval_count"], CONTEXT - 1);
    let refused = post(&router, "/api/embed", json!({"model": MODEL, "input": long})).await;
    assert!(refused.status == 400 && refused.text.contains("517 tokens"), "{}", refused.text);
    let of = |input: &str, more: Value| json!({"model": MODEL, "input": input, "options": more, "truncate": false});
    let fits = post(&router, "/api/embed", of("abcdefg", json!({"num_ctx": 8}))).await;
    assert_eq!((fits.status.as_u16(), fits.headers.get("x-lantern-context-length")), (200, None), "{}", fits.text);
    let refused = post(&router, "/api/embed", of("abcdefgh", json!({"num_ctx": 8}))).await;
    assert!(refused.status == 400 && refused.text.contains("8 tokens"), "{}", refused.text);
    let mut cut = of("abcdefgh", json!({"num_ctx": 8}));
    cut["truncate"] = true.into();
    assert_eq!(post(&router, "/api/embed", cut).await.json()["prompt_eval_count"], 7);
    let more = post(&router, "/api/embed", of("a", json!({"num_ctx": 4096}))).await;
    assert_eq!(more.headers["x-lantern-context-length"], "512");
}
