//! What a request asks and what it gets: plain data that every layer may name.
