//! Health, metrics, models, request ids, web pages, and a net under panics.

use axum::Router;
use axum::body::Body;
use axum::http::Method;
use axum::routing::get as on_get;
use serde_json::{Value, json};

use super::fixture::*;
use crate::server::state::AppState;
use crate::server::{guard, router};

#[tokio::test]
async fn health_tells_the_model_the_device_and_why() {
    let (router, _requests) = saying("a");
    let reply = get(&router, "/health").await;
    assert_eq!(reply.status, 200);
    let expected = json!({
        "status": "ok", "reason": null, "model": MODEL, "device": "CPU, 2 threads",
        "device_reason": "no GPU is here", "context_length": 512,
        "memory": {
            "planned_bytes": 2_000_000_000, "used_bytes": null, "kv_cache_bytes": 1_000_000_000, "kv_cache_dtype": "f32"
        },
        "offload": null,
        "queue": {"running": 0, "waiting": 0, "max_waiting": 4}
    });
    assert_eq!(reply.json(), expected);
}

#[tokio::test]
async fn a_grammar_that_takes_long_to_compile_holds_up_nobody_who_brings_none() {
    let (sender, requests) = std::sync::mpsc::channel();
    let llm = llm(limits(), move |submission| {
        let _ = sender.send(submission.request.clone());
        say(&submission, "ab");
    });
    let (gate, held) = std::sync::mpsc::channel();
    llm.hold_grammars(held);
    let router = router(llm, config());
    // More than are compiled at once, with and without a text to encode.
    let slow = (0..3).flat_map(|_| {
        let regex = json!({"guided_regex": "[a-z]*"});
        let mut tokens = completion_body(regex.clone());
        tokens["prompt"] = json!([97, 98]);
        [("/v1/completions", tokens), ("/v1/chat/completions", chat_body(regex))]
    });
    let ask = |(path, body): (&'static str, Value)| {
        let router = router.clone();
        tokio::spawn(async move { post(&router, path, body).await })
    };
    let slow: Vec<_> = slow.map(ask).collect();
    // On one thread they come as far as they can.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(get(&router, "/health").await.status, 200);
    let chunks = soon(post(&router, "/v1/chat/completions", chat_body(json!({"stream": true})))).await.chunks();
    assert_eq!(chunks.last().expect("a chunk")["choices"][0]["finish_reason"], "stop");
    assert!(requests.recv().expect("a request").masks.is_none(), "a grammar was compiled first");
    assert!(requests.try_recv().is_err(), "a grammar was compiled");
    drop(gate);
    for reply in slow {
        assert_eq!(soon(reply).await.expect("an answer").status, 200);
        assert!(requests.recv().expect("a request").masks.is_some());
    }
}

#[tokio::test]
async fn health_says_when_it_drains_and_new_requests_get_503() {
    let (llm, _submissions) = held(limits());
    let router = router(llm.clone(), config());
    llm.engine().drain();
    let reply = get(&router, "/health").await;
    assert_eq!((reply.status.as_u16(), &reply.json()["status"]), (503, &json!("draining")));
    let reply = post(&router, "/v1/chat/completions", chat_body(json!({}))).await;
    assert_eq!(reply.error(), (503, Some("shutting_down".into()), None));
}

#[tokio::test]
async fn models_are_listed_with_their_aliases() {
    let (router, _requests) = saying("a");
    for path in ["/v1/models", "/models"] {
        let body = get(&router, path).await.json();
        assert_eq!(body["object"], "list");
        let ids: Vec<_> = body["data"].as_array().expect("a list").iter().map(|model| model["id"].clone()).collect();
        assert_eq!(ids, ["tiny:1b", "other-name", "org/name"]);
    }
    let expected = json!({
        "id": "org/name", "object": "model", "created": 1_700_000_000, "owned_by": "lantern", "root": MODEL,
        "max_model_len": 512
    });
    assert_eq!(get(&router, "/v1/models/org/name").await.json(), expected);
    let missing = get(&router, "/v1/models/gpt-4").await;
    assert_eq!(missing.error(), (404, Some("model_not_found".into()), Some("model".into())));
}

#[tokio::test]
async fn metrics_have_the_names_that_dashboards_read() {
    let (router, _requests) = saying("abc");
    post(&router, "/v1/chat/completions", chat_body(json!({}))).await;
    post(&router, "/v1/completions", completion_body(json!({"max_tokens": 2, "n": 2}))).await;
    let reply = get(&router, "/metrics").await;
    assert!(reply.headers["content-type"].to_str().expect("text").starts_with("text/plain; version=0.0.4"));
    let label = format!("model_name=\"{MODEL}\"");
    for line in [
        format!("vllm:num_requests_running{{{label}}} 0"),
        format!("vllm:num_requests_waiting{{{label}}} 0"),
        format!("vllm:kv_cache_usage_perc{{{label}}} 0"),
        format!("vllm:prefix_cache_queries_total{{{label}}} 0"),
        format!("vllm:prefix_cache_hits_total{{{label}}} 0"),
        format!("vllm:num_preemptions_total{{{label}}} 0"),
        format!("vllm:prompt_tokens_total{{{label}}} 0"),
        format!("vllm:generation_tokens_total{{{label}}} 0"),
        format!("vllm:request_success_total{{finished_reason=\"stop\",{label}}} 1"),
        format!("vllm:request_success_total{{finished_reason=\"length\",{label}}} 2"),
        format!("vllm:request_success_total{{finished_reason=\"abort\",{label}}} 0"),
        format!("vllm:time_to_first_token_seconds_count{{{label}}} 2"),
        format!("vllm:inter_token_latency_seconds_count{{{label}}} 5"),
        format!("vllm:time_per_output_token_seconds_count{{{label}}} 5"),
        format!("vllm:e2e_request_latency_seconds_count{{{label}}} 2"),
        format!("vllm:request_prompt_tokens_sum{{{label}}} 22"),
        format!("vllm:request_generation_tokens_sum{{{label}}} 8"),
    ] {
        assert!(reply.text.lines().any(|other| other == line), "{line}\n{}", reply.text);
    }
}

#[tokio::test]
async fn small_things_answer() {
    let (router, _requests) = saying("a");
    let greeting = get(&router, "/").await;
    assert_eq!(greeting.text, "Ollama is running", "what Ollama's clients compare with");
    assert!(greeting.headers["server"].to_str().is_ok_and(|server| server.starts_with("lantern/")));
    let mut browser = request(Method::GET, "/", Body::empty());
    browser.headers_mut().insert("accept", "text/html,application/xhtml+xml,*/*;q=0.8".parse().expect("a value"));
    assert!(send_request(&router, browser).await.text.starts_with("Lantern is running"));
    let head = send_request(&router, request(Method::HEAD, "/", Body::empty())).await;
    assert_eq!((head.status.as_u16(), head.text.as_str()), (200, ""));
    assert_eq!(get(&router, "/version").await.json(), json!({"version": env!("CARGO_PKG_VERSION")}));
}

#[tokio::test]
async fn a_request_id_is_repeated_or_made() {
    let (router, _requests) = saying("a");
    let with = |id: &str| {
        let mut request = request(Method::GET, "/health", Body::empty());
        request.headers_mut().insert("x-request-id", id.parse().expect("a value"));
        request
    };
    let reply = send_request(&router, with("abc-123")).await;
    assert_eq!(reply.headers["x-request-id"], "abc-123");
    let reply = send_request(&router, with(&"x".repeat(200))).await;
    assert_eq!(reply.headers["x-request-id"].len(), 32, "too long to be repeated");
    let (one, other) = (get(&router, "/nothing").await, get(&router, "/nothing").await);
    assert_ne!(one.headers["x-request-id"], other.headers["x-request-id"]);
}

#[tokio::test]
async fn pages_of_this_machine_may_call_and_others_may_not() {
    let (router, _requests) = saying("a");
    let from = |origin: &str, method: Method| {
        let mut request = request(method, "/v1/chat/completions", chat_body(json!({})).to_string());
        request.headers_mut().insert("origin", origin.parse().expect("a value"));
        request.headers_mut().insert("access-control-request-method", "POST".parse().expect("a value"));
        request.headers_mut().insert("access-control-request-headers", "authorization".parse().expect("a value"));
        request
    };
    let local = "http://localhost:3000";
    let preflight = send_request(&router, from(local, Method::OPTIONS)).await;
    assert_eq!(preflight.status, 200);
    assert_eq!(preflight.headers["access-control-allow-origin"], local);
    assert_eq!(preflight.headers["access-control-allow-methods"], "POST");
    assert_eq!(preflight.headers["access-control-allow-headers"], "authorization");
    let reply = send_request(&router, from(local, Method::POST)).await;
    assert_eq!(
        (reply.status.as_u16(), &reply.headers["access-control-allow-origin"]),
        (200, &local.parse().expect("a value"))
    );
    let evil = send_request(&router, from("https://evil.example", Method::POST)).await;
    assert_eq!(evil.error().1.as_deref(), Some("origin_not_allowed"));
    assert!(!evil.headers.contains_key("access-control-allow-origin"));
    let preflight = send_request(&router, from("https://evil.example", Method::OPTIONS)).await;
    assert!(!preflight.headers.contains_key("access-control-allow-origin"));
}

#[tokio::test]
async fn a_panic_ends_its_own_request_alone() {
    let (llm, _submissions) = held(limits());
    let app = AppState::new(llm.into(), config());
    async fn defect() -> &'static str {
        panic!("this test's own panic")
    }
    let router: Router = Router::new()
        .route("/defect", on_get(defect))
        .route("/fine", on_get(async || "fine"))
        .layer(axum::middleware::from_fn_with_state(app, guard::guard));
    assert_eq!(get(&router, "/defect").await.error(), (500, Some("internal_error".into()), None));
    assert_eq!(get(&router, "/fine").await.text, "fine");
}

#[tokio::test]
async fn another_program_nests_the_router() {
    let (inner, _requests) = saying("hello");
    let outer = Router::new().route("/", on_get(async || "theirs")).nest("/llm", inner);
    assert_eq!(get(&outer, "/").await.text, "theirs");
    let reply = post(&outer, "/llm/v1/chat/completions", chat_body(json!({}))).await;
    assert_eq!(reply.json()["choices"][0]["message"]["content"], "hello");
    assert_eq!(get(&outer, "/llm/nothing").await.error().0, 404);
    assert_ne!(get(&outer, "/llm/health").await.json(), Value::Null);
}
