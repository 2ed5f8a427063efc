//! What is served, in Ollama's form: `/api/tags`, `/api/ps`, `/api/show`, `/api/version`.

use axum::Json;
use axum::extract::{Request, State};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use std::time::{Duration, UNIX_EPOCH};

use crate::device::Device;
use crate::llm::{Llm, ModelInfo};
use crate::server::body;
use crate::server::error::ApiError;
use crate::server::state::App;

/// The version of Ollama's API that is spoken: its clients refuse servers that are too old for what they use.
const API_VERSION: &str = "0.12.0";

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

#[derive(Serialize)]
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

/// Tells one model from another, as Ollama's digests do; it is no checksum of the model's files.
fn digest(info: &ModelInfo) -> String {
    let identity = format!("{} {} {} {}", info.name, info.format, info.parameters, info.weight_bytes);
    Sha256::digest(identity.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn details(info: &ModelInfo) -> Details {
    Details {
        parent_model: "",
        format: "gguf",
        family: info.architecture.clone(),
        families: vec![info.architecture.clone()],
        parameter_size: parameter_size(info.parameters),
        quantization_level: info.format.clone(),
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

fn model(name: &str, info: &ModelInfo) -> Model {
    Model {
        name: name.to_owned(),
        model: name.to_owned(),
        modified_at: Some(rfc3339(info.loaded_at_unix_s)),
        size: info.weight_bytes,
        digest: digest(info),
        details: details(info),
        running: None,
    }
}

pub(super) async fn tags(State(app): State<App>) -> Json<ModelList> {
    let info = app.models.main().llm.info();
    Json(ModelList { models: app.models.names().map(|name| model(name, info)).collect() })
}

pub(super) async fn ps(State(app): State<App>) -> Json<ModelList> {
    let info = app.models.main().llm.info();
    let on_gpu = info.runs_on != Device::Cpu;
    let running = Running {
        // As Ollama writes it for models that stay.
        expires_at: "2318-01-01T00:00:00Z".into(),
        size_vram: if on_gpu { info.planned_bytes } else { 0 },
        context_length: info.context_length,
    };
    let model =
        Model { modified_at: None, size: info.planned_bytes, running: Some(running), ..model(&info.name, info) };
    Json(ModelList { models: vec![model] })
}

#[derive(Deserialize)]
struct ShowBody {
    /// Older clients say `name`.
    #[serde(alias = "name")]
    model: String,
}

pub(super) async fn show(State(app): State<App>, request: Request) -> Result<Json<Value>, ApiError> {
    let bytes = body::read(&app.config, request).await?;
    let ShowBody { model } = body::parse(&bytes)?;
    let llm = app.models.get(&model).await?.llm;
    let info = llm.info();
    Ok(Json(json!({
        "modelfile": format!("# served by Lantern\nFROM {}\n", info.name),
        "parameters": "",
        "template": llm.chat_template(),
        "details": details(info),
        "model_info": model_info(info),
        "capabilities": capabilities(&llm),
        "modified_at": rfc3339(info.loaded_at_unix_s),
    })))
}

/// Under the names of GGUF's metadata.
fn model_info(info: &ModelInfo) -> Map<String, Value> {
    let architecture = &info.architecture;
    [
        ("general.architecture".to_owned(), json!(architecture)),
        ("general.basename".to_owned(), json!(info.name)),
        ("general.parameter_count".to_owned(), json!(info.parameters)),
        (format!("{architecture}.context_length"), json!(info.context_length)),
    ]
    .into_iter()
    .collect()
}

fn capabilities(llm: &Llm) -> Vec<&'static str> {
    let conditional = [("tools", llm.knows_tools()), ("thinking", llm.thinks())];
    std::iter::once("completion").chain(conditional.into_iter().filter(|(_, has)| *has).map(|(name, _)| name)).collect()
}

pub(super) async fn version() -> Json<Value> {
    Json(json!({ "version": API_VERSION, "lantern": env!("CARGO_PKG_VERSION") }))
}
