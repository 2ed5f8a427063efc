//! Models that leave: removed while they are loaded, expired while somebody asks, and named twice.

use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use axum::http::{Method, StatusCode};
use serde_json::json;

use super::fixture::*;
use super::models::{Place, Shelf, loaded_names, says};
use crate::llm::Beside;
use crate::server::models::Models;
use crate::server::{ModelSource, ServedModels, router};

async fn listed_names(router: &axum::Router) -> (Vec<String>, Vec<String>) {
    let names = |list: &serde_json::Value, name: &str| {
        let all = list.as_array().expect("a list").iter();
        all.map(|model| model[name].as_str().expect("a name").to_owned()).collect()
    };
    let (tags, list) = (get(router, "/api/tags").await.json(), get(router, "/v1/models").await.json());
    (names(&tags["models"], "name"), names(&list["data"], "id"))
}

#[tokio::test]
async fn a_model_that_is_removed_while_it_answers_leaves_when_it_has_answered() {
    let shelf = Shelf::new(3);
    let (held, mut submissions) = held_as("a:1b", limits());
    let config = crate::server::ServerConfig { model_aliases: vec!["alias".into()], ..config() };
    // Pinned or not: what is here no more is not kept.
    let router = router(ServedModels::new(vec![held], shelf.clone()).pinned(), config);
    let chat = |model: &'static str| {
        let router = router.clone();
        async move { post(&router, "/v1/chat/completions", chat_body(json!({"model": model}))).await }
    };
    let running = tokio::spawn(chat("a:1b"));
    let submission = soon(submissions.recv()).await.expect("a request");
    let delete = request(Method::DELETE, "/api/delete", json!({"model": "a:1b"}).to_string());
    assert_eq!(send_request(&router, delete).await.status, StatusCode::OK);
    let left = ["b:1b", "c:1b"].map(str::to_owned).to_vec();
    assert_eq!(listed_names(&router).await, (left.clone(), left));
    for gone in ["a:1b", "a:1b:latest", "alias"] {
        let refused = chat(gone).await;
        assert_eq!(refused.error().0, 404, "{gone}: {}", refused.text);
    }
    assert_eq!(get(&router, "/v1/models/a:1b").await.status, StatusCode::NOT_FOUND);
    assert_eq!(loaded_names(&router).await, ["a:1b"], "it holds its memory");
    say(&submission, "done");
    assert_eq!(soon(running).await.expect("an answer").status, StatusCode::OK);
    // As the server does once a second.
    post(&router, "/api/generate", json!({"model": "b:1b"})).await;
    assert_eq!(loaded_names(&router).await, ["b:1b"]);
}

#[tokio::test]
async fn a_model_that_another_process_removes_leaves_too_and_comes_back_with_its_files() {
    let shelf = Shelf::new(3);
    let loaded = vec![shelf.load("a:1b", Beside::default()).expect("room")];
    let models = Models::new(ServedModels::new(loaded, shelf.clone()), &config());
    models.unload_expired().await;
    assert_eq!(shelf.is_loaded(), 1);
    shelf.removed.lock().expect("no panic").push("a:1b".into());
    models.unload_expired().await;
    assert_eq!(shelf.is_loaded(), 0);
    assert_eq!(models.get("a:1b").await.map(|_| ()).map_err(|error| error.status.as_u16()), Err(404));
    shelf.removed.lock().expect("no panic").clear();
    assert!(models.get("a:1b").await.is_ok());
}

#[tokio::test]
async fn a_model_that_another_version_replaces_leaves_and_that_is_loaded() {
    let shelf = Shelf::new(3);
    let models = Models::new(ServedModels::new(Vec::new(), shelf.clone()), &config());
    assert!(models.get("a:1b").await.is_ok());
    models.unload_expired().await;
    assert_eq!((shelf.is_loaded(), shelf.loads.load(Ordering::SeqCst)), (1, 1), "it is the same");
    shelf.replaced.lock().expect("no panic").push("a:1b".into());
    models.unload_expired().await;
    assert_eq!(shelf.is_loaded(), 0);
    assert!(models.get("a:1b").await.is_ok());
    assert_eq!(shelf.loads.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_model_of_elsewhere_is_nobodys_to_remove() {
    let (models, shelf) = (vec![named("./file.gguf", "yes", ())], Shelf::new(1));
    let models = Models::new(ServedModels::new(models, shelf), &config());
    models.unload_expired().await;
    assert!(models.find("./file.gguf").is_some());
}

#[tokio::test]
async fn a_model_of_two_names_is_loaded_once() {
    let shelf = Shelf { second_name: Some("b-again"), ..Shelf::new(3) };
    let router = shelf.router(&[], config());
    assert_eq!((says(&router, "b:1b").await.as_str(), says(&router, "b-again").await.as_str()), ("b", "b"));
    assert_eq!(shelf.loads.load(Ordering::SeqCst), 1);
    assert_eq!(listed_names(&router).await.0, ["b:1b", "a:1b", "c:1b", "b-again"]);
    // Both were named at start: neither is listed as another model, too.
    let loaded = vec![named("b:1b", "b", ())];
    let models = ServedModels::new(loaded, shelf.clone());
    let models = models.with_further_name("b:1b", "b-again").with_further_name("b:1b", "./b.gguf");
    let config = crate::server::ServerConfig { model_aliases: Vec::new(), ..config() };
    let router = crate::server::router(models, config);
    assert_eq!(says(&router, "b-again").await, "b");
    let lists = |names: &[&str]| {
        let names: Vec<_> = names.iter().map(|name| name.to_string()).collect();
        (names.clone(), names)
    };
    assert_eq!(listed_names(&router).await, lists(&["b:1b", "b-again", "./b.gguf", "a:1b", "c:1b"]));
    // Of the names that are removed the others are left.
    shelf.removed.lock().expect("no panic").push("b-again".into());
    assert_eq!(listed_names(&router).await, lists(&["b:1b", "./b.gguf", "a:1b", "c:1b"]));
    let refused = post(&router, "/v1/chat/completions", chat_body(json!({"model": "b-again"}))).await;
    assert_eq!(refused.status, StatusCode::NOT_FOUND);
}

/// Leaves its place no sooner than it is let.
struct Slow {
    leaves: mpsc::Sender<()>,
    go_on: Mutex<mpsc::Receiver<()>>,
    _place: Place,
}

impl Drop for Slow {
    fn drop(&mut self) {
        let _ = self.leaves.send(());
        let _ = self.go_on.lock().expect("no panic").recv();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_while_a_model_leaves_waits_for_its_memory() {
    let shelf = Shelf::new(1);
    shelf.loaded.fetch_add(1, Ordering::SeqCst);
    let (leaves, leaving) = mpsc::channel();
    let (let_go, go_on) = mpsc::channel();
    let slow = Slow { leaves, go_on: Mutex::new(go_on), _place: Place(shelf.loaded.clone()) };
    let config = crate::server::ServerConfig { keep_alive: crate::config::KeepAlive::For(Duration::ZERO), ..config() };
    let models = Models::new(ServedModels::new(vec![named("a:1b", "a", slow)], shelf.clone()), &config);
    let expiring = tokio::spawn({
        let models: Arc<Models> = models.clone();
        async move { models.unload_expired().await }
    });
    tokio::task::spawn_blocking(move || leaving.recv()).await.expect("no panic").expect("it leaves");
    let mut asked = pin!(models.get("a:1b"));
    assert!(tokio::time::timeout(Duration::from_millis(50), asked.as_mut()).await.is_err(), "it waits");
    let_go.send(()).expect("it waits for this");
    assert!(soon(asked).await.is_ok());
    soon(expiring).await.expect("no panic");
    assert_eq!(shelf.refusals.load(Ordering::SeqCst), 0, "nobody planned with memory that was still held");
}
