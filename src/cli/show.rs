//! `lantern show`: what is known about a model without loading it.
//!
//! Asks no hub.

use std::path::Path;

use super::flags::StoreFlags;
use super::load;
use super::startup::count;
use super::{CliError, Session};
use crate::config::{ByteSize, Settings};
use crate::hub::{self, Entry, HubError, ModelName};
use crate::llm::describe_path;

/// Arguments of `lantern show`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  lantern show smollm2:135m\n  lantern show ./model.gguf")]
pub struct ShowArgs {
    /// Model: a name of the catalog, org/name, a folder or a .gguf file
    model: String,
    #[command(flatten)]
    store: StoreFlags,
}

/// Prints what the catalog and the store say.
///
/// # Errors
/// [`CliError::Hub`]: the name means nothing.
pub fn run(args: ShowArgs, session: &Session) -> Result<(), CliError> {
    let config = session.resolve(args.store.fill(Settings::default()))?;
    session.log(&config, "warn")?;
    let (store, options) = (load::store(&config.hub)?, load::hub_options(&config.hub));
    let name = load::understand(&args.model, &store, &options)?;
    let (place, format) = match hub::resolve(&name, &store, &options) {
        Ok(located) => (located.kind.path().display().to_string(), format(located.kind.path())),
        Err(HubError::NotPresent { .. }) => {
            (format!("not on this machine; `lantern pull {name}` brings it"), String::new())
        }
        Err(error) => return Err(error.into()),
    };
    let stored = store.get(&name.to_string())?.map_or_else(String::new, |stored| {
        let files = stored.manifest.files.iter().map(|file| file.path.as_str()).collect::<Vec<_>>().join(", ");
        format!("{}{}", line("size", &ByteSize(stored.bytes).to_string()), line("files", &files))
    });
    let known = match &name {
        ModelName::Catalog(entry) => describe(entry),
        _ => String::new(),
    };
    session.print(&format!("{}{known}{}{format}{stored}", line("name", &name.to_string()), line("place", &place)))
}

/// What the weights are, or why nobody knows.
fn format(path: &Path) -> String {
    let facts = describe_path(path);
    line("format", &facts.map_or_else(|error| format!("not known: {error}"), |facts| facts.format))
}

fn describe(entry: &Entry) -> String {
    let gated = if entry.gated { " (gated: its terms must be accepted there first)" } else { "" };
    [
        line("parameters", &count(entry.parameters)),
        line("context", &format!("{} tokens", entry.context_tokens)),
        line("download", &ByteSize(entry.bytes).to_string()),
        line("memory", &format!("{} with all of its context", ByteSize(entry.memory_bytes(entry.context_tokens)))),
        line("repository", &format!("{}{gated}", entry.repository)),
        line("file", entry.file.as_deref().unwrap_or("safetensors")),
        line("source", &entry.source),
    ]
    .concat()
}

fn line(name: &str, text: &str) -> String {
    format!("{name:<12}{text}\n")
}
