//! The command line: one file a subcommand, over the library and the server.
//!
//! Knows no exit codes: `main` turns a [`CliError`] into one.

mod bench;
mod catalog;
mod client;
mod cp;
mod cuda;
mod doctor;
mod error;
mod flags;
mod list;
mod load;
mod perplexity;
mod progress;
mod ps;
mod pull;
mod rm;
mod run;
mod serve;
mod show;
mod sse;
mod startup;
mod table;
mod talk;
mod terminal;

use std::io::{Write, stderr, stdout};

use clap::Parser;
use tokio::runtime::Runtime;
use tracing_subscriber::EnvFilter;

use crate::config::{Config, ConfigError, Settings, environment, read_if_there};

pub use error::CliError;
use terminal::Terminal;

/// Exit code of a program that Ctrl-C ended, as shells count it.
pub const INTERRUPTED: u8 = 130;

/// Exit code of a server whose engine stopped by itself: a supervisor starts it again. EX_SOFTWARE of sysexits(3).
pub const ENGINE_DIED: u8 = 70;

/// One program that serves language models to everyone on a network.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "lantern",
    version,
    propagate_version = true,
    max_term_width = 100,
    after_help = "Examples:\n  lantern serve                          the default model at http://127.0.0.1:11434\n  \
                  lantern run smollm2:135m               a chat in the terminal\n  \
                  lantern doctor                         what this machine has and what fits it\n\n\
                  Settings come from flags, then LANTERN_* and OLLAMA_* variables, then lantern.toml."
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Command {
    /// Serve a model to programs and people
    Serve(serve::ServeArgs),
    /// Chat with a model in the terminal, or ask it one thing
    Run(run::RunArgs),
    /// Download a model
    Pull(pull::PullArgs),
    /// List the models on this machine
    #[command(visible_alias = "ls")]
    List(list::ListArgs),
    /// Show what is known about a model
    Show(show::ShowArgs),
    /// Give a model a second name
    Cp(cp::CpArgs),
    /// Remove a model from this machine
    Rm(rm::RmArgs),
    /// Show what the running server does
    Ps(ps::PsArgs),
    /// Show what this machine has, and which models fit it
    Doctor(doctor::DoctorArgs),
    /// Fetch what makes NVIDIA GPUs faster
    Cuda(cuda::CudaArgs),
    /// Measure how fast a model runs here
    Bench(bench::BenchArgs),
    /// Measure how well a model predicts a text
    Perplexity(perplexity::PerplexityArgs),
    /// List the models that have a short name
    Catalog(catalog::CatalogArgs),
}

/// Runs a command to its end.
///
/// # Errors
/// [`CliError`], for `main` to print.
pub fn run(cli: Cli) -> Result<(), CliError> {
    let session = Session { terminal: Terminal::detect(&environment) };
    match cli.command {
        Command::Serve(args) => serve::run(args, &session),
        Command::Run(args) => run::run(args, &session),
        Command::Pull(args) => pull::run(args, &session),
        Command::List(args) => list::run(args, &session),
        Command::Show(args) => show::run(args, &session),
        Command::Cp(args) => cp::run(args, &session),
        Command::Rm(args) => rm::run(args, &session),
        Command::Ps(args) => ps::run(args, &session),
        Command::Doctor(args) => doctor::run(args, &session),
        Command::Cuda(args) => cuda::run(args, &session),
        Command::Bench(args) => bench::run(args, &session),
        Command::Perplexity(args) => perplexity::run(args, &session),
        Command::Catalog(args) => catalog::run(args, &session),
    }
}

/// What every command needs.
#[derive(Clone, Copy, Debug)]
struct Session {
    terminal: Terminal,
}

impl Session {
    /// These flags over the environment over the file over the defaults.
    fn resolve(&self, flags: Settings) -> Result<Config, ConfigError> {
        Config::resolve(flags, &environment, &read_if_there)
    }

    /// Logs to standard error from now on.
    fn log(&self, config: &Config, default: &str) -> Result<(), CliError> {
        let filter = config.log.as_deref().unwrap_or(default);
        let parsed = EnvFilter::try_new(filter)
            .map_err(|error| CliError::Refused(format!("the log filter `{filter}` is not valid: {error}")))?;
        tracing_subscriber::fmt()
            .with_env_filter(parsed)
            .with_ansi(self.terminal.stderr && self.terminal.colour)
            .with_writer(stderr)
            .init();
        Ok(())
    }

    /// Writes to standard output at once.
    fn print(&self, text: &str) -> Result<(), CliError> {
        let mut out = stdout().lock();
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(CliError::output)
    }
}

/// What commands wait on.
fn runtime() -> Result<Runtime, CliError> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("lantern-io")
        .build()
        .map_err(|source| CliError::Io { doing: "threads cannot be started", source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_flags_do_not_contradict_each_other() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_example_in_the_help_is_a_command() {
        let mut examples = Vec::new();
        for command in std::iter::once(&Cli::command()).chain(Cli::command().get_subcommands()) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let lines = help.lines().filter_map(|line| line.trim().split("lantern ").nth(1).map(str::to_owned));
            // The program's own examples have a description after two blanks.
            examples.extend(
                lines
                    .filter(|line| !line.contains("toml"))
                    .map(|line| line.split("  ").next().unwrap_or_default().to_owned()),
            );
        }
        assert!(examples.len() >= 10, "{examples:?}");
        for example in examples {
            let words = std::iter::once("lantern").chain(example.split_whitespace());
            let parsed = Cli::try_parse_from(words);
            assert!(parsed.is_ok(), "{example}: {:?}", parsed.err());
        }
    }
}
