//! Text in, stream of text out: what embedders and the server use.
