//! The loop that turns requests into tokens, on one OS thread of its own. Knows no HTTP and no text.
