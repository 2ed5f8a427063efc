//! What is told of an error of Candle's.

use candle_core::Error;

/// `error` without the backtraces that Candle prints with it where RUST_BACKTRACE is set: where it happened is for who
/// debugs, and not for a client.
pub fn without_backtrace(error: Error) -> Error {
    match error {
        Error::WithBacktrace { inner, .. } => without_backtrace(*inner),
        Error::Context { inner, context } => Error::Context { inner: Box::new(without_backtrace(*inner)), context },
        Error::WithPath { inner, path } => Error::WithPath { inner: Box::new(without_backtrace(*inner)), path },
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::backtrace::Backtrace;

    /// As [`Error::bt`], whatever the environment says.
    fn traced(error: Error) -> Error {
        Error::WithBacktrace { inner: Box::new(error), backtrace: Box::new(Backtrace::force_capture()) }
    }

    #[test]
    fn an_error_is_told_without_backtraces_at_any_depth() {
        let message = || traced(Error::Msg("no room".into()));
        for (error, expected) in [
            (message(), "no room"),
            (traced(message()), "no room"),
            (traced(message().context("norms")), "norms\nno room"),
            (traced(traced(message().with_path("a.gguf")).context("norms")), "norms\npath: \"a.gguf\" no room"),
            (Error::UnwrapNone, "unwrap none"),
        ] {
            assert_eq!(without_backtrace(error).to_string(), expected);
        }
        assert_ne!(message().to_string(), "no room", "a backtrace is printed");
    }
}
