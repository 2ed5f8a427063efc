//! How a download says how far it is.
//! Does not know what draws it: a terminal bar, a log line, nothing.

/// Hears of the progress of a pull. `()` ignores it.
pub trait Progress: Send {
    /// What begins next is promised to hash to this: SHA-256 in lower-case hex.
    fn promise(&mut self, _sha256: &str) {}

    /// A piece of work begins: `what` for a person to read, `total_bytes` where it is known.
    ///
    /// Called again with the same `what` where a server made a download restart: the count goes back to zero.
    fn start(&mut self, what: &str, total_bytes: Option<u64>);

    /// So many more bytes are done. The part of an earlier, interrupted download counts too.
    fn advance(&mut self, bytes: u64);

    /// The piece of work that began last is over, well or not.
    fn finish(&mut self);
}

impl Progress for () {
    fn start(&mut self, _what: &str, _total_bytes: Option<u64>) {}
    fn advance(&mut self, _bytes: u64) {}
    fn finish(&mut self) {}
}
