//! What is served, in Ollama's form: `/api/tags`, `/api/ps`, `/api/show`, `/api/version`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::extract::{Request, State};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use crate::llm::{LocalModel, ModelDescription, ModelInfo};
use crate::server::body;
use crate::server::error::ApiError;
use crate::server::models::Listed;
use crate::server::state::App;

/// The version of Ollama's API that is spoken: its clients refuse servers that are too old for what they use.
const API_VERSION: &str = "0.12.0";

/// When a model leaves that stays, as Ollama writes it.
const NEVER: &str = "2318-01-01T00:00:00Z";

/// The last second of the year 9999, the last that RFC 3339 can write, in seconds since 1970.
const LAST_DATE_S: u64 = 253_402_300_799;

#[derive(Serialize)]
pub(super) struct ModelList {
    models: Vec<Model>,
}

#[derive(Serialize)]
struct Model {
    name: String,
    model: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    modified_at: Option<String>,
    size: u64,
    digest: String,
    details: Details,
    #[serde(flatten)]
    running: Option<Running>,
}

/// What only a loaded model has.
#[derive(Serialize)]
struct Running {
    expires_at: String,
    size_vram: u64,
    context_length: u32,
}

#[derive(Default, Serialize)]
struct Details {
    parent_model: &'static str,
    format: &'static str,
    family: String,
    families: Vec<String>,
    parameter_size: String,
    quantization_level: String,
}

fn rfc3339(unix_s: u64) -> String {
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(unix_s)).to_string()
}

/// Tells a loaded model that is not of this machine's store from others; it is no checksum of the model's files.
fn digest(info: &ModelInfo) -> String {
    let identity = format!("{} {} {} {}", info.name, info.format, info.parameters, info.weight_bytes);
    Sha256::digest(identity.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn details(described: &ModelDescription) -> Details {
    let facts = &described.facts;
    Details {
        parent_model: "",
        format: "gguf",
        family: facts.architecture.clone(),
        families: vec![facts.architecture.clone()],
        parameter_size: parameter_size(facts.parameters),
        quantization_level: facts.format.clone(),
    }
}

/// `134.52M`, `8.0B`.
fn parameter_size(parameters: u64) -> String {
    match parameters {
        1_000_000_000.. => format!("{:.1}B", parameters as f64 / 1e9),
        1_000_000.. => format!("{:.2}M", parameters as f64 / 1e6),
        _ => parameters.to_string(),
    }
}

/// A loaded model of the list `local`, of which the same is told as before it was loaded, or of elsewhere.
fn loaded(name: &str, listed: &Listed, local: &[LocalModel]) -> Model {
    let info = listed.llm.info();
    let local = local.iter().find(|local| local.name == info.name);
    let modified_at_unix_s = local.map_or(info.loaded_at_unix_s, |local| local.modified_at_unix_s);
    Model {
        name: name.to_owned(),
        model: name.to_owned(),
        modified_at: Some(rfc3339(modified_at_unix_s)),
        size: local.map_or(info.weight_bytes, |local| local.bytes),
        digest: local.map_or_else(|| digest(info), |local| local.digest.clone()),
        details: details(&listed.llm.describe()),
        running: None,
    }
}

fn stored(model: LocalModel, described: Option<&ModelDescription>) -> Model {
    Model {
        modified_at: Some(rfc3339(model.modified_at_unix_s)),
        size: model.bytes,
        digest: model.digest,
        details: described.map(details).unwrap_or_default(),
        running: None,
        model: model.name.clone(),
        name: model.name,
    }
}

pub(super) async fn tags(State(app): State<App>) -> Result<Json<ModelList>, ApiError> {
    let (mut models, mut available) = (Vec::new(), app.models.local().await);
    for listed in app.models.offered() {
        models.extend(listed.names.iter().map(|name| loaded(name, &listed, &available)));
        available.retain(|model| !listed.names.contains(&model.name));
    }
    if !available.is_empty() {
        let source = app.models.source()?;
        let describe = move || {
            // A model whose headers make no sense is listed without details.
            let one = |model: LocalModel| {
                let described = source.describe(&model.name).ok();
                stored(model, described.as_ref())
            };
            available.into_iter().map(one).collect::<Vec<_>>()
        };
        models.extend(app.block(describe).await?);
    }
    Ok(Json(ModelList { models }))
}

/// `None` of a moment that is written no date of: it is as good as never.
fn expires_at(left: Duration) -> Option<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    now.checked_add(left).map(|at| at.as_secs()).filter(|at| *at <= LAST_DATE_S).map(rfc3339)
}

pub(super) async fn ps(State(app): State<App>) -> Json<ModelList> {
    let local = app.models.local().await;
    let one = |listed: &Listed| {
        let info = listed.llm.present();
        let expires = listed.left.and_then(expires_at);
        let running = Running {
            expires_at: expires.unwrap_or_else(|| NEVER.into()),
            size_vram: if info.is_on_gpu() { info.planned_bytes } else { 0 },
            context_length: info.context_length,
        };
        Model {
            modified_at: None,
            size: info.planned_bytes,
            running: Some(running),
            ..loaded(&info.name, listed, &local)
        }
    };
    Json(ModelList { models: app.models.loaded().iter().map(one).collect() })
}

#[derive(Deserialize)]
struct ShowBody {
    /// Older clients say `name`.
    #[serde(alias = "name")]
    model: String,
}

/// Of a model that is not loaded its headers are read; it stays where it is.
pub(super) async fn show(State(app): State<App>, request: Request) -> Result<Json<Value>, ApiError> {
    let bytes = body::read(&app.config, request).await?;
    let ShowBody { model } = body::parse(&bytes)?;
    let (name, created_unix_s, described) = match app.models.find(&model) {
        Some(served) => {
            let (info, local) = (served.llm.info(), app.models.local().await);
            let local = local.iter().find(|local| local.name == info.name);
            let created_unix_s = local.map_or(info.loaded_at_unix_s, |local| local.modified_at_unix_s);
            (info.name.clone(), created_unix_s, served.llm.describe())
        }
        None => {
            let stored = app.models.find_available(&model).await?;
            let (source, name) = (app.models.source()?, stored.name.clone());
            let described = match app.block(move || source.describe(&name)).await? {
                Ok(described) => described,
                Err(error) => {
                    // It may have been removed meanwhile.
                    app.models.find_available(&model).await?;
                    return Err(ApiError::internal(error.to_string()));
                }
            };
            (stored.name, stored.modified_at_unix_s, described)
        }
    };
    Ok(Json(json!({
        "modelfile": format!("# served by Lantern\nFROM {name}\n"),
        "parameters": "",
        "template": described.facts.chat_template,
        "details": details(&described),
        "model_info": model_info(&name, &described),
        "capabilities": capabilities(&described),
        "modified_at": rfc3339(created_unix_s),
    })))
}

/// Under the names of GGUF's metadata.
fn model_info(name: &str, described: &ModelDescription) -> Map<String, Value> {
    let facts = &described.facts;
    let architecture = &facts.architecture;
    [
        ("general.architecture".to_owned(), json!(architecture)),
        ("general.basename".to_owned(), json!(name)),
        ("general.parameter_count".to_owned(), json!(facts.parameters)),
        (format!("{architecture}.context_length"), json!(facts.context_length)),
    ]
    .into_iter()
    .collect()
}

fn capabilities(described: &ModelDescription) -> Vec<&'static str> {
    let conditional = [("tools", described.knows_tools), ("thinking", described.thinks)];
    std::iter::once("completion").chain(conditional.into_iter().filter(|(_, has)| *has).map(|(name, _)| name)).collect()
}

pub(super) async fn version() -> Json<Value> {
    version_told()
}

/// By `lantern` a Lantern is known.
pub(in crate::server) fn version_told() -> Json<Value> {
    Json(json!({ "version": API_VERSION, "lantern": env!("CARGO_PKG_VERSION") }))
}
