//! Several models: loaded when they are asked for, leaving when others need their memory.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::http::{Method, StatusCode};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use serde_json::{Value, json};

use super::fixture::*;
use crate::engine::StartError;
use crate::llm::{Beside, HubError, Llm, LoadError, LocalModel, ModelDescription, NameError, Progress};
use crate::server::models::Models;
use crate::server::{ModelSource, ServedModels, ServerConfig, router};

/// Counts what is loaded while it lives.
pub(super) struct Place(pub(super) Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Models `a:1b`, `b:1b` and `c:1b`, of which `room` fit at once. Each says its own name's letter.
#[derive(Clone)]
pub(super) struct Shelf {
    pub(super) room: usize,
    pub(super) loaded: Arc<AtomicUsize>,
    pub(super) loads: Arc<AtomicUsize>,
    /// How often there was no room.
    pub(super) refusals: Arc<AtomicUsize>,
    /// Another name of `b:1b`.
    pub(super) second_name: Option<&'static str>,
    /// The model that fits only where no other is.
    pub(super) large: &'static str,
    /// Bytes that others may hold at most where one is to be loaded.
    pub(super) most_reserved: u64,
    /// What the last one to be loaded had to leave to others.
    pub(super) reserved: Arc<AtomicU64>,
    /// The least context of each attempt to load one.
    pub(super) least_contexts: Arc<Mutex<Vec<u32>>>,
    /// Models that are here no more.
    pub(super) removed: Arc<Mutex<Vec<String>>>,
    /// Names of which another version is here now.
    pub(super) replaced: Arc<Mutex<Vec<String>>>,
}

impl Shelf {
    pub(super) fn new(room: usize) -> Self {
        Self {
            room,
            loaded: Arc::default(),
            loads: Arc::default(),
            refusals: Arc::default(),
            second_name: None,
            large: "",
            most_reserved: u64::MAX,
            reserved: Arc::default(),
            least_contexts: Arc::default(),
            removed: Arc::default(),
            replaced: Arc::default(),
        }
    }

    pub(super) fn router(&self, loaded: &[&str], config: ServerConfig) -> Router {
        let loaded = loaded.iter().map(|name| self.load(name, Beside::default()).expect("room")).collect();
        router(ServedModels::new(loaded, self.clone()), config)
    }

    pub(super) fn is_loaded(&self) -> usize {
        self.loaded.load(Ordering::SeqCst)
    }
}

impl ModelSource for Shelf {
    fn list(&self) -> Vec<LocalModel> {
        let one = |name: &str| LocalModel {
            name: name.to_owned(),
            bytes: 5,
            modified_at_unix_s: 1_600_000_000,
            // `b:1b` has a second name.
            digest: format!("d{}", name.replace("b-again", "b:1b")),
        };
        let names = ["a:1b", "b:1b", "c:1b"].into_iter().chain(self.second_name);
        names.filter(|name| self.has(name)).map(one).collect()
    }

    fn digest(&self, name: &str) -> Option<String> {
        if self.replaced.lock().expect("no panic").iter().any(|replaced| replaced == name) {
            return Some("another".into());
        }
        self.list().into_iter().find(|model| model.name == name).map(|model| model.digest)
    }

    fn has(&self, name: &str) -> bool {
        !self.removed.lock().expect("no panic").iter().any(|removed| removed == name)
    }

    fn load(&self, name: &str, beside: Beside) -> Result<Llm, LoadError> {
        self.reserved.store(beside.reserved_bytes, Ordering::SeqCst);
        let room = if name == self.large { 1 } else { self.room };
        self.least_contexts.lock().expect("no panic").push(beside.least_context);
        if self.loaded.load(Ordering::SeqCst) >= room || beside.reserved_bytes > self.most_reserved {
            self.refusals.fetch_add(1, Ordering::SeqCst);
            let full = crate::PlanError::DoesNotFit {
                needed_bytes: 2,
                weight_bytes: 1,
                workspace_bytes: 1,
                least_kv_bytes: 0,
                free_bytes: 0,
            };
            return Err(LoadError::Start(StartError::Model(crate::ModelError::Plan(full))));
        }
        self.loaded.fetch_add(1, Ordering::SeqCst);
        self.loads.fetch_add(1, Ordering::SeqCst);
        let text = match name {
            "a:1b" => "a",
            "b:1b" | "b-again" => "b",
            _ => "c",
        };
        Ok(named(name, text, Place(self.loaded.clone())))
    }

    fn describe(&self, name: &str) -> Result<ModelDescription, LoadError> {
        Ok(named(name, "", ()).describe())
    }

    fn pull(&self, name: &str, progress: &mut dyn Progress) -> Result<(), HubError> {
        if name == "nobody" {
            return Err(HubError::NotPresent { name: name.into() });
        }
        progress.start("a package", None);
        progress.promise("ab12");
        progress.start("weights", Some(8));
        progress.advance(8);
        progress.finish();
        Ok(())
    }

    fn copy(&self, source: &str, destination: &str) -> Result<(), HubError> {
        if destination == "b/../c" {
            return Err(NameError::Refused { text: destination.into() }.into());
        }
        self.list()
            .iter()
            .find(|model| model.name == source)
            .map(|_| ())
            .ok_or_else(|| HubError::NotPresent { name: source.into() })
    }

    fn remove(&self, name: &str) -> Result<(), HubError> {
        if name != "a:1b" {
            return Err(HubError::NotStored { name: name.into() });
        }
        self.removed.lock().expect("no panic").push(name.into());
        Ok(())
    }
}

pub(super) async fn says(router: &Router, model: &str) -> String {
    let reply = post(router, "/v1/chat/completions", chat_body(json!({"model": model}))).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    reply.json()["choices"][0]["message"]["content"].as_str().expect("text").to_owned()
}

pub(super) async fn loaded_names(router: &Router) -> Vec<String> {
    let ps = get(router, "/api/ps").await.json();
    let names = ps["models"].as_array().expect("a list").iter().map(|model| model["name"].as_str().expect("a name"));
    names.map(str::to_owned).collect()
}

#[tokio::test]
async fn a_model_is_loaded_when_it_is_asked_for_once() {
    let shelf = Shelf::new(3);
    let router = shelf.router(&["a:1b"], config());
    let (first, second) = tokio::join!(says(&router, "b:1b"), says(&router, "b:1b:latest"));
    assert_eq!((first.as_str(), second.as_str(), says(&router, "a:1b").await.as_str()), ("b", "b", "a"));
    assert_eq!(shelf.loads.load(Ordering::SeqCst), 2);
    // As the first one was planned.
    assert_eq!(shelf.reserved.load(Ordering::SeqCst), 2_000_000_000);
    assert_eq!(loaded_names(&router).await, ["a:1b", "b:1b"]);
}

#[tokio::test]
async fn all_models_are_listed_and_looking_loads_none() {
    let shelf = Shelf::new(3);
    let router = shelf.router(&["b:1b"], config());
    let names = |list: &Value, name: &str| -> Vec<String> {
        let all = list.as_array().expect("a list").iter();
        all.map(|model| model[name].as_str().expect("a name").to_owned()).collect()
    };
    let list = get(&router, "/v1/models").await.json();
    assert_eq!(names(&list["data"], "id"), ["b:1b", "other-name", "org/name", "a:1b", "c:1b"]);
    let tags = get(&router, "/api/tags").await.json();
    assert_eq!(names(&tags["models"], "name"), ["b:1b", "other-name", "org/name", "a:1b", "c:1b"]);
    assert_eq!((&tags["models"][3]["size"], &tags["models"][3]["details"]["family"]), (&json!(5), &json!("llama")));
    let show = post(&router, "/api/show", json!({"model": "c:1b"})).await.json();
    assert_eq!(show["model_info"]["llama.context_length"], CONTEXT);
    assert_eq!(get(&router, "/v1/models/c:1b").await.json()["id"], "c:1b");
    assert_eq!(shelf.is_loaded(), 1);
}

#[tokio::test]
async fn the_longest_idle_model_leaves_where_there_is_no_room() {
    let shelf = Shelf::new(2);
    let router = shelf.router(&["a:1b", "b:1b"], config());
    says(&router, "a:1b").await;
    assert_eq!(says(&router, "c:1b").await, "c");
    assert_eq!(loaded_names(&router).await, ["a:1b", "c:1b"]);
    assert_eq!(shelf.is_loaded(), 2);
}

/// Name and size of what is loaded.
async fn sizes(router: &Router) -> Vec<(String, u64)> {
    let ps = get(router, "/api/ps").await.json();
    let one = |model: &Value| {
        (model["name"].as_str().expect("a name").to_owned(), model["size"].as_u64().expect("a number of bytes"))
    };
    ps["models"].as_array().expect("a list").iter().map(one).collect()
}

/// Of 2 GB that each model holds a quarter is KV cache beyond one context.
#[tokio::test]
async fn the_longest_idle_models_cache_becomes_smaller_before_any_leaves_and_grows_when_there_is_room_again() {
    let shelf = Shelf { most_reserved: 3_500_000_000, ..Shelf::new(3) };
    let router = shelf.router(&["a:1b", "b:1b"], config());
    says(&router, "a:1b").await;
    assert_eq!(says(&router, "c:1b").await, "c");
    let size = |name: &str, bytes: u64| (name.to_owned(), bytes);
    let (whole, small) = (2_000_000_000, 1_500_000_000);
    assert_eq!(sizes(&router).await, [size("a:1b", whole), size("b:1b", small), size("c:1b", whole)]);
    assert_eq!(shelf.reserved.load(Ordering::SeqCst), 3_500_000_000);
    assert_eq!(*shelf.least_contexts.lock().expect("no panic"), [0, 0, 8192, 8192]);
    let health = get(&router, "/health").await.json();
    assert_eq!(health["further_models"][0]["memory"]["kv_cache_bytes"], 500_000_000);
    // As long as nobody leaves there is nothing to have, however often it is looked.
    let keep =
        |model: &str, keep_alive| post(&router, "/api/generate", json!({"model": model, "keep_alive": keep_alive}));
    keep("a:1b", 100).await;
    assert_eq!(sizes(&router).await[1], size("b:1b", small));
    keep("c:1b", 0).await;
    assert_eq!(sizes(&router).await, [size("a:1b", whole), size("b:1b", whole)]);
}

/// What did not help goes back to the caches.
#[tokio::test]
async fn a_model_leaves_when_no_cache_can_become_smaller_and_pinned_ones_give_what_they_can() {
    let shelf = Shelf { most_reserved: 1_500_000_000, ..Shelf::new(3) };
    let router = shelf.router(&["a:1b", "b:1b"], config());
    says(&router, "a:1b").await;
    assert_eq!(says(&router, "c:1b").await, "c");
    assert_eq!(loaded_names(&router).await, ["a:1b", "c:1b"], "two small ones are still too many");
    // Two attempts with what is useful, one with whatever there is, one without b.
    assert_eq!(*shelf.least_contexts.lock().expect("no panic"), [0, 0, 8192, 8192, 0, 0]);

    let shelf = Shelf { most_reserved: 0, ..Shelf::new(3) };
    let loaded = vec![shelf.load("a:1b", Beside::default()).expect("room")];
    let router = crate::server::router(ServedModels::new(loaded, shelf.clone()).pinned(), config());
    let reply = post(&router, "/v1/chat/completions", chat_body(json!({"model": "b:1b"}))).await;
    assert_eq!((reply.status.as_u16(), shelf.least_contexts.lock().expect("no panic").len()), (503, 3));
    assert_eq!(sizes(&router).await, [("a:1b".to_owned(), 1_500_000_000)]);
    post(&router, "/api/generate", json!({"model": "a:1b", "keep_alive": 0})).await;
    assert_eq!(sizes(&router).await, [("a:1b".to_owned(), 2_000_000_000)]);
}

#[tokio::test]
async fn pinned_models_stay_and_what_does_not_fit_beside_them_is_refused() {
    let shelf = Shelf::new(1);
    let loaded = vec![shelf.load("a:1b", Beside::default()).expect("room")];
    let router = router(ServedModels::new(loaded, shelf.clone()).pinned(), config());
    let reply = post(&router, "/v1/chat/completions", chat_body(json!({"model": "b:1b"}))).await;
    assert_eq!(reply.error().0, 503);
    assert!(reply.message().contains("`b:1b` cannot be loaded"), "{}", reply.text);
    assert_eq!(says(&router, "a:1b").await, "a");
}

#[tokio::test]
async fn a_model_in_use_does_not_leave_and_the_next_waits_for_it_while_others_load() {
    let shelf = Shelf { large: "c:1b", ..Shelf::new(2) };
    let place = Place(shelf.loaded.clone());
    shelf.loaded.fetch_add(1, Ordering::SeqCst);
    let (sender, mut submissions) = tokio::sync::mpsc::unbounded_channel();
    let held = llm(limits(), move |submission| {
        // The model holds its place until it is unloaded.
        let _held = &place;
        let _ = sender.send(submission);
    });
    let router = router(ServedModels::new(vec![held], shelf.clone()), config());
    let running = tokio::spawn({
        let router = router.clone();
        async move { post(&router, "/v1/chat/completions", chat_body(json!({}))).await }
    });
    let submission = soon(submissions.recv()).await.expect("a request");
    let waiting = tokio::spawn({
        let router = router.clone();
        async move { says(&router, "c:1b").await }
    });
    soon(async {
        while shelf.refusals.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(soon(says(&router, "b:1b")).await, "b");
    say(&submission, "done");
    assert_eq!(soon(running).await.expect("an answer").status, 200);
    assert_eq!(soon(waiting).await.expect("an answer"), "c");
}

/// Loads and brings nothing before it is let.
struct Slow {
    shelf: Shelf,
    began: tokio::sync::mpsc::UnboundedSender<()>,
    go_on: Mutex<std::sync::mpsc::Receiver<()>>,
}

impl ModelSource for Slow {
    fn list(&self) -> Vec<LocalModel> {
        self.shelf.list()
    }

    fn has(&self, name: &str) -> bool {
        self.shelf.has(name)
    }

    fn digest(&self, name: &str) -> Option<String> {
        self.shelf.digest(name)
    }

    fn load(&self, name: &str, beside: Beside) -> Result<Llm, LoadError> {
        self.began.send(()).expect("the test waits for it");
        let _ = self.go_on.lock().expect("one at a time").recv();
        self.shelf.load(name, beside)
    }

    fn describe(&self, name: &str) -> Result<ModelDescription, LoadError> {
        self.shelf.describe(name)
    }

    fn pull(&self, name: &str, progress: &mut dyn Progress) -> Result<(), HubError> {
        self.began.send(()).expect("the test waits for it");
        let _ = self.go_on.lock().expect("one at a time").recv();
        self.shelf.pull(name, progress)
    }

    fn copy(&self, source: &str, destination: &str) -> Result<(), HubError> {
        self.shelf.copy(source, destination)
    }

    fn remove(&self, name: &str) -> Result<(), HubError> {
        self.shelf.remove(name)
    }
}

#[tokio::test]
async fn a_server_that_ends_waits_for_no_model() {
    let (source, mut begun, go_on) = slow();
    let models = Models::new(ServedModels::new(Vec::new(), source), &config());
    let code = async |models: &Arc<Models>| models.get("a:1b").await.map(|_| ()).map_err(|error| error.code);
    let waiting = tokio::spawn({
        let models = models.clone();
        async move { code(&models).await }
    });
    soon(begun.recv()).await.expect("it loads");
    models.close();
    assert_eq!(soon(waiting).await.expect("no panic"), Err(Some("shutting_down")));
    assert_eq!(soon(code(&models)).await, Err(Some("shutting_down")));
    drop(go_on);
}

fn slow() -> (Slow, tokio::sync::mpsc::UnboundedReceiver<()>, std::sync::mpsc::Sender<()>) {
    let (began, begun) = tokio::sync::mpsc::unbounded_channel();
    let (go_on, wait) = std::sync::mpsc::channel();
    (Slow { shelf: Shelf::new(2), began, go_on: Mutex::new(wait) }, begun, go_on)
}

#[tokio::test]
async fn who_waits_too_long_for_a_model_is_told_and_all_wait_for_one_load() {
    let (source, mut begun, go_on) = slow();
    let shelf = source.shelf.clone();
    let config = ServerConfig { load_timeout: Duration::from_millis(20), ..config() };
    let models = Models::new(ServedModels::new(Vec::new(), source), &config);
    let code = async |models: &Arc<Models>| models.get("a:1b").await.map(|_| ()).map_err(|error| error.code);
    for _ in 0..3 {
        assert_eq!(soon(code(&models)).await, Err(Some("load_timeout")));
    }
    soon(begun.recv()).await.expect("it loads");
    assert_eq!(Arc::strong_count(&models), 2, "one task loads, whoever went away");
    drop(go_on);
    soon(async {
        while models.find("a:1b").is_none() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(soon(code(&models)).await, Ok(()));
    assert_eq!(shelf.loads.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn so_many_wait_for_a_model_and_one_more_is_told() {
    let (source, mut begun, go_on) = slow();
    let config = ServerConfig { max_load_waiting: 2, ..config() };
    let models = Models::new(ServedModels::new(Vec::new(), source), &config);
    let code = async |models: &Arc<Models>| models.get("a:1b").await.map(|_| ()).map_err(|error| error.code);
    let mut waiting: FuturesUnordered<_> = (0..3).map(|_| code(&models)).collect();
    assert_eq!(soon(waiting.next()).await, Some(Err(Some("too_many_wait"))));
    soon(begun.recv()).await.expect("it loads");
    drop(go_on);
    assert_eq!(soon(waiting.collect::<Vec<_>>()).await, [Ok(()), Ok(())]);
    assert_eq!(code(&models).await, Ok(()));
}

#[tokio::test]
async fn a_failed_load_is_told_to_all_and_tried_again() {
    let shelf = Shelf::new(0);
    let models = Models::new(ServedModels::new(Vec::new(), shelf.clone()), &config());
    let code = async |models: &Arc<Models>| models.get("a:1b").await.map(|_| ()).map_err(|error| error.code);
    let (first, second) = tokio::join!(code(&models), code(&models));
    assert_eq!((first, second), (Err(Some("model_not_loaded")), Err(Some("model_not_loaded"))));
    let tries = shelf.refusals.load(Ordering::SeqCst);
    assert_eq!(code(&models).await, Err(Some("model_not_loaded")));
    assert_eq!(shelf.refusals.load(Ordering::SeqCst), tries + 1);
}

#[tokio::test]
async fn keep_alive_zero_unloads_and_minus_one_keeps() {
    let shelf = Shelf::new(2);
    let router = shelf.router(&[], config());
    assert_eq!(get(&router, "/health").await.status, StatusCode::OK);
    let ask = async |model: &str, keep_alive: Value| {
        post(&router, "/api/generate", json!({"model": model, "keep_alive": keep_alive})).await.json()["done_reason"]
            .clone()
    };
    assert_eq!(ask("a:1b", json!("0s")).await, "unload");
    assert_eq!(shelf.is_loaded(), 0);
    assert_eq!(ask("a:1b", json!("5m")).await, "load");
    let ps = get(&router, "/api/ps").await.json();
    assert!(ps["models"][0]["expires_at"].as_str().is_some_and(|at| at.starts_with("20")), "{ps}");
    assert_eq!(ask("a:1b", json!(-1)).await, "load");
    assert_eq!(get(&router, "/api/ps").await.json()["models"][0]["expires_at"], "2318-01-01T00:00:00Z");
    // Beyond any date that can be written, and beyond any moment that a clock knows.
    for seconds in [1 << 40, u64::MAX >> 1] {
        assert_eq!(ask("a:1b", json!(seconds)).await, "load");
        assert_eq!(get(&router, "/api/ps").await.json()["models"][0]["expires_at"], "2318-01-01T00:00:00Z");
    }
    assert_eq!(ask("a:1b", json!(0)).await, "unload");
    assert_eq!(shelf.is_loaded(), 0);
}

#[tokio::test]
async fn near_names_are_told() {
    let router = Shelf::new(1).router(&["a:1b"], ServerConfig::default());
    let reply = post(&router, "/v1/chat/completions", chat_body(json!({"model": "c:2b"}))).await;
    assert_eq!(reply.error(), (404, Some("model_not_found".into()), Some("model".into())));
    assert!(reply.message().contains("did you mean `c:1b`"), "{}", reply.text);
}

#[tokio::test]
async fn a_pull_tells_its_progress_and_its_end() {
    let router = Shelf::new(1).router(&["a:1b"], config());
    let lines = post(&router, "/api/pull", json!({"model": "qwen3:8b"})).await.lines();
    assert_eq!(lines[0], json!({"status": "pulling manifest"}));
    assert_eq!(lines[1], json!({"status": "pulling a package", "completed": 0}));
    let digest = "sha256:ab12";
    for completed in [0, 8] {
        let line = json!({"status": "pulling weights", "digest": digest, "completed": completed, "total": 8});
        assert!(lines.contains(&line), "{lines:?}");
    }
    assert_eq!(lines.last(), Some(&json!({"status": "success"})));
    let whole = post(&router, "/api/pull", json!({"name": "qwen3:8b", "stream": false})).await.json();
    assert_eq!(whole, json!({"status": "success"}));
    let failed = post(&router, "/api/pull", json!({"model": "nobody"})).await.lines();
    assert!(failed.last().expect("a line")["error"].as_str().is_some_and(|text| text.contains("nobody")));
    let failed = post(&router, "/api/pull", json!({"model": "nobody", "stream": false})).await;
    assert_eq!(failed.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn so_many_models_are_brought_at_once_and_one_more_is_told() {
    let (source, mut begun, go_on) = slow();
    let config = ServerConfig { max_pulls: 1, ..config() };
    let router = router(ServedModels::new(Vec::new(), source), config);
    let pull = || {
        let router = router.clone();
        tokio::spawn(async move { post(&router, "/api/pull", json!({"model": "qwen3:8b"})).await })
    };
    let first = pull();
    soon(begun.recv()).await.expect("it pulls");
    let second = soon(pull()).await.expect("an answer");
    assert_eq!(
        (second.status, &second.headers["retry-after"]),
        (StatusCode::TOO_MANY_REQUESTS, &"30".parse().unwrap())
    );
    assert!(second.json()["error"].as_str().is_some_and(|text| text.contains("max_pulls")), "{}", second.text);
    drop(go_on);
    assert_eq!(soon(first).await.expect("an answer").lines().last(), Some(&json!({"status": "success"})));
    let third = soon(pull()).await.expect("an answer");
    assert_eq!(third.lines().last(), Some(&json!({"status": "success"})));
}

#[tokio::test]
async fn what_is_told_of_a_model_does_not_change_when_it_is_loaded() {
    let router = Shelf::new(2).router(&[], config());
    let told = async || {
        let tags = get(&router, "/api/tags").await.json();
        let models = tags["models"].as_array().expect("a list");
        let model = models.iter().find(|model| model["name"] == "a:1b").expect("it is there").clone();
        let show = post(&router, "/api/show", json!({"model": "a:1b"})).await.json();
        (model, show["modified_at"].clone())
    };
    let before = told().await;
    assert_eq!((&before.0["digest"], &before.0["size"]), (&json!("da:1b"), &json!(5)));
    assert_eq!(before.1, "2020-09-13T12:26:40Z");
    says(&router, "a:1b").await;
    assert_eq!(told().await, before);
    let ps = get(&router, "/api/ps").await.json();
    assert_eq!(ps["models"][0]["digest"], "da:1b");
}

#[tokio::test]
async fn models_get_second_names() {
    let router = Shelf::new(1).router(&["a:1b"], config());
    let copy = async |source: &str, destination: &str| {
        post(&router, "/api/copy", json!({"source": source, "destination": destination})).await
    };
    for source in ["a:1b", "a:1b:latest", "b:1b"] {
        let reply = copy(source, "mine").await;
        assert_eq!((reply.status, reply.text.as_str()), (StatusCode::OK, ""), "{source}");
    }
    let unknown = copy("nobody", "mine").await;
    assert_eq!(unknown.status, StatusCode::NOT_FOUND);
    assert!(unknown.json()["error"].as_str().is_some_and(|text| text.contains("nobody")), "{}", unknown.text);
    assert_eq!(copy("a:1b", "b/../c").await.status, StatusCode::BAD_REQUEST);
    let (fixed, _requests) = saying("yes");
    let refused = post(&fixed, "/api/copy", json!({"source": MODEL, "destination": "mine"})).await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn models_are_removed_and_a_fixed_server_removes_none() {
    let delete = async |router: &Router, name: &str| {
        send_request(router, request(Method::DELETE, "/api/delete", json!({"model": name}).to_string())).await.status
    };
    let router = Shelf::new(1).router(&[], config());
    assert_eq!(delete(&router, "a:1b").await, StatusCode::OK);
    assert_eq!(delete(&router, "z:1b").await, StatusCode::NOT_FOUND);
    let (fixed, _requests) = saying("yes");
    assert_eq!(delete(&fixed, MODEL).await, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn metrics_have_a_line_for_each_model() {
    let router = Shelf::new(2).router(&["a:1b", "b:1b"], config());
    says(&router, "b:1b").await;
    let text = get(&router, "/metrics").await.text;
    assert_eq!(text.matches("# TYPE vllm:request_success_total").count(), 1);
    for (model, count) in [("a:1b", 0), ("b:1b", 1)] {
        let line = format!("vllm:request_success_total{{finished_reason=\"stop\",model_name=\"{model}\"}} {count}");
        assert!(text.contains(&line), "{line}\n{text}");
    }
}
