//! The document at `/openapi.json` against the routes of the router and the fields that the sources read.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use axum::http::Method;
use serde_json::{Map, Value};

use super::fixture::*;
use crate::server::openapi::document;

/// Each schema of a request, and what reads it, by file and name.
const FORMS: [(&str, &[&str]); 27] = [
    ("ChatRequest", &["openai/fields Fields", "grammars FormFields", "openai/refused REFUSED", "openai/chat ChatBody"]),
    (
        "CompletionRequest",
        &["openai/fields Fields", "grammars FormFields", "openai/refused REFUSED", "openai/completions CompletionBody"],
    ),
    ("StreamOptions", &["openai/fields StreamOptions"]),
    ("ChatMessage", &["openai/messages ChatMessage"]),
    ("EmbeddingsRequest", &["openai/embeddings EmbeddingsBody"]),
    ("TokenizeRequest", &["openai/tokens TokenizeBody"]),
    ("DetokenizeRequest", &["openai/tokens DetokenizeBody"]),
    ("ResponsesRequest", &["openai/responses/request Body"]),
    ("ResponsesReasoning", &["openai/responses/request Reasoning"]),
    ("ResponsesText", &["openai/responses/request Text"]),
    ("MessagesRequest", &["anthropic/request Body"]),
    ("MessagesBody", &["anthropic/request Body"]),
    ("AnthropicMessage", &["anthropic/blocks InputMessage"]),
    ("AnthropicToolChoice", &["anthropic/request Choice"]),
    ("AnthropicThinking", &["anthropic/request Thinking"]),
    ("AnthropicOutputConfig", &["anthropic/request OutputConfig"]),
    ("OllamaFields", &["ollama/options Fields"]),
    ("OllamaOptions", &["ollama/options Options"]),
    ("OllamaChatRequest", &["ollama/options Fields", "ollama/chat ChatBody"]),
    ("OllamaMessage", &["ollama/messages ChatMessage"]),
    ("OllamaGenerateRequest", &["ollama/options Fields", "ollama/generate GenerateBody"]),
    ("OllamaEmbedRequest", &["ollama/options Fields", "ollama/embed EmbedBody"]),
    ("OllamaEmbedOneRequest", &["ollama/options Fields", "ollama/embed OneBody"]),
    ("OllamaModelName", &["ollama/models ShowBody"]),
    ("OllamaPullRequest", &["ollama/pull NameBody"]),
    ("OllamaCopyRequest", &["ollama/pull CopyBody"]),
    ("Generation", &["openai/fields Fields", "grammars FormFields", "openai/refused REFUSED"]),
];

type Names = BTreeSet<String>;

#[tokio::test]
async fn every_route_is_in_the_document_and_nothing_more() {
    let (router, _requests) = saying("a");
    // The router itself has no list of its paths but what it prints; behind them stand those of the fallbacks.
    let debug = format!("{router:?}");
    let debug = debug.split("fallback_router").next().unwrap_or_default();
    let paths: Names = debug.split('"').filter(|text| text.starts_with('/')).map(str::to_owned).collect();
    assert!(paths.len() > 20, "the router's own list of paths is not found: {debug}");
    let mut served = Names::new();
    for path in &paths {
        for method in [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE] {
            let concrete = path.replace(['{', '}', '*'], "");
            let reply = send_request(&router, request(method.clone(), &concrete, "{}")).await;
            if reply.status != 405 && !reply.text.contains("there is nothing at") {
                served.insert(format!("{method} {}", path.replace('*', "")));
            }
        }
    }
    let mut documented = Names::new();
    for (path, item) in document().expect("JSON")["paths"].as_object().expect("paths") {
        for method in item.as_object().expect("methods").keys().filter(|name| *name != "parameters") {
            let method = method.to_uppercase();
            documented.insert(format!("{method} {path}"));
            // What is below `/v1` is at the root too.
            documented.extend(path.strip_prefix("/v1").map(|at_root| format!("{method} {at_root}")));
        }
    }
    assert_eq!(served, documented);
    let reply = get(&router, "/openapi.json").await;
    assert_eq!((reply.status.as_u16(), &reply.json()["info"]["version"]), (200, &env!("CARGO_PKG_VERSION").into()));
}

#[test]
fn every_field_that_is_read_is_in_the_document_and_nothing_more() {
    let document = Value::Object(document().expect("JSON"));
    let mut read = BTreeMap::new();
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/server");
    collect(&sources, &sources, &mut read);
    let mut compared = Names::new();
    for (schema, forms) in FORMS {
        let fields: Names =
            forms.iter().flat_map(|form| read.get(*form).unwrap_or_else(|| panic!("{form}"))).cloned().collect();
        let mut properties = Map::new();
        add_properties(&document, &document["components"]["schemas"][schema], &mut properties);
        assert_eq!(properties.keys().cloned().collect::<Names>(), fields, "{schema}");
        for (name, property) in properties {
            let one_line = property["description"].as_str().is_some_and(|text| !text.contains('\n'));
            assert!(one_line, "{schema}.{name} is not described in a line");
        }
        compared.extend(forms.iter().map(|form| (*form).to_owned()));
    }
    assert_eq!(read.into_keys().collect::<Names>(), compared, "what reads bodies is listed in FORMS");
}

#[test]
fn every_operation_is_whole() {
    let document = Value::Object(document().expect("JSON"));
    for (path, item) in document["paths"].as_object().expect("paths") {
        for (method, operation) in item.as_object().expect("methods").iter().filter(|(name, _)| *name != "parameters") {
            let (responses, at) = (&operation["responses"], format!("{method} {path}"));
            assert!(operation["summary"].is_string() && responses["200"].is_object(), "{at}");
            assert!(responses["default"]["$ref"].is_string(), "{at} does not say what errors look like");
            let schema = &operation["requestBody"]["content"]["application/json"]["schema"]["$ref"];
            let name = schema.as_str().map(|schema| schema.trim_start_matches("#/components/schemas/"));
            assert_eq!(name.is_some(), method == "post" || path == "/api/delete", "{at}");
            assert!(name.is_none_or(|name| FORMS.iter().any(|(form, _)| *form == name)), "{at}");
        }
    }
    let mut references = 0;
    check_references(&document, &document, &mut references);
    assert!(references > 100, "{references} references");
}

/// The properties of `schema` and of all that it is made of.
fn add_properties(document: &Value, schema: &Value, properties: &mut Map<String, Value>) {
    for part in schema["allOf"].as_array().into_iter().flatten() {
        add_properties(document, resolve(document, part), properties);
    }
    properties
        .extend(schema["properties"].as_object().into_iter().flatten().map(|(name, one)| (name.clone(), one.clone())));
}

fn resolve<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
    let Some(reference) = schema["$ref"].as_str() else { return schema };
    document.pointer(reference.trim_start_matches('#')).unwrap_or_else(|| panic!("{reference} leads nowhere"))
}

fn check_references(document: &Value, value: &Value, references: &mut usize) {
    *references += usize::from(value["$ref"].is_string());
    resolve(document, value);
    match value {
        Value::Array(list) => list.iter().for_each(|one| check_references(document, one, references)),
        Value::Object(fields) => fields.values().for_each(|one| check_references(document, one, references)),
        _ => {}
    }
}

/// Adds what reads bodies below `folder`, each with its fields as they are called in JSON.
fn collect(root: &Path, folder: &Path, read: &mut BTreeMap<String, Names>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name != "tests") {
                collect(root, &path, read);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.strip_prefix(root).expect("below the root").with_extension("");
            let text = std::fs::read_to_string(&path).expect("a source");
            let text = text.split("\n#[cfg(test)]\nmod tests").next().unwrap_or_default();
            forms(&name.to_string_lossy().replace('\\', "/"), text, read);
        }
    }
}

/// Adds the forms of one source: structs that derive `Deserialize`, and the list of what is refused.
fn forms(file: &str, text: &str, read: &mut BTreeMap<String, Names>) {
    for block in text.split("#[derive(").skip(1).filter(|block| block.contains("Deserialize")) {
        let derived = block.split(")]").next().unwrap_or_default();
        let Some((head, rest)) = block.split_once(" {\n") else { continue };
        let Some((_, name)) = head.split_once("struct ") else { continue };
        if derived.contains("Deserialize") {
            let body = rest.split("\n}").next().unwrap_or_default();
            read.insert(format!("{file} {name}"), fields(body));
        }
    }
    if let Some((_, list)) = text.split_once("const REFUSED: ") {
        let list = list.split("\n];").next().unwrap_or_default();
        let names = list.lines().filter_map(|line| line.strip_prefix("    (\"")?.split('"').next());
        read.insert(format!("{file} REFUSED"), names.map(str::to_owned).collect());
    }
}

/// The fields of a struct's body and their other names.
fn fields(body: &str) -> Names {
    let (mut names, mut skips) = (Names::new(), false);
    for line in body.lines().map(str::trim).filter(|line| !line.starts_with("//")) {
        if let Some(attribute) = line.strip_prefix("#[serde(") {
            match attribute.trim_end_matches(")]") {
                "skip" => skips = true,
                "default" => {}
                other => {
                    let alias = other.strip_prefix("alias = \"").and_then(|rest| rest.strip_suffix('"'));
                    names.insert(alias.unwrap_or_else(|| panic!("this test does not know `{line}`")).to_owned());
                }
            }
        } else if let Some((name, _)) = line.split_once(": ") {
            let name = name.rsplit(' ').next().unwrap_or_default().trim_start_matches("r#");
            if !std::mem::take(&mut skips) {
                names.insert(name.to_owned());
            }
        }
    }
    names
}
