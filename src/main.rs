//! The program `lantern`: parses what was typed, runs it, and turns a failure into one clear line and an exit code.
//!
//! Exit codes: 0 done, 1 failed, 2 not understood, 70 the engine of a server stopped by itself, 130 interrupted.

use std::process::ExitCode;

use clap::Parser;
use lantern::cli::{Cli, CliError, ENGINE_DIED, INTERRUPTED, run};

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(CliError::Interrupted) => ExitCode::from(INTERRUPTED),
        // `lantern list | head` is no failure.
        Err(error) if error.is_broken_pipe() => ExitCode::SUCCESS,
        Err(error) => {
            let code = if matches!(error, CliError::EngineDied(_)) { ENGINE_DIED.into() } else { ExitCode::FAILURE };
            eprint!("{}", explain(&error.into()));
            code
        }
    }
}

/// The error in one line, and each of its causes in one more.
fn explain(error: &anyhow::Error) -> String {
    let mut text = format!("error: {error}\n");
    let mut above = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        // Some errors repeat their cause in their own words.
        if !above.contains(&cause) {
            text += &format!("  because {}\n", cause.trim_end().replace('\n', "\n    "));
        }
        above = cause;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_follow_the_error_and_are_not_repeated() {
        let error = anyhow::anyhow!("line 1\nno such key").context("the file is not valid").context("cannot start");
        assert_eq!(
            explain(&error),
            "error: cannot start\n  because the file is not valid\n  because line 1\n    no such key\n"
        );
        let repeated = anyhow::anyhow!("disk full").context("cannot write: disk full");
        assert_eq!(explain(&repeated), "error: cannot write: disk full\n");
    }
}
