//! The HTTP contract, against an engine that says what a test tells it to.
//!
//! No model and no sleeping: what takes time waits for the other side.

mod anthropic;
mod calls;
mod chat;
mod completions;
mod embeddings;
pub(super) mod fixture;
mod leaving;
mod lifecycle;
mod models;
mod ollama;
mod openapi;
mod operations;
mod refusals;
mod responses;
mod streams;
