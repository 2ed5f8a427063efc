//! `lantern list`: the models on this machine.
//!
//! Asks no hub.

use super::flags::StoreFlags;
use super::load;
use super::table::{Align, Table};
use super::{CliError, Session};
use crate::config::{ByteSize, Settings};

/// Arguments of `lantern list`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  lantern list\n  lantern list --models-dir /srv/models")]
pub struct ListArgs {
    #[command(flatten)]
    store: StoreFlags,
}

/// Prints the store's models.
///
/// # Errors
/// [`CliError::Hub`] where the store cannot be read.
pub fn run(args: ListArgs, session: &Session) -> Result<(), CliError> {
    let config = session.resolve(args.store.fill(Settings::default()))?;
    session.log(&config, "warn")?;
    let mut table = Table::new([("MODEL", Align::Left), ("SIZE", Align::Right), ("FROM", Align::Left)]);
    for stored in load::store(&config.hub)?.list()? {
        table.push([stored.name, ByteSize(stored.bytes).to_string(), stored.source]);
    }
    if table.is_empty() {
        let folder = config.hub.models_dir.display();
        return session
            .print(&format!("No model is in {folder} yet.\n`lantern pull smollm2:135m` brings a small one.\n"));
    }
    session.print(&table.to_string())
}
