//! Lantern's HTTP API inside another axum program, under a path of its own; asks itself one question and ends.
//!
//! `cargo run --release --example embed_server`

use std::future::IntoFuture;
use std::net::SocketAddr;

use axum::Router;
use axum::routing::get;
use lantern::Llm;
use lantern::server::{ServerConfig, router};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let llm = Llm::builder().load().await?;
    let app = Router::new()
        .route("/", get(async || "The rest of this program."))
        .nest("/ai", router(llm, ServerConfig::default()));

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    println!("serving on http://{address}/ai/v1");
    // With addresses, so that each client without a key is a tenant of its own.
    let app = app.into_make_service_with_connect_info::<SocketAddr>();
    let server = tokio::spawn(axum::serve(listener, app).into_future());

    let answer =
        tokio::task::spawn_blocking(move || ask(&format!("http://{address}/ai/v1/chat/completions"))).await??;
    println!("{answer}");
    server.abort();
    Ok(())
}

fn ask(url: &str) -> anyhow::Result<String> {
    let body = serde_json::json!({
        "model": "smollm2:135m",
        "messages": [{"role": "user", "content": "Say hello."}],
        "temperature": 0,
        "max_tokens": 20,
    });
    let answer: serde_json::Value = ureq::post(url).send_json(body)?.body_mut().read_json()?;
    Ok(answer["choices"][0]["message"]["content"].to_string())
}
