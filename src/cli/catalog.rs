//! `lantern catalog`: the models that have a short name, and whether the hub still has them.
//!
//! Downloads nothing.

use super::flags::StoreFlags;
use super::load;
use super::startup::count;
use super::table::{Align, Table};
use super::{CliError, Session};
use crate::config::{ByteSize, Settings};
use crate::hub::{Catalog, CheckOutcome, CheckResult, Entry};

/// Arguments of `lantern catalog`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  lantern catalog\n  lantern catalog --check")]
pub struct CatalogArgs {
    /// Ask the hub about every model: is it there, and as described?
    #[arg(long)]
    check: bool,
    #[command(flatten)]
    store: StoreFlags,
}

/// Lists the catalog, or holds it against the hub.
///
/// # Errors
/// [`CliError`]: the hub cannot be reached, or disagrees.
pub fn run(args: CatalogArgs, session: &Session) -> Result<(), CliError> {
    let config = session.resolve(args.store.fill(Settings::default()))?;
    session.log(&config, "warn")?;
    let catalog = Catalog::embedded();
    if !args.check {
        return session.print(&list(catalog.entries()));
    }
    let results = catalog.check(&load::hub_options(&config.hub))?;
    let wrong = results.iter().filter(|result| is_wrong(result)).count();
    session.print(&describe(&results))?;
    match wrong {
        0 => Ok(()),
        _ => Err(CliError::Refused(format!("{wrong} of {} entries are not as the catalog says", results.len()))),
    }
}

fn list(entries: &[Entry]) -> String {
    let mut table = Table::new([
        ("MODEL", Align::Left),
        ("PARAMETERS", Align::Right),
        ("DOWNLOAD", Align::Right),
        ("REPOSITORY", Align::Left),
        ("", Align::Left),
    ]);
    for entry in entries {
        table.push([
            entry.name.clone(),
            count(entry.parameters),
            ByteSize(entry.bytes).to_string(),
            entry.repository.clone(),
            if entry.gated { "gated".to_owned() } else { String::new() },
        ]);
    }
    table.to_string()
}

fn is_wrong(result: &CheckResult) -> bool {
    matches!(result.outcome, CheckOutcome::Differs(_) | CheckOutcome::Failed(_))
}

fn describe(results: &[CheckResult]) -> String {
    let mut table = Table::new([("MODEL", Align::Left), ("HUB", Align::Left)]);
    for result in results {
        let outcome = match &result.outcome {
            CheckOutcome::Good { bytes: 0 } => "as described".to_owned(),
            CheckOutcome::Good { bytes } => format!("as described, {}", ByteSize(*bytes)),
            CheckOutcome::Differs(how) => format!("differs: {how}"),
            CheckOutcome::Gated => "gated, as the catalog says".to_owned(),
            CheckOutcome::Failed(error) => format!("not checked: {error}"),
        };
        table.push([result.name.clone(), outcome]);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_that_the_hub_does_not_know_counts_as_wrong() {
        let result = |name: &str, outcome| CheckResult { name: name.to_owned(), outcome };
        let results = [
            result("a", CheckOutcome::Good { bytes: 98_000_000 }),
            result("b", CheckOutcome::Differs("the file has 5 bytes".into())),
            result("c", CheckOutcome::Gated),
        ];
        assert_eq!(results.iter().map(is_wrong).collect::<Vec<_>>(), [false, true, false]);
        let expected = "MODEL  HUB\n\
                        a      as described, 98.0 MB\n\
                        b      differs: the file has 5 bytes\n\
                        c      gated, as the catalog says\n";
        assert_eq!(describe(&results), expected);
    }
}
